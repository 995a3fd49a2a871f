//! How many descriptors a process may have open. Most systems allow 1024 unless a process asks for
//! more, and a coordinator has two for each worker, a worker one for each peer.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Enough for as many workers as a coordinator takes. Not the hard limit itself: some programs
/// close each descriptor that there could be when they start, and workers' children inherit the
/// limit.
const ENOUGH: u64 = 1 << 16;

/// Raises this process's limit as far as it may and needs to, and returns the limit that then
/// holds.
///
/// # Errors
/// If the system does not report the limit. One that cannot be raised is returned as it is.
pub fn raise_descriptor_limit() -> std::io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = soft.max(hard.min(ENOUGH));
    if wanted > soft && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_err() {
        return Ok(soft);
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_raised() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        // By one: other tests of this process open descriptors meanwhile.
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(ENOUGH) - 1, hard).expect("lowered");
        let raised = raise_descriptor_limit().expect("a limit");
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
        assert_eq!((soft, raised), (hard.min(ENOUGH), hard.min(ENOUGH)));
    }
}
