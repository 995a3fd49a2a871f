//! The feed of a stage: which images come next, and their views, made ahead by threads of their own
//! so that a step does not wait. What a view is depends on its key alone, so neither the number of
//! threads nor of ranks changes it. It knows no model and no loss.

use crate::data::{Data, ViewMaker};
use anyhow::{Context, Result};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tch::Tensor;
use thanos_configs::{EpochOrder, Position, rank_slice, stage_steps};

/// Batches that each thread may be ahead of the step.
const MAX_AHEAD: usize = 2;

/// One global batch, as every rank sees it: sample ids, and the part of them that is this rank's.
pub(crate) struct Batch {
    pub(crate) samples: Vec<u64>,
    pub(crate) own: Range<usize>,
    /// Views of this rank's images: [b, views, C, S, S]. Without any where the stage asks for none.
    pub(crate) images: Tensor,
    pub(crate) at: Position,
}

impl Batch {
    /// Ids of this rank's samples, [b].
    pub(crate) fn own(&self) -> &[u64] {
        &self.samples[self.own.clone()]
    }
}

/// Which samples each step of a stage takes, and which of them are this rank's: a function of the
/// step.
#[derive(Clone, Debug)]
pub(crate) struct SampleSchedule {
    /// Ids of the training images.
    pub(crate) samples: Vec<u64>,
    pub(crate) seed: u64,
    pub(crate) batch_size: u64,
    pub(crate) drop_last: bool,
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
}

impl SampleSchedule {
    fn order(&self, epoch: u64) -> EpochOrder {
        EpochOrder::new(&self.samples, self.seed, epoch, self.batch_size, self.drop_last)
    }

    pub(crate) fn steps_per_epoch(&self) -> u64 {
        self.order(0).steps()
    }

    /// The steps of `range`: where each is, its global batch, and this rank's part.
    fn steps(self, range: Range<u64>) -> impl Iterator<Item = (Position, Vec<u64>, Range<usize>)> {
        let (rank, world_size) = (self.rank, self.world_size);
        stage_steps(range, move |epoch| self.order(epoch)).map(move |(at, samples)| {
            let own = rank_slice(samples.len(), rank, world_size);
            (at, samples, own)
        })
    }
}

/// The batches of a stage, one after the other.
pub(crate) struct BatchLoader<'a> {
    data: &'a Data,
    views: u64,
    steps: Box<dyn Iterator<Item = (Position, Vec<u64>, Range<usize>)>>,
    /// One a thread, each with its share of every batch; empty where views are made in the step
    /// itself.
    ahead: Vec<Receiver<Result<Vec<f32>>>>,
    /// The next batch, where it is made already.
    prepared: Option<Batch>,
    /// How long steps have waited for their images.
    pub(crate) waited: Duration,
}

impl<'a> BatchLoader<'a> {
    /// The batches of these steps of a schedule, with so many views of each training image. The
    /// threads end with the feed, or with its last batch.
    pub(crate) fn new(
        data: &'a Data,
        schedule: &SampleSchedule,
        steps: Range<u64>,
        views: u64,
    ) -> Result<Self> {
        let threads = if views == 0 || data.makes_views_on_device() { 0 } else { data.threads() };
        let mut ahead = Vec::new();
        for part in 0..threads {
            let (sender, receiver) = sync_channel(MAX_AHEAD);
            let steps = schedule.clone().steps(steps.clone());
            let maker = data.view_maker();
            let body = move || make_ahead(&maker, steps, ((part, threads), views), &sender);
            thread::Builder::new()
                .name(format!("views-{part}"))
                .spawn(body)
                .context("a thread for views")?;
            ahead.push(receiver);
        }
        let steps = Box::new(schedule.clone().steps(steps));
        Ok(Self { data, views, steps, ahead, prepared: None, waited: Duration::ZERO })
    }

    /// Has a GPU make the next batch, while it computes the last one anyway. On the CPU threads do
    /// that.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        if self.prepared.is_none() && self.views > 0 && self.data.makes_views_on_device() {
            self.prepared = self.make()?;
        }
        Ok(())
    }

    /// The next batch; `None` after the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Batch>> {
        match self.prepared.take() {
            Some(batch) => Ok(Some(batch)),
            None => self.make(),
        }
    }

    fn make(&mut self) -> Result<Option<Batch>> {
        let Some((at, samples, own)) = self.steps.next() else { return Ok(None) };
        let asked = Instant::now();
        let ids = &samples[own.clone()];
        let images = if self.ahead.is_empty() {
            self.data.views(&self.data.train, ids, at.epoch, self.views)?
        } else {
            let mut floats = Vec::new();
            for part in &self.ahead {
                floats.extend(part.recv().context("a thread that makes views has ended")??);
            }
            self.data.tensor(&floats, &[ids.len() as i64, self.views as i64])
        };
        self.waited += asked.elapsed();
        Ok(Some(Batch { samples, own, images, at }))
    }
}

/// A thread's life: its share of the views of every batch, until the last one, or until the
/// receiver is dropped.
fn make_ahead(
    maker: &ViewMaker,
    steps: impl Iterator<Item = (Position, Vec<u64>, Range<usize>)>,
    ((part, parts), views): ((usize, usize), u64),
    sender: &SyncSender<Result<Vec<f32>>>,
) {
    for (at, samples, own) in steps {
        let own = &samples[own];
        let ids = &own[rank_slice(own.len(), part, parts)];
        if sender.send(maker.views(ids, at.epoch, views)).is_err() {
            return;
        }
    }
}
