//! `thanos-coord`: parse, log, run, exit code.

use clap::Parser;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use thanos_coord::{Arguments, EXIT_IO, EXIT_USAGE, LogWriter, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            // The reader of `--help` may leave early, as `head` does.
            let is_lost = printed.is_err_and(|error| error.kind() != ErrorKind::BrokenPipe);
            if is_lost && !error.use_stderr() {
                _ = writeln!(std::io::stderr(), "error: cannot write to standard output");
            }
            return ExitCode::from(match error.use_stderr() {
                true => EXIT_USAGE,
                false if is_lost => EXIT_IO,
                false => 0,
            });
        }
    };
    // Tests break this very program at chosen places (`FAILPOINTS`).
    let _armed = fail::FailScenario::setup();
    let filter = EnvFilter::try_from_env("THANOS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Colours are for terminals, not for log files.
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(LogWriter)
        .with_ansi(ansi)
        .without_time()
        .init();
    ExitCode::from(run(arguments))
}
