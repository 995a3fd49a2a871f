//! The kind of an error, as the shim describes it.

use super::*;

#[test]
fn a_description_is_a_kind_and_a_message() {
    for (description, kind, message) in [
        ("PConnection closed by peer", ErrorKind::PeerLost, "Connection closed by peer"),
        ("OTensors must be CUDA and dense", ErrorKind::Other, "Tensors must be CUDA and dense"),
        ("O", ErrorKind::Other, ""),
    ] {
        let error = Error::parse("all_reduce", description);
        assert_eq!((error.kind, error.message.as_str()), (kind, message));
        let in_backward = Error::in_backward(&format!("{LOST_IN_BACKWARD}{description}\nException raised from"));
        let error = in_backward.expect("a collective of a backward pass");
        assert_eq!((error.operation, error.kind, error.message.as_str()), ("all_reduce", kind, message));
    }
    assert!(Error::in_backward("element 0 of tensors does not require grad").is_none());
}
