//! Saves that do not make a step wait: a copy of the state, then a thread that writes it and tells the coordinator, who
//! commits it. One save is under way at most; a save that fails is given up, and training goes on, unless several fail
//! in a row. What is in a checkpoint is the caller's.

use crate::checkpoint::{self, NotSaved};
use crate::run_files::{RunFiles, Unfinished};
use crate::session::Session;
use crate::tensors::Named;
use anyhow::{Context, Result, anyhow};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use thanos_proto::{CheckpointWritten, WorkerEvent};

/// Saves in a row that may fail, on a full disk perhaps, before the run is ended.
const MOST_FAILURES: u32 = 3;

/// A checkpoint to be written.
pub(crate) struct Save {
    pub(crate) place: Arc<dyn RunFiles>,
    /// Names of files and their tensors, which nobody else changes.
    pub(crate) files: Vec<(&'static str, Named)>,
    /// What the coordinator is told; folder and files are filled in.
    pub(crate) told: CheckpointWritten,
}

pub(crate) struct Saver<'a> {
    session: &'a Session,
    under_way: Option<UnderWay>,
    failures: u32,
}

struct UnderWay {
    stage: String,
    step: u64,
    written: JoinHandle<Result<()>>,
}

impl<'a> Saver<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self { session, under_way: None, failures: 0 }
    }

    /// Starts a save, behind the one that is under way.
    ///
    /// # Errors
    /// If several saves in a row have failed; a single one is told and counted.
    pub(crate) fn start(&mut self, save: Save) -> Result<()> {
        if let Err(not_saved) = self.wait()? {
            self.give_up(not_saved)?;
        }
        let events = self.session.events();
        let (stage, step) = (save.told.stage.clone(), save.told.step);
        let body = move || {
            let Save { place, files, told } = save;
            let named: Vec<(&str, &Named)> = files.iter().map(|(name, tensors)| (*name, tensors)).collect();
            let unfinished = Unfinished { stage: &told.stage, step: told.step, generation: told.generation };
            let written = checkpoint::write(place.as_ref(), unfinished, &named)?;
            let told = CheckpointWritten { folder: written.folder, files: written.files, ..told };
            events.blocking_send(WorkerEvent::Checkpoint(told)).context("the session with the coordinator has ended")
        };
        let written = thread::Builder::new().name("save".into()).spawn(body).context("a thread for a save")?;
        self.under_way = Some(UnderWay { stage, step, written });
        Ok(())
    }

    /// Saves, and returns when it is committed.
    ///
    /// # Errors
    /// If it is not: whoever waits for it cannot go on.
    pub(crate) fn save(&mut self, save: Save) -> Result<()> {
        self.start(save)?;
        self.wait()?.map_err(anyhow::Error::from)
    }

    /// Waits for the save that is under way to be committed, or given up.
    fn wait(&mut self) -> Result<Result<(), NotSaved>> {
        let Some(UnderWay { stage, step, written }) = self.under_way.take() else { return Ok(Ok(())) };
        let not_saved = |reason: String| NotSaved { stage: stage.clone(), step, reason };
        match join(written) {
            Ok(()) => match self.session.committed()? {
                Ok(_) => {
                    self.failures = 0;
                    Ok(Ok(()))
                }
                Err(reason) => Ok(Err(not_saved(reason))),
            },
            Err(error) => {
                let reason = format!("{error:#}");
                self.session.send(WorkerEvent::NotSaved { stage: stage.clone(), step, reason: reason.clone() })?;
                Ok(Err(not_saved(reason)))
            }
        }
    }

    fn give_up(&mut self, not_saved: NotSaved) -> Result<()> {
        self.failures += 1;
        if self.failures == MOST_FAILURES {
            return Err(anyhow::Error::from(not_saved).context(format!("{MOST_FAILURES} saves in a row failed")));
        }
        tracing::warn!("{not_saved}; training goes on");
        Ok(())
    }

    /// Lets what is under way be written and told, since the group is lost and the coordinator waits for it.
    pub(crate) fn leave(&mut self) {
        if let Some(UnderWay { written, .. }) = self.under_way.take() {
            _ = join(written);
        }
    }
}

fn join(written: JoinHandle<Result<()>>) -> Result<()> {
    written.join().unwrap_or_else(|_| Err(anyhow!("the thread that wrote it panicked")))
}
