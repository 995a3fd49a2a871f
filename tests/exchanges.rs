//! What a contrastive loss is exchanged over in tests: nothing, or ranks that are threads and whose
//! sums can be made wrong on purpose, or ranks of a Gloo group.

use anyhow::Result;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;
use tch::Tensor;
use thanos_c10d::{Address, MemoryStore, ProcessGroup};
use thanos_worker::Exchange;

/// A rank that has no peers. It copies, as a group does.
pub(crate) struct SingleRank;

impl Exchange for SingleRank {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.copy())
    }

    fn reduce_scatter(&self, input: &Tensor) -> Result<Tensor> {
        Ok(input.copy())
    }
}

/// How the ranks of a test sum the candidates' gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Summing {
    Right,
    /// Divided by the number of ranks, as data-parallel wrappers do.
    Mean,
    /// What the other ranks' anchors say about this rank's candidates is lost, as by a gather
    /// without backward.
    OwnShare,
}

/// What connects the ranks of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ranks {
    Channels(Summing),
    /// The groups of one process share libtorch's flight recorder, which is not made for it and
    /// must be off.
    Gloo,
}

impl Ranks {
    /// What `work` returns on each of `size` ranks, in rank order. A rank that panics takes the
    /// others along.
    pub(crate) fn run<T: Send>(
        self,
        size: usize,
        work: impl Fn(&dyn Exchange) -> T + Sync,
    ) -> Vec<T> {
        match self {
            Ranks::Channels(summing) => in_threads(Seat::of_all(size, summing), |seat| work(&seat)),
            Ranks::Gloo => in_gloo_group(size, |group| work(group)),
        }
    }
}

/// What `work` returns on each rank of a Gloo group of `size` threads, in rank order.
pub(crate) fn in_gloo_group<T: Send>(
    size: usize,
    work: impl Fn(&ProcessGroup) -> T + Sync,
) -> Vec<T> {
    let store = Arc::new(MemoryStore::default());
    let join = |rank| {
        let address = Address::Host("127.0.0.1".into());
        ProcessGroup::gloo(store.clone(), rank, size, &address, Duration::from_secs(60))
            .expect("a group")
    };
    in_threads((0..size).collect(), |rank| work(&join(rank)))
}

fn in_threads<S: Send, T: Send>(seats: Vec<S>, work: impl Fn(S) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> =
            seats.into_iter().map(|seat| scope.spawn(move || work(seat))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank panicked")).collect()
    })
}

/// A rank with a channel to and from every rank, itself included.
struct Seat {
    rank: usize,
    to: Vec<Sender<Tensor>>,
    from: Vec<Receiver<Tensor>>,
    summing: Summing,
}

impl Seat {
    fn of_all(size: usize, summing: Summing) -> Vec<Self> {
        let mut seats: Vec<Self> = (0..size)
            .map(|rank| Self { rank, to: Vec::new(), from: Vec::new(), summing })
            .collect();
        for from in 0..size {
            for to in 0..size {
                let (sender, receiver) = channel();
                seats[from].to.push(sender);
                seats[to].from.push(receiver);
            }
        }
        seats
    }

    /// The input of every rank.
    fn meet(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        for to in &self.to {
            to.send(input.copy()).map_err(|_| anyhow::anyhow!("a rank is gone"))?;
        }
        self.from.iter().map(|from| Ok(from.recv()?)).collect()
    }
}

impl Exchange for Seat {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn all_gather(&self, input: &Tensor) -> Result<Tensor> {
        Ok(Tensor::cat(&self.meet(input)?, 0))
    }

    fn reduce_scatter(&self, input: &Tensor) -> Result<Tensor> {
        let own = |input: &Tensor| input.chunk(self.size() as i64, 0).swap_remove(self.rank);
        let sum = self
            .meet(input)?
            .iter()
            .map(own)
            .reduce(|sum, part| sum + part)
            .expect("a rank is its own peer");
        Ok(match self.summing {
            Summing::Right => sum,
            Summing::Mean => sum / self.size() as f64,
            Summing::OwnShare => own(input),
        })
    }
}
