//! Whether this process was started with SIGHUP ignored, as by `nohup`: then a closed terminal is
//! not a request to stop.

/// Whether SIGHUP is ignored, by the mask `SigIgn` of /proc/self/status (proc(5)).
pub fn hangup_is_ignored() -> bool {
    is_ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The lowest bit of the mask is SIGHUP, signal 1.
fn is_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nohup` leaves SIGHUP ignored; bit 12 is SIGPIPE, which Rust ignores.
    #[test]
    fn an_ignored_hangup_stays_ignored() {
        let status = |mask: &str| {
            format!("Name:\tthanos\nSigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\nSigCgt:\t1\n")
        };
        for (mask, ignored) in [
            ("0000000000000001", true),
            ("0000000000001001", true),
            ("0000000000001000", false),
            ("", false),
        ] {
            assert_eq!(is_ignored(&status(mask)), ignored, "{mask}");
        }
        assert!(!is_ignored(""));
    }
}
