//! Where a run's pages are served: at the address that `--status` names, at a free port of this
//! machine if a user watches the launch on a terminal, or nowhere. The supervisor opens the
//! listener and passes it on, so that a page finds the next coordinator at the same address.

use crate::exit::Fatal;
use crate::telemetry::http::Observed;
use anyhow::{Context, Result};
use listenfd::ListenFd;
use nix::fcntl::{FcntlArg, fcntl};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::str::FromStr;
use std::sync::Arc;

/// What `--status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatusChoice {
    Off,
    At(SocketAddr),
}

impl FromStr for StatusChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| "expected an address such as 127.0.0.1:9464, or off".into()),
        }
    }
}

/// The listener of a run's pages.
#[derive(Clone, Debug)]
pub(crate) struct StatusListener {
    pub(crate) listener: Arc<TcpListener>,
    /// `--status` has named its address: the workers serve their metrics, too.
    pub(crate) is_typed: bool,
}

impl StatusListener {
    /// Takes the listener that a supervisor, or systemd, has passed after the coordinator's own;
    /// else opens one. `by_default`: also if `--status` was not typed.
    ///
    /// # Errors
    /// 69, naming the address, if it was typed and cannot be listened on.
    pub(crate) fn open(
        choice: Option<StatusChoice>,
        by_default: bool,
        passed: &mut ListenFd,
    ) -> Result<Option<Self>> {
        let is_typed = choice.is_some();
        let address = match choice {
            Some(StatusChoice::Off) => return Ok(None),
            Some(StatusChoice::At(address)) => address,
            None if by_default => (Ipv4Addr::LOCALHOST, 0).into(),
            None => return Ok(None),
        };
        let last = passed.len().checked_sub(1).filter(|last| *last > 0);
        let passed = last.map(|last| passed.take_tcp_listener(last)).transpose();
        let passed =
            passed.context("the socket for --status that was passed to this program")?.flatten();
        let opened: Result<TcpListener, Fatal> =
            passed.map_or_else(|| Observed::listen(address, "--status"), Ok);
        match opened {
            Ok(listener) => Ok(Some(Self { listener: Arc::new(listener), is_typed })),
            Err(error) if is_typed => Err(error.into()),
            // It was not requested: the launch continues without it.
            Err(_) => Ok(None),
        }
    }

    /// A descriptor of it that a child process inherits, with a greater number than `other`: the
    /// coordinator's listener is the first one that is passed on, and this is the last.
    ///
    /// # Errors
    /// If this process has too many descriptors.
    pub(crate) fn inheritable(&self, other: &TcpListener) -> Result<RawFd> {
        let duplicate = FcntlArg::F_DUPFD(other.as_raw_fd() + 1);
        fcntl(&*self.listener, duplicate).context("to pass the port of --status on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_an_address_or_off() {
        assert_eq!("off".parse(), Ok(StatusChoice::Off));
        assert_eq!("[::1]:80".parse(), Ok(StatusChoice::At(([0, 0, 0, 0, 0, 0, 0, 1], 80).into())));
        for wrong in ["", "on", "127.0.0.1", ":80", "localhost:80"] {
            assert!(
                wrong.parse::<StatusChoice>().is_err_and(|message| message.contains("or off")),
                "{wrong}"
            );
        }
    }

    #[test]
    fn pages_are_served_where_that_was_typed_or_where_a_user_watches() {
        let open = |choice, by_default| {
            StatusListener::open(choice, by_default, &mut ListenFd::empty())
                .expect("no address is taken")
        };
        let any = StatusChoice::At((Ipv4Addr::LOCALHOST, 0).into());
        assert!(open(None, false).is_none());
        assert!(open(Some(StatusChoice::Off), true).is_none());
        assert!(open(Some(any), false).is_some_and(|status| status.is_typed));
        let by_default = open(None, true).expect("served");
        let address = by_default.listener.local_addr().expect("an address");
        assert!(!by_default.is_typed && address.ip().is_loopback());
        let typed = Some(StatusChoice::At(address));
        let taken =
            StatusListener::open(typed, false, &mut ListenFd::empty()).expect_err("it is taken");
        assert!(taken.to_string().contains("--status"), "{taken}");
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free");
        assert!(by_default.inheritable(&other).expect("a descriptor") > other.as_raw_fd());
    }
}
