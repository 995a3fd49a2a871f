//! Saves that do not make a step wait: a copy of the state, then a thread that writes it and
//! reports it to the coordinator, which commits it. One save is under way at most; a save that
//! fails is abandoned, and training continues, unless several fail in a row. What is in a
//! checkpoint is the caller's.

use crate::checkpoint;
use crate::error::{Result, WorkerError};
use crate::run_files::{RunFiles, Unfinished};
use crate::session::Session;
use crate::tensors::StateDict;
use anyhow::{Context, anyhow};
use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thanos_c10d::DeviceEvent;
use thanos_proto::{CheckpointWritten, WorkerEvent};
use tokio::sync::mpsc;

/// Saves in a row that may fail, on a full disk perhaps, before the run is ended.
const MAX_FAILURES: u32 = 3;
/// How long a save that others wait for is retried, where no grace period is set, and with the
/// longest one: the other ranks wait for it in a collective.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_RETRY_TIMEOUT: Duration = Duration::from_secs(240);
/// Pause before the second attempt; it doubles each time.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(8);
/// How often a pause looks whether the generation is over.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A checkpoint to be written.
pub(crate) struct Save {
    pub(crate) place: Arc<dyn RunFiles>,
    /// Names of files and their tensors, owned by the save.
    pub(crate) files: Vec<(&'static str, StateDict)>,
    /// What describes the network in files of weights.
    pub(crate) record: Arc<str>,
    /// On a GPU: reached when these tensors are copies of the state. The thread that writes them
    /// may be on another stream.
    pub(crate) copied: Option<DeviceEvent>,
    /// The report to the coordinator; folder and files are filled in.
    pub(crate) reported: CheckpointWritten,
}

pub(crate) struct Saver<'a> {
    session: &'a Session,
    under_way: Option<UnderWay>,
    failures: u32,
}

struct UnderWay {
    stage: String,
    step: u64,
    progress: Progress,
}

enum Progress {
    Writing(JoinHandle<Attempt>),
    /// The thread has ended; the coordinator may not have answered yet.
    Written(Box<Attempt>),
}

/// Whether to wait for a save to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    UntilEnded,
    No,
}

/// Why a save failed.
struct NotSaved {
    stage: String,
    step: u64,
    reason: String,
}

impl fmt::Display for NotSaved {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, step, reason } = self;
        write!(out, "checkpoint save failed: step {step} of stage {stage}: {reason}")
    }
}

/// A save that failed.
struct Failure {
    not_saved: NotSaved,
    /// The coordinator knows: it could not commit what was written.
    is_known: bool,
    /// What is to be written again; `None`: it is lost.
    save: Option<Save>,
}

/// An attempt to write a save, which may be tried again.
struct Attempt {
    /// `None`: it is lost.
    save: Option<Save>,
    outcome: anyhow::Result<()>,
}

impl<'a> Saver<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self { session, under_way: None, failures: 0 }
    }

    /// Whether a save could start without waiting for another one. Deals with one that has ended,
    /// as [`Self::start`] does.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(crate) fn is_idle(&mut self) -> Result<bool> {
        let ended = self.ended(Wait::No)?;
        let is_idle = ended.is_some();
        if let Some(Err(failure)) = ended {
            self.report(&failure, "")?;
            self.give_up(failure.not_saved)?;
        }
        Ok(is_idle)
    }

    /// Starts a save, after the one that is under way.
    ///
    /// # Errors
    /// If several saves in a row have failed; a single one is reported and counted.
    pub(crate) fn start(&mut self, save: Save) -> Result<()> {
        if let Err(failure) = self.wait()? {
            self.report(&failure, "")?;
            self.give_up(failure.not_saved)?;
        }
        self.spawn(save)
    }

    /// Starts a save when none is under way.
    fn spawn(&mut self, save: Save) -> Result<()> {
        let events = self.session.events();
        let (stage, step) = (save.reported.stage.clone(), save.reported.step);
        let body = move || {
            let outcome = write(&save, &events);
            Attempt { save: Some(save), outcome }
        };
        let thread = thread::Builder::new()
            .name("save".into())
            .spawn(body)
            .context("a thread for a save")?;
        self.under_way = Some(UnderWay { stage, step, progress: Progress::Writing(thread) });
        Ok(())
    }

    /// Saves, and returns when it is committed. A save that fails is retried for a minute, or,
    /// where a stop has a grace period, until the coordinator ends the run.
    ///
    /// # Errors
    /// [`WorkerError::NotSaved`] if it failed until then; the loss of the generation.
    pub(crate) fn save(&mut self, save: Save) -> Result<()> {
        if let Err(failure) = self.wait()? {
            self.report(&failure, "; a newer one follows")?;
        }
        self.spawn(save)?;
        let (mut first_failure, mut backoff) = (None, MIN_BACKOFF);
        while let Err(failure) = self.wait()? {
            let now = Instant::now();
            let first_failure = *first_failure.get_or_insert(now);
            let left = retry_deadline(first_failure, self.session.stop_deadline())
                .saturating_duration_since(now);
            if failure.save.is_none() || left.is_zero() {
                self.report(&failure, "")?;
                return Err(WorkerError::NotSaved(failure.not_saved.to_string()));
            }
            let pause = backoff.min(left);
            self.report(&failure, &format!("; retrying in {:.0} s", pause.as_secs_f64().ceil()))?;
            self.pause(pause)?;
            failure.save.map_or(Ok(()), |save| self.spawn(save))?;
            backoff = MAX_BACKOFF.min(backoff * 2);
        }
        Ok(())
    }

    /// Reports a failed save to the coordinator, and what is done about it; a commit that failed is
    /// known there.
    fn report(&self, failure: &Failure, remedy: &str) -> Result<()> {
        let Failure { not_saved, is_known, .. } = failure;
        let NotSaved { stage, step, reason } = not_saved;
        tracing::warn!("{not_saved}{remedy}");
        if *is_known {
            return Ok(());
        }
        let reason = format!("{reason}{remedy}");
        self.session.send(WorkerEvent::NotSaved { stage: stage.clone(), step: *step, reason })
    }

    /// # Errors
    /// [`WorkerError::GenerationOver`] as soon as the generation is.
    fn pause(&self, backoff: Duration) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < backoff {
            if self.session.generation_is_over() {
                return Err(WorkerError::GenerationOver);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits for the save that is under way to be committed, or to fail.
    fn wait(&mut self) -> Result<Result<(), Failure>> {
        Ok(self.ended(Wait::UntilEnded)?.unwrap_or(Ok(())))
    }

    /// How the save that was under way ended, also if there was none; `None`: it has not ended yet.
    fn ended(&mut self, wait: Wait) -> Result<Option<Result<(), Failure>>> {
        let Some(UnderWay { stage, step, progress }) = self.under_way.take() else {
            return Ok(Some(Ok(())));
        };
        let attempt = match progress {
            Progress::Writing(thread) if wait == Wait::No && !thread.is_finished() => {
                self.under_way =
                    Some(UnderWay { stage, step, progress: Progress::Writing(thread) });
                return Ok(None);
            }
            Progress::Writing(thread) => thread.join().unwrap_or_else(|_| Attempt {
                save: None,
                outcome: Err(anyhow!("the thread that wrote it panicked")),
            }),
            Progress::Written(attempt) => *attempt,
        };
        if let Err(error) = attempt.outcome {
            let not_saved = NotSaved { stage, step, reason: format!("{error:#}") };
            return Ok(Some(Err(Failure { not_saved, is_known: false, save: attempt.save })));
        }
        let answer = match wait {
            Wait::UntilEnded => Some(self.session.committed()?),
            Wait::No => self.session.try_committed()?,
        };
        match answer {
            Some(Ok(_)) => {
                self.failures = 0;
                Ok(Some(Ok(())))
            }
            Some(Err(reason)) => {
                let not_saved = NotSaved { stage, step, reason };
                Ok(Some(Err(Failure { not_saved, is_known: true, save: attempt.save })))
            }
            None => {
                self.under_way =
                    Some(UnderWay { stage, step, progress: Progress::Written(Box::new(attempt)) });
                Ok(None)
            }
        }
    }

    fn give_up(&mut self, not_saved: NotSaved) -> Result<()> {
        self.failures += 1;
        if self.failures == MAX_FAILURES {
            return Err(WorkerError::NotSaved(format!(
                "{MAX_FAILURES} saves in a row failed: {not_saved}"
            )));
        }
        tracing::warn!("{not_saved}; training continues");
        Ok(())
    }

    /// Lets what is under way be written and reported, since the group is lost and the coordinator
    /// waits for it.
    pub(crate) fn leave(&mut self) {
        if let Some(UnderWay { progress: Progress::Writing(thread), .. }) = self.under_way.take() {
            _ = thread.join();
        }
    }
}

/// Writes the files, and reports them to the coordinator, which commits them.
fn write(save: &Save, events: &mpsc::Sender<WorkerEvent>) -> anyhow::Result<()> {
    let Save { place, files, record, copied, reported } = save;
    copied.as_ref().map_or(Ok(()), DeviceEvent::wait)?;
    let named: Vec<(&str, &StateDict)> =
        files.iter().map(|(name, tensors)| (*name, tensors)).collect();
    let unfinished =
        Unfinished { stage: &reported.stage, step: reported.step, generation: reported.generation };
    let written = checkpoint::write(place.as_ref(), unfinished, &named, record)?;
    let reported =
        CheckpointWritten { folder: written.folder, files: written.files, ..reported.clone() };
    events
        .blocking_send(WorkerEvent::Checkpoint(reported))
        .context("the session with the coordinator has ended")
}

/// Until when a save that first failed then is retried.
fn retry_deadline(first_failure: Instant, stop_deadline: Option<Instant>) -> Instant {
    match stop_deadline {
        Some(deadline) => deadline.min(first_failure + MAX_RETRY_TIMEOUT),
        None => first_failure + RETRY_TIMEOUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_end_after_a_minute_or_with_the_grace_period() {
        let now = Instant::now();
        let after = |seconds: u64| now + Duration::from_secs(seconds);
        assert_eq!(retry_deadline(now, None), after(60));
        assert_eq!(retry_deadline(now, Some(after(5))), after(5));
        assert_eq!(retry_deadline(now, Some(after(120))), after(120));
        assert_eq!(retry_deadline(now, Some(after(3600))), after(240));
    }
}
