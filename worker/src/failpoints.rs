//! What tests break on purpose inside a worker: places where a rank hangs, dies, computes nonsense.
//! They are armed by the variable `FAILPOINTS` (`NAME=ACTION;...`, actions as the crate `fail` has
//! them) and cost a look at an empty table otherwise. `return(RANK:STEP)` chooses where; the rank
//! `any` is every rank.

use crate::tensors::StateDict;
use fail::fail_point;
use std::time::Duration;
use tch::Tensor;
use thanos_c10d::{Error as GroupError, ErrorKind, GroupAborter, ProcessGroup};

/// A rank whose training thread does nothing any more, while its session lives.
pub(crate) fn hang(rank: usize, step: u64) {
    if is_here("hang", rank, step) {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Whether something is to be broken.
pub(crate) fn are_armed() -> bool {
    !fail::list().is_empty()
}

/// The parameter whose gradient becomes NaN.
pub(crate) fn poisoned(parameters: &StateDict, rank: usize, step: u64) -> Option<&Tensor> {
    parameters.values().nth(1).filter(|_| is_here("poison-gradient", rank, step))
}

/// A weight that is not that of the other ranks.
pub(crate) fn change_weight(parameters: &StateDict, rank: usize, step: u64) {
    if is_here("change-weight", rank, step)
        && let Some(parameter) = parameters.values().nth(1)
    {
        _ = tch::no_grad(|| parameter.shallow_clone().view(-1).narrow(0, 0, 1).fill_(0.125));
    }
}

/// A group that is aborted while its collective runs: on a GPU the collective returns as if it were
/// done, with anything in its result.
pub(crate) fn abort_collective(result: &mut Tensor, group: &ProcessGroup, step: u64) {
    if is_here("abort-collective", group.rank(), step) {
        _ = result.fill_(0.5);
        let mut aborter = GroupAborter::new();
        aborter.watch(group);
        aborter.abort();
    }
}

/// A collective that fails although no connection is lost.
pub(crate) fn broken_collective(rank: usize, step: u64) -> Result<(), GroupError> {
    match is_here("broken-collective", rank, step) {
        true => Err(GroupError {
            operation: "all_reduce",
            message: "Tensors must be CUDA and dense".into(),
            kind: ErrorKind::Other,
        }),
        false => Ok(()),
    }
}

/// A place where time may be spent: `sleep(MILLISECONDS)`.
pub(crate) fn pass(point: &str) {
    fail_point!(point);
}

/// The sudden end of this process, as by a loss of power.
pub(crate) fn crash(point: &str) {
    fail_point!(point, |_| std::process::abort());
}

fn is_here(point: &str, rank: usize, step: u64) -> bool {
    let is_this =
        |place: String| place == format!("{rank}:{step}") || place == format!("any:{step}");
    fail_point!(point, |place| place.is_some_and(is_this));
    false
}
