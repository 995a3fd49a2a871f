//! A pseudo-terminal: what a program shows on it, keys that are pressed, and its end.

use crate::{DEFAULT_SIGNALS, Running, Scene, packs, program};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pty_process::blocking::{Command, Pts, Pty, open};
use std::io::{ErrorKind, Read, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// No program on a terminal may run longer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The side of a terminal that people see; the terminal is closed when this is dropped.
pub struct Terminal {
    master: Pty,
    shown: Vec<u8>,
}

impl Terminal {
    /// A terminal of 120 columns, and the side that a program gets.
    ///
    /// # Panics
    /// If the system has none left.
    pub fn new() -> (Self, Pts) {
        let (master, slave) = open().expect("a pseudo-terminal");
        master.resize(pty_process::Size::new(40, 120)).expect("a size");
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))
            .expect("a file descriptor");
        (Self { master, shown: Vec::new() }, slave)
    }

    /// Types these characters.
    ///
    /// # Panics
    /// If the terminal does not take them.
    pub fn press(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("keys");
    }

    /// All that was shown so far.
    pub fn shown(&mut self) -> String {
        let mut bytes = [0; 4096];
        loop {
            match self.master.read(&mut bytes) {
                Ok(0) => break,
                Ok(read) => self.shown.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing for now, or no program is left.
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    /// Reads until the program has ended; its exit code, and all that was shown.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn read_to_end(mut self, mut running: Running) -> (Option<i32>, String) {
        let started = Instant::now();
        while !running.has_ended() {
            assert!(
                started.elapsed() < TIMEOUT,
                "it still runs after {TIMEOUT:?}: {}",
                self.shown()
            );
            std::thread::sleep(Duration::from_millis(2));
            self.shown();
        }
        let shown = self.shown();
        (running.wait().code, shown)
    }
}

/// `thanos-coord`, in the folder of a test.
pub fn coord(scene: &Scene, arguments: &[&str]) -> Command {
    command(scene, &[&[program("thanos-coord").to_str().expect("UTF-8")], arguments].concat())
}

/// As [`coord`], by a shell that first does something else, such as closing its output.
pub fn shell(scene: &Scene, first: &str, redirection: &str, arguments: &[&str]) -> Command {
    let script = format!("{first} exec \"$0\" \"$@\" {redirection}");
    let coord = program("thanos-coord");
    command(scene, &[&["sh", "-c", &script, coord.to_str().expect("UTF-8")], arguments].concat())
}

fn command(scene: &Scene, words: &[&str]) -> Command {
    Command::new(DEFAULT_SIGNALS[0])
        .args(&DEFAULT_SIGNALS[1..])
        .args(words)
        .current_dir(scene.path(""))
        .env("THANOS_PACKS", packs())
        .env("TERM", "xterm")
        .env_remove("COLUMNS")
        .env_remove("NO_COLOR")
}

/// Starts a program as the leader of a terminal's session, so that keys and the terminal's end
/// become its signals.
///
/// # Panics
/// If it cannot be started: `make test` builds it first.
pub fn start(scene: &Scene, command: Command, slave: Pts) -> Running {
    scene.running(command.spawn(slave).expect("`make build` first"))
}

/// As [`start`], with output into a pipe, whose other end is returned.
///
/// # Panics
/// As there.
pub fn start_into_pipe(
    scene: &Scene,
    command: Command,
    slave: Pts,
) -> (Running, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let both = [writer.try_clone().expect("a descriptor"), writer].map(Stdio::from);
    let [stdout, stderr] = both;
    let running = start(scene, command.stdout(stdout).stderr(stderr), slave);
    (running, reader)
}
