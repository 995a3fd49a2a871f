//! A test in a process of its own, where other tests share neither memory nor libtorch's global
//! state.

use std::env;
use std::process::Command;

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
