//! A worker with an open session, and where it stands: it joins, waits for a generation, trains in
//! one, or has left.

use super::ExitCause;
use super::liveness::Progress;
use std::time::Duration;
use thanos_proto::{Held, Hello};

/// A worker with an open session.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) hello: Hello,
    pub(super) state: MemberState,
    pub(super) progress: Progress,
    /// Steps that it reported in this session.
    pub(super) steps_reported: u64,
    /// Where it last reported to be.
    pub(super) last_position: String,
    /// When its last message was read (of `awake`).
    pub(super) last_message: Duration,
    /// How its process ended, if the launcher was quicker than the end of its session.
    pub(super) exited: Option<(String, ExitCause)>,
    /// When it reported that it received SIGTERM (of `awake`).
    pub(super) terminating: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(super) enum MemberState {
    /// It makes its plan and opens its packs; or it returns to a restarted coordinator, and has not
    /// reported yet what it holds.
    Joining,
    /// It waits for a generation.
    Ready {
        /// What it holds in memory of the newest generation.
        held: Option<Held>,
        /// Its place in that generation, which it has left.
        left: Option<Seat>,
    },
    /// It is in the newest generation.
    Training(Seat),
    /// It has finished or stopped with its generation, and was sent `Leave`.
    Left { seat: Option<Seat> },
}

/// The place of a worker in the newest generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    pub(super) rank: u32,
    /// It took over the state of others when the generation began, which has made no step yet.
    pub(super) newcomer: bool,
}

impl Member {
    pub(super) fn new(hello: Hello, now: Duration) -> Self {
        Self {
            hello,
            state: MemberState::Joining,
            progress: Progress::new(now),
            steps_reported: 0,
            last_position: "start".into(),
            last_message: now,
            exited: None,
            terminating: None,
        }
    }

    /// Its place in the newest generation, also when it has left it.
    pub(super) fn seat(&self) -> Option<Seat> {
        match self.state {
            MemberState::Joining => None,
            MemberState::Training(seat) => Some(seat),
            MemberState::Ready { left: seat, .. } | MemberState::Left { seat } => seat,
        }
    }

    pub(super) fn rank(&self) -> Option<u32> {
        self.seat().map(|seat| seat.rank)
    }

    pub(super) fn is_newcomer(&self) -> bool {
        self.seat().is_some_and(|seat| seat.newcomer)
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, MemberState::Ready { .. })
    }

    pub(super) fn has_left(&self) -> bool {
        matches!(self.state, MemberState::Left { .. })
    }

    /// What it holds in memory, while it waits for a generation.
    pub(super) fn held(&self) -> Option<Held> {
        match self.state {
            MemberState::Ready { held, .. } => held,
            MemberState::Joining | MemberState::Training(_) | MemberState::Left { .. } => None,
        }
    }

    /// It may hold state of the newest generation, and has not reported yet what.
    pub(super) fn may_hold_state(&self) -> bool {
        match self.state {
            MemberState::Joining => self.hello.generation > 0,
            MemberState::Training(_) => true,
            MemberState::Ready { .. } | MemberState::Left { .. } => false,
        }
    }

    /// It waits for a generation from now on, with what it holds.
    pub(super) fn becomes_ready(&mut self, held: Option<Held>) {
        self.state = MemberState::Ready { held, left: self.seat() };
    }

    /// It is sent `Leave`, and nothing else is expected of it.
    pub(super) fn leaves(&mut self) {
        self.state = MemberState::Left { seat: self.seat() };
    }

    /// Its generation has made a step.
    pub(super) fn made_a_step(&mut self) {
        let (MemberState::Training(seat)
        | MemberState::Ready { left: Some(seat), .. }
        | MemberState::Left { seat: Some(seat) }) = &mut self.state
        else {
            return;
        };
        seat.newcomer = false;
    }
}
