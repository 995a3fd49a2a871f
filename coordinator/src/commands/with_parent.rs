//! Runs a program that ends when the process ends that started it, however that is: a hidden
//! command, since what asks the kernel for it has to be the program's own process.

use crate::signals::end_with_parent;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Becomes `program`.
///
/// # Errors
/// If it cannot be started, or the parent has ended already.
pub(crate) fn with_parent(parent: i32, program: &[String]) -> Result<u8> {
    let is_there = end_with_parent(parent, Signal::SIGTERM).context("to end with the parent")?;
    anyhow::ensure!(is_there, "the parent has ended");
    let (name, arguments) = program.split_first().context("a program to run")?;
    let error = Command::new(name).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {name}"))
}
