//! A series: several runs of one experiment, one after the other, each in a directory of its own
//! below that of the series, each by a `launch` process of its own. Here they are started, signals
//! are passed on to them, and `series.json` and the table over all of them are written. What a run
//! is, is not known here.

pub(crate) mod members;

use crate::exit::{EXIT_DATA, EXIT_IO, EXIT_STOPPED, EXIT_UNREACHABLE, Fatal};
use crate::run::is_stop_signal;
use crate::run_dir::write_durably;
use crate::signals::stop_and_child_signals;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use thanos_formats::RESULTS_JSON;

/// Which makes a directory that of a series.
const SERIES: &str = "series.json";
/// The process that runs the series: a member ends with it.
pub(crate) const MEMBER_OF: &str = "--member-of";

/// `series.json`: with which its runs are started, so that a resume needs the directory only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Series {
    /// What was typed after `launch`, without the options of the series, in `working_directory`.
    pub(crate) arguments: Vec<String>,
    pub(crate) working_directory: PathBuf,
    /// As `--seeds` and `--sweep` were typed.
    pub(crate) seeds: Option<String>,
    pub(crate) sweep: Vec<String>,
    /// Directories of its runs, below its own.
    pub(crate) members: Vec<String>,
}

impl Series {
    pub(crate) fn is_at(folder: &Path) -> bool {
        folder.join(SERIES).exists()
    }

    /// # Errors
    /// 65, naming the file.
    pub(crate) fn read(folder: &Path) -> Result<Self, Fatal> {
        let file = folder.join(SERIES);
        let cannot = |error: &dyn std::fmt::Display| {
            Fatal::new(EXIT_DATA, format!("{}: {error}", file.display()))
        };
        let text = fs::read_to_string(&file).map_err(|error| cannot(&error))?;
        serde_json::from_str(&text).map_err(|error| cannot(&error))
    }

    /// # Errors
    /// 74, naming what cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Fatal> {
        fs::create_dir_all(folder).map_err(|error| {
            Fatal::new(EXIT_IO, format!("cannot make {}: {error}", folder.display()))
        })?;
        let text = serde_json::to_string_pretty(self).expect("plain data is always JSON");
        write_durably(&folder.join(SERIES), format!("{text}\n").as_bytes())
    }
}

/// The run directories of what a user names: of a series those of its members that have results,
/// else the directory itself.
///
/// # Errors
/// 65 if a `series.json` is damaged, or no member has results yet.
pub(crate) fn runs_at(folder: &Path) -> Result<Vec<PathBuf>, Fatal> {
    if !Series::is_at(folder) {
        return Ok(vec![folder.into()]);
    }
    let members = Series::read(folder)?.members.into_iter().map(|member| folder.join(member));
    let with_results: Vec<PathBuf> =
        members.filter(|run_dir| run_dir.join(RESULTS_JSON).exists()).collect();
    match with_results.is_empty() {
        true => {
            Err(Fatal::new(EXIT_DATA, format!("there are no results yet: {}", folder.display())))
        }
        false => Ok(with_results),
    }
}

/// Starts the runs of a series, and passes stop signals on to the one that is running.
pub(crate) struct Starter {
    signals: Signals,
    stop_requested: bool,
}

impl Starter {
    /// From here on stop signals are for the running member.
    ///
    /// # Errors
    /// If the system refuses to deliver signals.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            signals: Signals::new(stop_and_child_signals()).context("to pass signals on")?,
            stop_requested: false,
        })
    }

    /// Runs `launch` in this directory to its end, and returns its exit code.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(crate) fn run(&mut self, run_dir: &Path, arguments: &[String]) -> Result<u8> {
        if self.stop_requested() {
            return Ok(EXIT_STOPPED);
        }
        let child = Command::new(std::env::current_exe().context("this program's own path")?)
            .arg("launch")
            .arg("--run-dir")
            .arg(run_dir)
            .args(["--resume=auto", MEMBER_OF, &std::process::id().to_string()])
            .args(arguments)
            .stdin(Stdio::null())
            // The table of the series is the only one on standard output.
            .stdout(Stdio::null())
            // A Ctrl-C at the terminal reaches it once: through this process.
            .process_group(0)
            .spawn()
            .context("the run could not be started")?;
        self.wait(Pid::from_raw(i32::try_from(child.id())?))
    }

    /// Whether a stop signal has arrived while no member was running.
    fn stop_requested(&mut self) -> bool {
        self.stop_requested |= self.signals.pending().any(|signal| signal != SIGCHLD);
        self.stop_requested
    }

    fn wait(&mut self, member: Pid) -> Result<u8> {
        loop {
            // The member may have ended before this process waits for signals: a SIGCHLD is then
            // pending.
            for signal in self.signals.wait() {
                if signal != SIGCHLD {
                    self.stop_requested = true;
                    kill(member, Signal::try_from(signal)?)?;
                }
            }
            match waitpid(member, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => {
                    return Ok(u8::try_from(code).unwrap_or(EXIT_UNREACHABLE));
                }
                WaitStatus::Signaled(_, signal, _) if is_stop_signal(signal as i32) => {
                    return Ok(EXIT_STOPPED);
                }
                WaitStatus::Signaled(..) => return Ok(EXIT_UNREACHABLE),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_names_its_runs_with_results() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        assert_eq!(runs_at(path).expect("an ordinary run"), [path]);
        let series = Series {
            arguments: vec!["digits_cae".into()],
            working_directory: "/".into(),
            seeds: Some("2".into()),
            sweep: Vec::new(),
            members: vec!["seed-0".into(), "seed-1".into()],
        };
        series.write(path).expect("written");
        assert_eq!(Series::read(path).expect("read"), series);
        assert_eq!(runs_at(path).expect_err("none yet").exit_code, EXIT_DATA);
        fs::create_dir(path.join("seed-1")).expect("made");
        fs::write(path.join("seed-1/results.json"), "{}").expect("written");
        assert_eq!(runs_at(path).expect("one"), [path.join("seed-1")]);
        fs::write(path.join(SERIES), "{").expect("written");
        assert!(runs_at(path).is_err_and(|fatal| fatal.message.contains("series.json")));
    }
}
