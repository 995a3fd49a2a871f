//! Whether this process may open as many descriptors as a run of this size needs.

use super::max_pending;
use crate::exit::{EXIT_UNREACHABLE, Fatal};
use thanos_transport::raise_descriptor_limit;

/// Of a worker: its session, the one before it that may not be known to be lost, and its process.
const EACH_WORKER: u64 = 3;
/// Files of the run directory, packs that are sent, checkpoints, readers of metrics, the runtime.
const OTHERS: u64 = 128;

/// Raises the limit, and compares it with what this many workers need.
///
/// # Errors
/// 69, naming the limit, if the workers could not all be connected.
pub(crate) fn check_descriptors(workers: usize) -> Result<(), Fatal> {
    match raise_descriptor_limit() {
        Ok(limit) => check_limit(limit, workers),
        Err(error) => {
            tracing::warn!("the limit of open file descriptors is unknown: {error}");
            Ok(())
        }
    }
}

fn check_limit(limit: u64, workers: usize) -> Result<(), Fatal> {
    let least = EACH_WORKER * workers as u64 + OTHERS;
    let wanted = least + max_pending(workers) as u64;
    if limit < least {
        let message = format!(
            "{workers} workers need {least} open descriptors, and this process may have {limit}: \
             raise the hard limit (ulimit -Hn, LimitNOFILE= of systemd, or a container's ulimits)"
        );
        return Err(Fatal::new(EXIT_UNREACHABLE, message));
    }
    if limit < wanted {
        tracing::warn!(
            "{limit} open descriptors are enough for {workers} workers, but not for {wanted}, \
             which unauthenticated connections could use up: raise the hard limit (ulimit -Hn)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_refused_with_what_is_needed() {
        assert!(check_limit(1024, 4).is_ok());
        assert!(check_limit(1024, 298).is_ok());
        let refused = check_limit(1024, 1000).expect_err("too low");
        assert_eq!(refused.exit_code, EXIT_UNREACHABLE);
        assert!(refused.message.starts_with(
            "1000 workers need 3128 open descriptors, and this process may have 1024"
        ));
    }
}
