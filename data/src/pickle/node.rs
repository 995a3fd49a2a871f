//! The values of a pickle while it is read, and how a message shows them.

use std::borrow::Cow;

/// The only names a pickle may ask for. None of them is called; each stands for what it would make.
#[derive(Clone, Copy)]
pub(super) enum Global {
    Reconstruct,
    Ndarray,
    Dtype,
    FromBuffer,
    Encode,
}

impl Global {
    pub(super) fn find(module: &[u8], name: &[u8]) -> Option<Global> {
        match (module, name) {
            (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => {
                Some(Global::Reconstruct)
            }
            (b"numpy.core.numeric" | b"numpy._core.numeric", b"_frombuffer") => {
                Some(Global::FromBuffer)
            }
            (b"numpy", b"ndarray") => Some(Global::Ndarray),
            (b"numpy", b"dtype") => Some(Global::Dtype),
            (b"_codecs", b"encode") => Some(Global::Encode),
            _ => None,
        }
    }
}

/// The place of a node in `Machine::nodes`. Places are only ever handed out by `Machine::push`, so
/// each is valid.
pub(super) type Id = usize;

/// One value as the pickle builds it. Containers hold places, not values: sharing costs nothing, a
/// list that contains itself is harmless, and dropping them all is one flat loop.
pub(super) enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<Id>),
    Global(Global),
    /// The type of unsigned bytes; no other gets this far.
    Dtype,
    /// An array that `_reconstruct` made and BUILD is yet to fill.
    Blank,
    /// A shape, and the `Bytes` that fill it.
    Array(Vec<usize>, Id),
}

impl Node<'_> {
    pub(super) fn kind(&self) -> String {
        let kind = match self {
            Node::None => "None",
            Node::Bool(_) => "a boolean",
            Node::Int(number) => return format!("the number {number}"),
            Node::Float(_) => "a float",
            Node::Bytes(bytes) => return format!("the string {}", shown(bytes)),
            Node::List(_) => "a list",
            Node::Tuple(items) => return format!("a tuple of {}", items.len()),
            Node::Dict(_) => "a dict",
            Node::Global(_) => "a numpy name",
            Node::Dtype => "a numpy dtype",
            Node::Blank => "a numpy array without its bytes",
            Node::Array(..) => "a numpy array",
        };
        kind.to_string()
    }
}

/// Untrusted bytes in a message: short and in ASCII.
pub(super) fn shortened(bytes: &[u8]) -> String {
    let dots = if bytes.len() > 60 { "..." } else { "" };
    format!("{}{dots}", bytes[..bytes.len().min(60)].escape_ascii())
}

pub(super) fn shown(bytes: &[u8]) -> String {
    format!("`{}`", shortened(bytes))
}
