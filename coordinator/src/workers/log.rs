//! What a worker's log says about why its process ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a log that are searched from where a process began to write, and of the line that is
/// quoted.
const MAX_SEARCHED_BYTES: u64 = 16 << 20;
const MAX_QUOTED_CHARS: usize = 500;

/// The first error that was logged from `begin` on, since later ones are its consequences; without
/// any, the last line. `None`: nothing was logged.
pub(super) fn first_error(log: &Path, begin: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(begin)).ok()?;
    let bytes = BufReader::new(file.take(MAX_SEARCHED_BYTES)).split(b'\n').map_while(Result::ok);
    let mut lines = bytes
        .map(|line| String::from_utf8_lossy(&line).trim_end().to_owned())
        .filter(|line| !line.trim().is_empty());
    let mut last = None;
    while let Some(line) = lines.next() {
        if line.contains(" ERROR ") {
            return Some(quoted(&line));
        }
        if line.contains("panicked at") {
            // The message is on the line after the place.
            let message = lines.next().unwrap_or_default();
            return Some(quoted(format!("{line} {message}").trim_end()));
        }
        last = Some(line);
    }
    last.map(|line| quoted(&line))
}

fn quoted(line: &str) -> String {
    match line.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::write;

    #[test]
    fn the_first_error_of_this_start_is_quoted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let log = folder.path().join("worker-0.log");
        let earlier = "09:00 ERROR of an earlier process\n";
        let check = |text: &str, expected: Option<&str>| {
            write(&log, format!("{earlier}{text}")).expect("written");
            assert_eq!(first_error(&log, earlier.len() as u64).as_deref(), expected, "{text}");
        };
        check(
            "09:01 INFO begins\n09:02 ERROR first\n09:03 ERROR second\n",
            Some("09:02 ERROR first"),
        );
        let panicked =
            "thread 'main' panicked at src/a.rs:1:2:\nindex out of bounds\n09:03 ERROR then\n";
        check(panicked, Some("thread 'main' panicked at src/a.rs:1:2: index out of bounds"));
        check("undefined symbol: x\n\n", Some("undefined symbol: x"));
        check("", None);
        check(&"x".repeat(600), Some(&format!("{}...", "x".repeat(500))));
        assert_eq!(first_error(&folder.path().join("none"), 0), None);
    }
}
