//! Durations as people type them, the same in both programs.

use std::time::Duration;

/// A number with `ms`, `s`, `m` or `h`, between a millisecond and eleven days.
///
/// # Errors
/// For the command line.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let read = units
        .iter()
        .find_map(|(unit, seconds)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * seconds));
    let seconds = read.filter(|seconds| (1e-3..=1e6).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected a time such as 500ms, 30s, 2m or 1h".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_with_a_unit() {
        for (text, millis) in [("500ms", 500), ("1.5s", 1500), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "-1s", "0s", "1d", "NaNs", "1e9s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
