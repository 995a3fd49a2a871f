//! A test in a process of its own, where other tests share neither memory nor libtorch's global
//! state.

use std::env;
use std::process::Command;

/// Turns libtorch's flight recorder off, which crashes where groups of one process record at once.
pub(crate) const NO_RECORDER: (&str, &str) = ("TORCH_FR_BUFFER_SIZE", "0");

/// For a test that aborts a group: every socket of its process that was opened since is shut down.
/// The shim sets [`NO_RECORDER`]'s variable in all processes, so that one starts no other process.
pub(crate) const OWN_PROCESS: (&str, &str) = ("THANOS_TEST_OWN_PROCESS", "1");

/// Whether this process has the variable that `test` needs; else another one has run it with that.
///
/// # Panics
/// As [`alone`].
pub(crate) fn has_or_reran(test: &str, (variable, value): (&str, &str)) -> bool {
    if env::var(variable).is_ok_and(|found| found == value) {
        return true;
    }
    alone(test, (variable, value));
    false
}

/// What this binary prints when it runs `test` alone, with an environment variable that shows that
/// it is there.
///
/// # Panics
/// With all that it printed, if the test fails.
pub(crate) fn alone(test: &str, (variable, value): (&str, &str)) -> String {
    let this = env::current_exe().expect("the path of this binary");
    let output = Command::new(this)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(variable, value)
        .output();
    let output = output.expect("this binary restarts");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let ran_one = printed.contains("1 passed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && ran_one,
        "{test} alone: {}\n{printed}{errors}",
        output.status
    );
    printed
}
