//! The user's own W&B client, which uploads the files of a run while they grow:
//! `wandb beta sync --live`. It has the user's credentials, server and retries. Without it, or when
//! it cannot keep up, the files stay, and the command that uploads them is printed once.

use crate::terminal;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "wandb";
/// Which the client reads itself.
pub(super) const KEY_VARIABLE: &str = "WANDB_API_KEY";
/// How long the end of a run waits for the client.
const EXIT_TIMEOUT: Duration = Duration::from_secs(4);
const EXIT_POLL: Duration = Duration::from_millis(20);

pub(super) struct Client {
    folder: PathBuf,
    /// Calls of the client that are to be made, one after the other: earlier files first.
    waiting: VecDeque<Vec<String>>,
    running: Option<Child>,
    following: bool,
    /// The files are left to the user, who knows.
    has_failed: bool,
}

impl Client {
    /// `earlier` are the files of earlier coordinators.
    pub(super) fn new(folder: &Path, earlier: Vec<PathBuf>) -> Self {
        let paths: Vec<String> = earlier.iter().map(|file| file.display().to_string()).collect();
        let first =
            [vec!["beta".into(), "sync".into(), "--yes".into(), "--skip-synced".into()], paths]
                .concat();
        let waiting = if earlier.is_empty() { VecDeque::new() } else { VecDeque::from([first]) };
        Self { folder: folder.into(), waiting, running: None, following: false, has_failed: false }
    }

    /// Uploads this file while it grows, once the earlier ones are uploaded.
    pub(super) fn follow(&mut self, file: &Path) {
        if !self.following {
            self.following = true;
            let live = ["beta", "sync", "--yes", "--live"].map(str::to_owned);
            self.waiting.push_back(live.into_iter().chain([file.display().to_string()]).collect());
        }
        self.resume();
    }

    /// Starts the next call when the last one has ended.
    fn resume(&mut self) {
        if let Some(child) = &mut self.running {
            match child.try_wait() {
                Ok(None) => return,
                Ok(Some(status)) if status.success() => self.running = None,
                Ok(Some(status)) => return self.fail(&format!("the client ended with {status}")),
                Err(error) => return self.fail(&error.to_string()),
            }
        }
        let Some(call) = self.waiting.pop_front().filter(|_| !self.has_failed) else { return };
        let program = std::env::current_exe();
        let child = program.and_then(|program| {
            Command::new(program)
                .args(["with-parent", &std::process::id().to_string(), PROGRAM])
                .args(call)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        match child {
            Ok(child) => self.running = Some(child),
            Err(error) => self.fail(&format!("the client cannot be started: {error}")),
        }
    }

    fn fail(&mut self, problem: &str) {
        self.running = None;
        if !self.has_failed {
            self.has_failed = true;
            let folder = self.folder.display();
            terminal::line(&format!(
                "W&B: {problem}; the run is kept offline, `wandb sync {folder}` uploads it"
            ));
        }
    }

    /// Waits a little for the client to upload what is left.
    ///
    /// # Errors
    /// If the system cannot end the client.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let started = Instant::now();
        while !self.has_failed && started.elapsed() < EXIT_TIMEOUT {
            self.resume();
            if self.running.is_none() && self.waiting.is_empty() {
                return Ok(());
            }
            std::thread::sleep(EXIT_POLL);
        }
        if let Some(child) = self.running.take() {
            self.fail("not everything has been uploaded yet");
            // It ends the processes that it has started.
            kill(
                Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?),
                Signal::SIGTERM,
            )?;
        }
        Ok(())
    }
}
