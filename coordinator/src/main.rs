//! `thanos-coord`: parse, log, run, exit code.

use clap::Parser;
use std::process::ExitCode;
use thanos_coord::{Arguments, EXIT_USAGE, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            _ = error.print();
            return ExitCode::from(code);
        }
    };
    // Tests break this very program at chosen places (`FAILPOINTS`).
    let _armed = fail::FailScenario::setup();
    let filter = EnvFilter::try_from_env("THANOS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    ExitCode::from(run(arguments))
}
