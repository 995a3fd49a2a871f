//! A worker's life: introduce itself, make the plan, open the packs, wait for a generation, train
//! its stages, leave. What a stage does is not known here.

use crate::backbone::Backbone;
use crate::batch_loader::SampleSchedule;
use crate::bench::bench;
use crate::checkpoint::{self, BEST, Committed};
use crate::data::{Data, LocalPack};
use crate::device::{self, Chosen};
use crate::error::{Result, WorkerError};
use crate::evaluate::Evaluator;
use crate::given_weights::GivenWeights;
use crate::metrics;
use crate::model::{Alone, BatchSum, Model};
use crate::pack_transfer::local_file;
use crate::panics::without_panic;
use crate::replica_state::ReplicaState;
use crate::run_files::{RunFiles, Unfinished};
use crate::save_schedule::SaveSchedule;
use crate::session::{Next, Session};
use crate::stage::Stage;
use crate::tensors::{StateDict, copy_into};
use crate::train::{Interrupted, ResumeFrom, StageContext, StageOutcome, StageSpec, train};
use crate::transfer::Transfer;
use anyhow::{Context, anyhow};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;
use thanos_c10d::{
    Address, ErrorKind, ProcessGroup, keep_freed_memory, set_tf32, use_gpu, use_interface,
};
use thanos_configs::{
    Architecture, DataSet, Plan, Precision, StagePlan, TransferPlan, ValidationMeasure, init_key,
    stage_key,
};
use thanos_formats::EXIT_CONFIG;
use thanos_proto::{
    BEFORE_STAGES, Begin, BenchRequest, CheckpointRef, CheckpointWritten, Collectives, Failed,
    GroupFailure, Held, Hello, PackRef, RankPhase, Rejoin, Welcome, WorkerEvent,
};
use thanos_transport::{
    DeviceChoice, address_towards, check_interface, interface_of, raise_descriptor_limit,
};

/// A worker's command line; everything else comes from the coordinator.
#[derive(Clone, Debug)]
pub struct Options {
    /// HOST:PORT.
    pub coordinator: String,
    /// Folder with the certificate of the run's authority and a join token; `None`: nothing is
    /// encrypted.
    pub credentials: Option<PathBuf>,
    /// Stable over restarts, unique in the run.
    pub worker_id: String,
    /// Place among the workers of its machine, from 0: which GPU is its own, if there are any.
    pub local_rank: usize,
    pub device: DeviceChoice,
    /// Threads of libtorch within an operation.
    pub threads: usize,
    /// What Gloo binds to; `None`: the address from which this machine reaches the coordinator.
    pub address: Option<Address>,
    /// Port of the worker's own metrics; `None`: they are not shown.
    pub status_port: Option<u16>,
    /// How long the coordinator may take to come up.
    pub wait: Duration,
    /// This machine's folder of packs; `None`: the coordinator's own files where they can be seen,
    /// else a cache.
    pub packs_dir: Option<PathBuf>,
}

/// How a worker's part of the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// On request, at a step that all ranks agreed on.
    Stopped,
}

/// Takes part in a run until it is over.
///
/// # Errors
/// After the coordinator has been notified.
pub fn work(options: &Options) -> Result<Outcome> {
    if let Some(address) = &options.address {
        check_address(address)?;
        // Before there are other threads.
        let interface = match address {
            Address::Interface(name) => Some(name.clone()),
            Address::Host(host) => host.parse().ok().and_then(interface_of),
        };
        interface.map_or(Ok(()), |name| use_interface(&name))?;
    }
    if let Err(error) = raise_descriptor_limit() {
        tracing::warn!("the limit of open file descriptors is unknown: {error}");
    }
    keep_freed_memory();
    tch::set_num_threads(i32::try_from(options.threads).map_err(anyhow::Error::from)?);
    tch::set_num_interop_threads(1);
    let Chosen { device, described } = device::choose(options.device, options.local_rank)?;
    let host =
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let (worker_id, version) = (options.worker_id.clone(), env!("CARGO_PKG_VERSION").into());
    let hello = Hello {
        worker_id,
        host,
        pid: std::process::id(),
        version,
        generation: 0,
        device: described,
    };
    let connected = Session::connect(
        (&options.coordinator, options.wait),
        options.credentials.as_deref(),
        hello,
    );
    let (session, welcome) = match connected {
        // There is no run yet that it could have left in disorder.
        Err(error @ WorkerError::StoppedWaiting) => {
            tracing::warn!("{error}");
            return Ok(Outcome::Stopped);
        }
        connected => connected?,
    };
    match without_panic(|| take_part(options, &session, &welcome, device)) {
        Ok(last_event) => {
            let stopped = matches!(last_event, WorkerEvent::Stopped { .. });
            session.leave(&last_event)?;
            Ok(if stopped { Outcome::Stopped } else { Outcome::Finished })
        }
        // The coordinator has refused this worker: there is nothing to report.
        Err(error @ WorkerError::Refused { .. }) => Err(error),
        Err(error) => {
            let (message, exit_code) = (error.to_string(), error.exit_code());
            let failed =
                WorkerEvent::Failed(Failed { phase: session.position(), message, exit_code });
            let unreported = |error: WorkerError| {
                error.context("and the coordinator could not be notified".into())
            };
            session.leave(&failed).map_err(unreported)?;
            Err(error)
        }
    }
}

/// Other ranks could not reach this worker at an address that is not this machine's: an error now
/// instead of their timeouts.
fn check_address(address: &Address) -> Result<()> {
    match address {
        Address::Host(host) => match TcpListener::bind((host.as_str(), 0)) {
            Ok(_) => Ok(()),
            Err(error) => Err(WorkerError::NotHere(format!(
                "--host {host} is not an address of this machine: {error}"
            ))),
        },
        Address::Interface(name) => check_interface(name).map_err(|names| {
            WorkerError::NotHere(format!(
                "--interface {name} is not on this machine, which has {names}"
            ))
        }),
    }
}

/// From the welcome to the last event, through as many generations as it takes.
fn take_part(
    options: &Options,
    session: &Session,
    welcome: &Welcome,
    device: Device,
) -> Result<WorkerEvent> {
    let plan = plan_of(welcome)?;
    session.set_timeouts(&plan.config().timeouts);
    if let Device::Cuda(gpu) = device {
        use_gpu(gpu)?;
    }
    set_tf32(plan.config().model.precision == Precision::Tf32)?;
    let own = address_towards(options.coordinator.as_str()).context("this worker's own address")?;
    let address = options.address.clone().unwrap_or_else(|| Address::Host(own.to_string()));
    if let Some(port) = options.status_port {
        let page = || metrics::page(&welcome.run_dir, &options.worker_id, device);
        let shown = session.show((own, port).into(), welcome.scrape_token_sha256.as_deref(), page);
        shown.map_err(|error| WorkerError::NotHere(format!("{error:#}")))?;
    }
    let packs = local_packs(options, session, &welcome.packs)?;
    let data = Data::open(&plan, &packs, device, options.threads).map_err(WorkerError::BadData)?;
    check_given_weights(&plan, &data.facts)?;
    let files = session.run_files(Path::new(&welcome.run_dir), &welcome.run_id);
    let mut worker = Worker {
        plan: &plan,
        data: &data,
        session,
        files,
        finished: BTreeMap::new(),
        memory: None,
        stage: 0,
        last_save: Cell::new(Instant::now()),
        bench: welcome.bench,
    };
    let collective = Duration::from_secs_f64(plan.config().timeouts.collective_seconds);
    let mut ready = WorkerEvent::Ready { config_digest: plan.resolved_digest().into() };
    loop {
        session.announce(&ready)?;
        let begin = match worker.wait() {
            // The coordinator may not have received it.
            Err(error) if error.ends_generation() => continue,
            begin => begin?,
        };
        session.enter_phase(BEFORE_STAGES, 0, RankPhase::Rendezvous);
        let outcome = join(&address, session, &begin, (device, collective))
            .and_then(|group| worker.train_stages(&begin, &Rc::new(group)));
        session.leave_group();
        let (reason, failure) = match outcome {
            Ok(GenerationOutcome::Over(last_event)) => return Ok(*last_event),
            Ok(GenerationOutcome::Regroup) => ("more workers have joined".into(), None),
            Err(WorkerError::Group(error)) => {
                (error.to_string(), Some(worker.failure(&begin, &error)))
            }
            Err(error) if error.ends_generation() => (error.to_string(), None),
            Err(error) => return Err(error),
        };
        tracing::warn!("left generation {}: {reason}", begin.generation);
        ready = WorkerEvent::Rejoin(worker.rejoin(&begin, failure));
    }
}

/// Weights that the user gives are needed by the last stages, hours from now: whether they fit is
/// known already.
fn check_given_weights(plan: &Plan, facts: &DataSet) -> Result<()> {
    for backbone in &plan.config().backbones {
        let Some(path) = plan.backbone_checkpoint(&backbone.name) else { continue };
        let sum: Rc<dyn BatchSum> = Rc::new(Alone);
        let model = Model::new(&plan.config().model, facts, false, Device::Cpu, &sum);
        load_given_weights((&backbone.name, path), &model, (plan, facts))?;
    }
    Ok(())
}

/// Loads weights that the user gives into a model.
fn load_given_weights(
    (name, path): (&str, &Path),
    model: &Model,
    (plan, facts): (&Plan, &DataSet),
) -> Result<()> {
    let architecture = Architecture::of(&plan.config().model, facts);
    let loaded =
        GivenWeights::read(path).and_then(|weights| weights.load_into(model, &architecture));
    loaded
        .with_context(|| format!("backbone {name} from {}", path.display()))
        .map_err(WorkerError::BadData)
}

/// The packs on this machine, brought here if need be.
fn local_packs(options: &Options, session: &Session, packs: &[PackRef]) -> Result<Vec<LocalPack>> {
    let local = |pack: &PackRef| -> Result<LocalPack> {
        let path = local_file(session, pack, options.packs_dir.as_deref())?;
        Ok(LocalPack { split: pack.split.clone(), path, fingerprint: pack.fingerprint.clone() })
    };
    packs.iter().map(local).collect()
}

/// The coordinator's configuration as this process understands it.
fn plan_of(welcome: &Welcome) -> Result<Plan> {
    let plan =
        Plan::from_resolved(&welcome.config, "the coordinator's configuration", &[]).map_err(
            |error| WorkerError::Refused { reason: error.to_string(), exit_code: EXIT_CONFIG },
        )?;
    if plan.resolved_digest() != welcome.config_digest {
        let (ours, theirs) = (plan.resolved_digest(), &welcome.config_digest);
        let reason =
            format!("the configuration's digest is {ours} here and {theirs} at the coordinator");
        return Err(WorkerError::Refused { reason, exit_code: EXIT_CONFIG });
    }
    Ok(plan)
}

/// `timeout` is for the peers in the rendezvous and in each collective: rank 0 may be writing a
/// checkpoint meanwhile. NCCL's start takes seconds: it has a phase of its own, in which no pace is
/// expected.
fn join(
    address: &Address,
    session: &Session,
    begin: &Begin,
    (device, timeout): (Device, Duration),
) -> Result<ProcessGroup> {
    let (rank, size) = (begin.rank as usize, begin.world_size as usize);
    let store = session.enter(begin.generation, size)?;
    tracing::info!(
        "generation {}: rank {rank} of {size} on {device:?}, {}",
        begin.generation,
        begin.collectives.label()
    );
    let group = match (begin.collectives, device) {
        (Collectives::Nccl, Device::Cuda(gpu)) => {
            ProcessGroup::nccl(store, rank, size, gpu, timeout)?
        }
        (Collectives::Nccl, other) => {
            return Err(
                anyhow!("the coordinator asks for NCCL, and this worker is on {other:?}").into()
            );
        }
        (Collectives::Gloo, _) => ProcessGroup::gloo(store, rank, size, address, timeout)?,
    };
    session.enter_phase(BEFORE_STAGES, 0, RankPhase::Connect);
    group.connect()?;
    session.connected(&group)?;
    Ok(group)
}

/// Where the first stage of a generation begins; others begin at their start.
#[derive(Clone, Copy)]
struct StageStart<'a> {
    resume: Option<&'a Committed>,
    /// The rank whose memory all take over.
    source: Option<usize>,
}

/// How a worker's part of a generation ended.
enum GenerationOutcome {
    /// Its part of the run is over, and this is the last message of its session.
    Over(Box<WorkerEvent>),
    /// All ranks leave after the same step, for a generation with more workers.
    Regroup,
}

/// A rank, over all its generations.
struct Worker<'a> {
    plan: &'a Plan,
    data: &'a Data,
    session: &'a Session,
    files: Arc<dyn RunFiles>,
    /// Best weights of the backbones that are complete, by name.
    finished: BTreeMap<String, StateDict>,
    /// What is held of the stage that a lost generation was in.
    memory: Option<Box<ReplicaState>>,
    /// Index of the stage in training.
    stage: usize,
    /// When the last save had been started.
    last_save: Cell<Instant>,
    /// Stages are measured, and not trained.
    bench: Option<BenchRequest>,
}

impl Worker<'_> {
    /// Waits for a generation; until then this worker may be asked to save what it holds.
    fn wait(&self) -> Result<Begin> {
        loop {
            match self.session.next()? {
                Next::Begin(begin) => return Ok(begin),
                Next::Save => self.session.announce(&self.save_memory())?,
            }
        }
    }

    /// Writes a checkpoint of the state that is held, for the coordinator to commit.
    fn save_memory(&self) -> WorkerEvent {
        let stage = self.plan.stages()[self.stage].name();
        let step = self.memory.as_ref().map_or(0, |memory| memory.step);
        self.session.enter_phase(stage, step, RankPhase::Save);
        match self.memory.as_deref().map(|memory| self.write_memory(stage, memory)) {
            Some(Ok(written)) => WorkerEvent::Checkpoint(written),
            Some(Err(error)) => {
                WorkerEvent::NotSaved { stage: stage.into(), step, reason: format!("{error:#}") }
            }
            None => WorkerEvent::NotSaved {
                stage: stage.into(),
                step,
                reason: "this worker holds no state".into(),
            },
        }
    }

    fn write_memory(
        &self,
        stage: &str,
        memory: &ReplicaState,
    ) -> anyhow::Result<CheckpointWritten> {
        let generation = self.session.generation();
        let unfinished = Unfinished { stage, step: memory.step, generation };
        let record = self.record(&self.plan.stages()[self.stage]);
        let written = checkpoint::write(self.files.as_ref(), unfinished, &memory.files(), &record)?;
        Ok(CheckpointWritten {
            stage: stage.into(),
            epoch: memory.epoch,
            step: memory.step,
            generation,
            world_size: memory.world_size,
            folder: written.folder,
            files: written.files,
            result: None,
            seconds: memory.seconds,
            best: memory.best.as_ref().map(|(best, _)| *best),
            post_step_done: memory.post_step_done,
        })
    }

    /// What this worker reports after it left the generation; `failure`: because of this error of
    /// its group.
    fn rejoin(&self, begin: &Begin, failure: Option<GroupFailure>) -> Rejoin {
        let held = |memory: &ReplicaState| Held {
            stage: self.stage as u32,
            step: memory.step,
            post_step_done: memory.post_step_done,
        };
        let memory = self.memory.as_deref();
        let recent = memory.map(|memory| memory.recent.to_vec()).unwrap_or_default();
        Rejoin { generation: begin.generation, held: memory.map(held), recent, failure }
    }

    /// An error of the group, at the step that was in flight, or that the generation was to begin
    /// with.
    fn failure(&self, begin: &Begin, error: &thanos_c10d::Error) -> GroupFailure {
        // Before the first stage of the generation was set up, it is the coordinator's.
        let stage = self.stage.max(begin.stage as usize);
        let held = self.memory.as_deref().filter(|_| stage == self.stage).map(|memory| memory.step);
        let resumed = begin.resume.as_ref().filter(|_| stage == begin.stage as usize);
        GroupFailure {
            stage: self.plan.stages()[stage].name().into(),
            step: held.or(resumed.map(|checkpoint| checkpoint.step)).unwrap_or(0),
            message: error.to_string(),
            peer_lost: error.kind == ErrorKind::PeerLost,
        }
    }

    /// What files of a stage's weights say of its network.
    fn record(&self, stage: &StagePlan) -> String {
        let backbones: &[String] = match stage {
            StagePlan::Backbone(_) => &[],
            StagePlan::Transfer(transfer) => &transfer.backbones,
        };
        let facts = &self.data.facts;
        Architecture::of(&self.plan.config().model, facts).record(stage.name(), facts, backbones)
    }

    fn train_stages(
        &mut self,
        begin: &Begin,
        group: &Rc<ProcessGroup>,
    ) -> Result<GenerationOutcome> {
        for checkpoint in &begin.complete {
            if !self.finished.contains_key(&checkpoint.stage) {
                let weights = self.open(checkpoint)?.tensors(BEST).map_err(WorkerError::BadData)?;
                self.finished.insert(checkpoint.stage.clone(), weights);
            }
        }
        if self.stage != begin.stage as usize {
            self.memory = None;
        }
        let resume = begin.resume.as_ref().map(|checkpoint| self.open(checkpoint)).transpose()?;
        for (index, stage) in self.plan.stages().iter().enumerate().skip(begin.stage as usize) {
            self.stage = index;
            let first = index == begin.stage as usize;
            let start = StageStart {
                resume: resume.as_ref().filter(|_| first),
                source: begin.source.filter(|_| first).map(|rank| rank as usize),
            };
            self.session.enter_phase(stage.name(), 0, RankPhase::SetUp);
            match self.train_stage(stage, begin.generation, group, start)? {
                StageOutcome::Complete(weights) => {
                    self.finished.insert(stage.name().into(), weights)
                }
                StageOutcome::Stopped { step } => {
                    let stopped = WorkerEvent::Stopped { stage: stage.name().into(), step };
                    return Ok(GenerationOutcome::Over(Box::new(stopped)));
                }
                StageOutcome::Regroup(memory) => {
                    self.memory = Some(memory);
                    return Ok(GenerationOutcome::Regroup);
                }
            };
            self.memory = None;
        }
        Ok(GenerationOutcome::Over(Box::new(WorkerEvent::Finished)))
    }

    fn open(&self, checkpoint: &CheckpointRef) -> Result<Committed> {
        Committed::open(&self.files, checkpoint).map_err(WorkerError::BadData)
    }

    fn train_stage(
        &mut self,
        plan: &StagePlan,
        generation: u64,
        group: &Rc<ProcessGroup>,
        start: StageStart<'_>,
    ) -> Result<StageOutcome> {
        let config = self.plan.config();
        let key = stage_key(plan.name());
        let spec = StageSpec {
            name: plan.name(),
            key,
            seed: config.seed,
            train: self.plan.training(plan),
            measure: ValidationMeasure::of(plan),
            record: self.record(plan).into(),
            schedule: SampleSchedule {
                samples: self.data.train_ids.clone(),
                seed: config.seed,
                batch_size: self.plan.training(plan).batch_size,
                drop_last: config.data.drop_last,
                rank: group.rank(),
                world_size: group.size(),
            },
            saves: SaveSchedule::new(&config.checkpoint, &self.last_save),
            checks: &config.checks,
        };
        let context = StageContext {
            data: self.data,
            group,
            session: self.session,
            generation,
            files: &self.files,
        };
        tch::manual_seed(init_key(config.seed, key) as i64);
        let evaluator =
            Evaluator { data: self.data, group: group.clone(), stop: self.session.stop_flag() };
        let mut stage: Box<dyn Stage + '_> = match plan {
            StagePlan::Backbone(backbone) => {
                Box::new(Backbone::new(self.plan, &backbone.objective, evaluator))
            }
            StagePlan::Transfer(transfer) => match self.transfer(transfer, evaluator) {
                // What it has been trained so far is in a checkpoint, or lost.
                Err(WorkerError::StopRequested) => {
                    return Ok(StageOutcome::Stopped {
                        step: start.resume.map_or(0, Committed::step),
                    });
                }
                stage => stage?,
            },
        };
        if let Some(request) = self.bench {
            return bench(stage.as_mut(), &spec, &context, request);
        }
        let from = match (start.source, start.resume) {
            (Some(source), _) => ResumeFrom::ReplicaState { own: self.memory.as_deref(), source },
            (None, Some(checkpoint)) => ResumeFrom::Checkpoint(checkpoint),
            (None, None) => ResumeFrom::Start,
        };
        let ending = train(stage.as_mut(), &spec, &context, &from);
        drop(stage);
        ending.map_err(|Interrupted { error, memory }| {
            self.memory = memory.or_else(|| self.memory.take());
            error
        })
    }

    fn transfer<'a>(
        &'a self,
        transfer: &TransferPlan,
        evaluator: Evaluator<'a>,
    ) -> Result<Box<dyn Stage + 'a>> {
        let frozen = |name: &String| self.frozen(name, &evaluator.group);
        let backbones = transfer.backbones.iter().map(frozen).collect::<Result<Vec<_>>>()?;
        // Making the backbones drew from the generator: the head's weights must not depend on how
        // many there are.
        let config = self.plan.config();
        tch::manual_seed(init_key(config.seed, stage_key(&transfer.name)) as i64);
        Ok(Box::new(Transfer::new(config, backbones, evaluator)?))
    }

    /// A backbone with the weights of this run, or of the file that the user named.
    fn frozen(&self, name: &str, group: &Rc<ProcessGroup>) -> Result<Model> {
        let sum: Rc<dyn BatchSum> = group.clone();
        let model = Model::new(
            &self.plan.config().model,
            &self.data.facts,
            false,
            self.data.device(),
            &sum,
        );
        let state = model.state();
        match (self.finished.get(name), self.plan.backbone_checkpoint(name)) {
            (Some(weights), _) => _ = copy_into(&state, weights)?,
            (None, Some(path)) => {
                load_given_weights((name, path), &model, (self.plan, &self.data.facts))?
            }
            (None, None) => {
                return Err(anyhow!(
                    "the backbone `{name}` is neither trained yet nor given by a checkpoint"
                )
                .into());
            }
        };
        for tensor in state.values() {
            _ = tensor.set_requires_grad(false);
        }
        Ok(model)
    }
}
