//! `--launcher`: which program starts the workers of a run, and in what launchers differ as
//! commands. How each starts a worker is in `workers`.

use super::size::Size;
use crate::exit::{EXIT_STOPPED, EXIT_USAGE, Fatal};
use crate::launch::status_listener::StatusListener;
use crate::launch::supervisor::supervise;
use crate::run::CollectivesChoice;
use crate::workers::devices::{Devices, Request, on_nodes, on_this_machine};
use crate::workers::slurm::{Allocation, Checkpointed, SlurmNodes, requeue};
use crate::workers::{LaunchTarget, ThisMachine};
use anyhow::Result;
use clap::ValueEnum;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thanos_formats::StartedWith;
use thanos_transport::{DeviceChoice, GpuFacts};

/// Workers of this machine must not outlive their supervisor by five seconds; others wait for a
/// restarted coordinator.
pub(super) const LOCAL_LEASE: Duration = Duration::from_secs(4);
const FOREIGN_LEASE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LauncherName {
    /// This program, on this machine
    Local,
    /// This program, on the nodes of the Slurm allocation that it runs in
    Srun,
    /// Not this program: the coordinator waits for workers that are started separately
    None,
}

/// On what the workers train, as typed or as the run to resume was started.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceOptions {
    pub(super) device: DeviceChoice,
    pub(super) collectives: CollectivesChoice,
}

impl LauncherName {
    /// As typed, else as the run to resume was started.
    ///
    /// # Errors
    /// 64 if `forced`, the launcher of `serve`, is not the typed one.
    pub(super) fn choose(
        typed: Option<Self>,
        forced: Option<Self>,
        before: Option<&StartedWith>,
    ) -> Result<Self, Fatal> {
        if let (Some(typed), Some(forced)) = (typed, forced)
            && typed != forced
        {
            let message = "serve starts no workers: use `launch --launcher local` or `launch \
                --launcher srun`, or omit --launcher";
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        Ok(forced.or(typed).or(before.and_then(Self::of)).unwrap_or(Self::Local))
    }

    /// That of a run; `None`: this version does not know it.
    fn of(started_with: &StartedWith) -> Option<Self> {
        Self::from_str(&started_with.launcher, true).ok()
    }

    /// As it is typed.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// The command that starts a run with this launcher.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Local => "launch",
            Self::Srun => "launch --launcher srun",
            Self::None => "serve",
        }
    }

    /// How long workers keep their state without a coordinator, unless `--lease` says it.
    pub(super) fn lease(self) -> Duration {
        match self {
            Self::Local => LOCAL_LEASE,
            Self::Srun | Self::None => FOREIGN_LEASE,
        }
    }

    /// Whether a resume has as many workers as the run had before. All workers of many machines
    /// would be too many for one.
    pub(super) fn keeps_size_of(self, before: &StartedWith) -> bool {
        self != Self::Local || Self::of(before) != Some(Self::Srun)
    }

    /// What the workers are started in; `None`: on this machine, or separately.
    ///
    /// # Errors
    /// As [`Allocation::of_this_job`].
    pub(super) fn allocation(self) -> Result<Option<Allocation>, Fatal> {
        match self {
            Self::Srun => Allocation::of_this_job().map(Some),
            Self::Local | Self::None => Ok(None),
        }
    }

    /// Runs the coordinator as a process that is restarted when it is killed, and returns its exit
    /// code; `None`: this process is the coordinator.
    pub(super) fn supervise(
        self,
        run_dir: &Path,
        listener: &TcpListener,
        status: Option<&StatusListener>,
        max_requeues: u32,
    ) -> Result<Option<u8>> {
        match self {
            Self::None => Ok(None),
            Self::Local => supervise(run_dir, listener, status).map(Some),
            Self::Srun => {
                let before = Checkpointed::of(run_dir);
                let code = supervise(run_dir, listener, status)?;
                if code == EXIT_STOPPED {
                    requeue(run_dir, &before, max_requeues);
                }
                Ok(Some(code))
            }
        }
    }

    /// What the workers train on, checked against this machine; `None`: this program starts none.
    ///
    /// # Errors
    /// 64 if the options contradict each other, 78 if this machine cannot satisfy them.
    pub(super) fn devices(
        self,
        size: Size,
        allocation: Option<&Allocation>,
        DeviceOptions { device, collectives }: DeviceOptions,
    ) -> Result<Option<Devices>, Fatal> {
        let request = |workers| Request { device, collectives, workers };
        let facts = GpuFacts::of_this_process;
        match self {
            Self::None => Ok(None),
            Self::Local => on_this_machine(request(size.max_workers), &facts()).map(Some),
            Self::Srun => {
                let facts = facts();
                let of_job = allocation.map_or(0, Allocation::gpus);
                let facts = GpuFacts { allocated: facts.allocated.max(of_job), ..facts };
                on_nodes(request(size.per_node), &facts).map(Some)
            }
        }
    }
    /// What starts this many workers, and the cores that each has.
    pub(super) fn target(
        self,
        workers: usize,
        allocation: Option<&Allocation>,
        srun_arguments: &[String],
    ) -> (Arc<dyn LaunchTarget>, usize) {
        match (self, allocation) {
            (Self::Srun, Some(allocation)) => {
                let (nodes, srun_arguments) = (allocation.nodes.clone(), srun_arguments.to_vec());
                (Arc::new(SlurmNodes { nodes, srun_arguments }), allocation.cores_per_worker())
            }
            (Self::Local | Self::Srun | Self::None, _) => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                (Arc::new(ThisMachine { workers }), (cores / workers).max(1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(launcher: &str) -> StartedWith {
        StartedWith {
            min_nodes: 2,
            max_nodes: 3,
            workers_per_node: 4,
            threads_per_worker: Some(1),
            launcher: launcher.into(),
            device: "auto".into(),
            collectives: "auto".into(),
        }
    }

    #[test]
    fn a_resume_is_launched_as_its_run_unless_typed_otherwise() {
        use LauncherName::{Local, None as External, Srun};
        let check = |typed, forced, recorded: Option<&str>, expected| {
            let recorded = recorded.map(before);
            let found = LauncherName::choose(typed, forced, recorded.as_ref());
            let found = found.map_err(|fatal| fatal.exit_code);
            assert_eq!(found, expected, "{typed:?} {forced:?} {recorded:?}");
        };
        check(None, None, None, Ok(Local));
        check(None, None, Some("none"), Ok(External));
        check(Some(Local), None, Some("none"), Ok(Local));
        check(None, Some(External), Some("local"), Ok(External));
        check(Some(External), Some(External), None, Ok(External));
        check(Some(Srun), Some(External), None, Err(EXIT_USAGE));
        check(None, None, Some("of a later version"), Ok(Local));
    }
}
