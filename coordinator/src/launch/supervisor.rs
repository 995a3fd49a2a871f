//! The process that a user's `launch` is: it holds the ports, starts the coordinator, passes
//! signals on to it, and restarts it when it is killed or crashes; the workers wait for it
//! meanwhile. It knows nothing of a run. When it is gone itself, so is the coordinator at once, and
//! so are the workers when their lease is over.

use crate::exit::{EXIT_STOPPED, EXIT_UNREACHABLE, Fatal};
use crate::launch::status_listener::StatusListener;
use crate::run::is_stop_signal;
use crate::signals::{end_with_parent, stop_and_child_signals};
use crate::terminal;
use anyhow::{Context, Result};
use listenfd::ListenFd;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use thanos_formats::{RUN_JSON, STEPS_JSONL};

/// Starts of the coordinator, without a step between them, before the run is given up.
const MAX_STARTS: u32 = 5;
/// Exit code of a Rust program that panics.
const PANICKED: i32 = 101;

/// What the coordinator is passed in addition to the user's arguments: its supervisor, and that it
/// is not the first one.
pub(crate) const SUPERVISED: &str = "--supervised-by";
pub(crate) const AGAIN: &str = "--again";
/// That a stop was requested before it was restarted.
pub(crate) const STOP_REQUESTED: &str = "--stop-requested";

/// Runs the coordinator of a run to its end, with the arguments of this program, and returns its
/// exit code.
///
/// # Errors
/// 69 if it cannot be started, or ends again and again.
pub(crate) fn supervise(
    run_dir: &Path,
    listener: &TcpListener,
    status: Option<&StatusListener>,
) -> Result<u8> {
    set_child_subreaper(true).context("cannot become the subreaper of orphaned workers")?;
    let mut signals = Signals::new(stop_and_child_signals()).context("cannot handle signals")?;
    fcntl(listener, FcntlArg::F_SETFD(FdFlag::empty()))
        .context("cannot pass the listening socket to the coordinator")?;
    let last_fd = status.map_or(Ok(listener.as_raw_fd()), |status| status.inheritable(listener))?;
    let (mut starts, mut steps, mut stop_requested) = (0, 0, false);
    loop {
        let again = starts > 0 && run_dir.join(RUN_JSON).exists();
        let coordinator = spawn(run_dir, (listener.as_raw_fd(), last_fd), (again, stop_requested))?;
        let (ended, asked) = wait(coordinator, &mut signals)?;
        stop_requested |= asked;
        let how = match ended {
            // It could not handle a stop request yet, whether that came through this process or
            // from elsewhere.
            WaitStatus::Signaled(_, signal, _) if is_stop_signal(signal as i32) => {
                return Ok(EXIT_STOPPED);
            }
            // It was killed otherwise: only if there is a run yet may workers hold what no
            // checkpoint has.
            WaitStatus::Signaled(..) if stop_requested && !run_dir.join(RUN_JSON).exists() => {
                return Ok(EXIT_STOPPED);
            }
            WaitStatus::Exited(_, code) if code != PANICKED => {
                return Ok(u8::try_from(code).unwrap_or(EXIT_UNREACHABLE));
            }
            WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
            _ => "crashed".into(),
        };
        let made = std::fs::metadata(run_dir.join(STEPS_JSONL)).map_or(0, |file| file.len());
        starts = if made > steps { 1 } else { starts + 1 };
        steps = made;
        if starts > MAX_STARTS {
            let message = format!(
                "giving up: the coordinator {how}, {MAX_STARTS} times without a step in between"
            );
            return Err(Fatal::new(EXIT_UNREACHABLE, message).into());
        }
        terminal::line(&format!("the coordinator (pid {coordinator}) {how}: restarting it"));
    }
}

/// The port: the first one that this process was passed, or a new one.
///
/// # Errors
/// 69, naming the address.
pub(crate) fn listen(address: SocketAddr, passed: &mut ListenFd) -> Result<TcpListener> {
    let passed =
        passed.take_tcp_listener(0).context("the socket that was passed to this program")?;
    let listener = passed.map_or_else(|| crate::server::bind(address), Ok);
    Ok(listener.map_err(|error| {
        Fatal::new(EXIT_UNREACHABLE, format!("cannot listen on {address}: {error}"))
    })?)
}

/// Ends this process when its supervisor does.
pub(crate) fn end_with(supervisor: i32) -> Result<()> {
    let is_there = end_with_parent(supervisor, Signal::SIGKILL);
    if is_there.context("cannot request a signal at the supervisor's death")? {
        Ok(())
    } else {
        Err(Fatal::new(EXIT_UNREACHABLE, "the supervisor has exited").into())
    }
}

/// Starts the coordinator. It takes the first and the last of the descriptors that it is passed.
fn spawn(
    run_dir: &Path,
    (first_fd, last_fd): (RawFd, RawFd),
    (again, stop_requested): (bool, bool),
) -> Result<Pid> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let has_flag =
        |name: &str| std::env::args().any(|argument| argument.split('=').next() == Some(name));
    if !has_flag("--run-dir") {
        arguments.extend(["--run-dir".into(), run_dir.into()]);
    }
    arguments.extend([SUPERVISED.into(), std::process::id().to_string().into()]);
    if again {
        arguments.push(AGAIN.into());
    }
    if again && stop_requested {
        arguments.push(STOP_REQUESTED.into());
    }
    if again && !has_flag("--resume") {
        arguments.push("--resume".into());
    }
    let mut command = Command::new(program);
    if again {
        // What a test has broken on purpose is not broken again.
        command.env_remove("FAILPOINTS");
    }
    let child = command
        .args(arguments)
        .env("LISTEN_FDS", (last_fd - first_fd + 1).to_string())
        .env("LISTEN_FDS_FIRST_FD", first_fd.to_string())
        // A Ctrl-C at the terminal reaches it once: through this process.
        .process_group(0)
        .spawn()
        .context("the coordinator could not be started")?;
    Ok(Pid::from_raw(i32::try_from(child.id())?))
}

/// Waits for the coordinator to end, and says whether it was asked to. Signals are forwarded to it;
/// orphaned workers are reaped here.
fn wait(coordinator: Pid, signals: &mut Signals) -> Result<(WaitStatus, bool)> {
    let mut asked = false;
    loop {
        for signal in signals.wait() {
            if signal != SIGCHLD {
                kill(coordinator, Signal::try_from(signal)?)?;
                asked = true;
            }
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive => break,
                ended if ended.pid() == Some(coordinator) => return Ok((ended, asked)),
                _ => {}
            }
        }
    }
}
