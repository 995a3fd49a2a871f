//! What a launch needs before its first worker. Everything that can be refused is refused here, and
//! a run directory is made, or changed, last: a launch that was refused leaves none, and can be
//! typed again. A resume continues only with the data and the weights that the run has seen, known
//! by their content.

use crate::exit::{EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_UNREACHABLE, Fatal};
use crate::launch::given_weights::{read_given_weights, refuse_changed};
use crate::launch::{Launch, Starter};
use crate::run::Placement;
use crate::run_dir::checkpoints::{Checkpoints, Found};
use crate::run_dir::ledger::Ledger;
use crate::run_dir::superseded::{move_aside, steps_made};
use crate::run_dir::{Content, RunDir};
use crate::server::check_descriptors;
use crate::server::credentials::Credentials;
use crate::telemetry::progress::{Bar, report_packs};
use crate::terminal::Unit;
use anyhow::Result;
use serde_json::json;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use thanos_configs::{Change, Condition, Plan, StagePlan, Validation};
use thanos_data::{PackFile, Packs, TestImages};
use thanos_formats::{DataIdentity, RecordedChange, THREADS_OPTION};
use thanos_transport::check_interface;

/// A run that can start, or continue.
pub(crate) struct Prepared {
    pub(crate) run_dir: RunDir,
    pub(crate) packs: Packs,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) found: Found,
    /// `None`: nothing is encrypted.
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// Where the run is shown, if it is.
    pub(crate) status: Option<TcpListener>,
}

/// The data of a run: its packs, what they are known by, and the fine labels of the training
/// images, [N].
struct Data {
    packs: Packs,
    identity: DataIdentity,
    fine: Vec<i64>,
}

/// Checks everything that a launch needs, then makes its run directory, or opens that of the run to
/// continue with.
///
/// # Errors
/// A [`Fatal`] with the exit code; a new run's directory is not made then.
pub(crate) fn prepare(plan: &Plan, launch: &Launch) -> Result<Prepared> {
    check_descriptors(launch.workers)?;
    let status = launch.status.as_ref().map(|status| status.listener.try_clone()).transpose()?;
    if let Starter::This { target, interface: Some(name), .. } = &launch.starter
        && target.placement() == Placement::Local
    {
        check_interface(name).map_err(|names| {
            let message = format!("--interface {name} is not on this machine, which has {names}");
            Fatal::new(EXIT_UNREACHABLE, message)
        })?;
    }
    if launch.resume { resume(plan, launch, status) } else { start(plan, launch, status) }
}

fn start(plan: &Plan, launch: &Launch, status: Option<TcpListener>) -> Result<Prepared> {
    let Data { packs, identity: data, .. } = match &launch.bench {
        Some((_, packs)) => open(plan, packs.clone(), None)?,
        None => pack(plan, &launch.packs_dir)?,
    };
    let weights = read_given_weights(plan)?;
    let is_own =
        launch.credentials.as_ref().is_some_and(|folder| folder.starts_with(&launch.run_dir));
    let given = if is_own { None } else { open_credentials(launch)? };
    let content =
        Content { data, weights, started_with: launch.started_with.clone(), quick: launch.quick };
    let run_dir = RunDir::create(&launch.run_dir, plan, content)?;
    let checkpoints = checkpoints(plan, &run_dir, launch, None);
    // Those of a run that was here before would be taken for this one's.
    let stages: Vec<&str> = plan.stages().iter().map(StagePlan::name).collect();
    let found = checkpoints.find(&stages)?;
    refuse_without_any(&run_dir, &found)?;
    let credentials = if is_own { open_credentials(launch)? } else { given };
    run_dir.begin()?;
    Ok(Prepared { run_dir, packs, checkpoints, found, credentials, status })
}

fn resume(plan: &Plan, launch: &Launch, status: Option<TcpListener>) -> Result<Prepared> {
    let (mut run_dir, changes) = RunDir::open(&launch.run_dir, plan)?;
    let data = data_of_run(plan, launch, &run_dir, &changes)?;
    let recorded = run_dir.identity();
    let weights = match launch.again {
        // Its workers wait: what was read when it started is not read again.
        true => recorded.weights.clone(),
        false => read_given_weights(plan)?,
    };
    refuse_changed(plan, &recorded.weights, &weights)?;
    let images = plan.split(&data.fine).train.len() as u64;
    refuse_shorter(plan, &changes, run_dir.path(), images)?;
    let checkpoints = checkpoints(plan, &run_dir, launch, Some((&data.identity, images)));
    let stages: Vec<&str> = plan.stages().iter().map(StagePlan::name).collect();
    let found = checkpoints.find(&stages)?;
    for warning in &found.warnings {
        tracing::warn!("{warning}");
    }
    refuse_without_any(&run_dir, &found)?;
    let credentials = open_credentials(launch)?;
    let Data { packs, identity: data, .. } = data;
    let content =
        Content { data, weights, started_with: launch.started_with.clone(), quick: launch.quick };
    let changes = run_dir.reconfigure(plan, changes, content)?;
    changes.iter().filter_map(warning_of_threads).for_each(|warning| tracing::warn!("{warning}"));
    let aside = found.resume.as_ref().filter(|_| found.reopened).map(|resume| {
        let later = &stages[found.complete.len() + 1..];
        move_aside(run_dir.path(), &found.complete, resume, later)
    });
    let aside = aside.transpose()?;
    if !changes.is_empty() || aside.is_some() {
        let reopened = found.resume.as_ref().filter(|_| found.reopened).map(|resume| &resume.stage);
        let fields = json!({"changes": changes, "superseded": aside, "reopened": reopened});
        Ledger::open(run_dir.path())?
            .event("reconfigured", &fields)
            .map_err(|error| Fatal::new(EXIT_IO, error.to_string()))?;
    }
    Ok(Prepared { run_dir, packs, checkpoints, found, credentials, status })
}

/// What a resume with another number of threads means for the run.
fn warning_of_threads(change: &RecordedChange) -> Option<String> {
    let (old, new) = (change.old.as_u64()?, change.new.as_u64()?);
    (change.key == THREADS_OPTION).then(|| {
        format!(
            "each worker now has {new} threads instead of {old}: sums differ in their last bits, \
             and the run is no longer bit-identical to an uninterrupted one; pass {THREADS_OPTION} \
             {old} to keep it so"
        )
    })
}

fn open_credentials(launch: &Launch) -> Result<Option<Arc<Credentials>>, Fatal> {
    let shared = launch.starter.placement() == Placement::External;
    let opened = launch.credentials.as_deref().map(|folder| {
        let opened = Credentials::open_or_make(folder, shared)?;
        match &launch.scrape_token_file {
            Some(file) => opened.with_scrape_token(file),
            None => Ok(opened),
        }
    });
    Ok(opened.transpose()?.map(Arc::new))
}

fn checkpoints(
    plan: &Plan,
    run_dir: &RunDir,
    launch: &Launch,
    resumed: Option<(&DataIdentity, u64)>,
) -> Checkpoints {
    let identity = run_dir.identity();
    let steps =
        |stage: &StagePlan| Some((stage.name().to_owned(), plan.total_steps(stage, resumed?.1)));
    Checkpoints {
        run_dir: launch.run_dir.clone(),
        run: identity.id.clone(),
        // As the run began: an earlier version made other digests.
        config_digest: identity.config_digest.clone(),
        data: resumed.map(|(data, _)| data).or(identity.data.as_ref()).cloned(),
        keep_last: plan.config().checkpoint.keep_last,
        total_steps: plan.stages().iter().filter_map(steps).collect(),
    }
}

/// A run needs test images for the rows of its table, and if they select the best epoch.
fn test_images(plan: &Plan) -> TestImages {
    let config = plan.config();
    match config.rows.is_empty() && config.data.validation == Validation::HeldOut {
        true => TestImages::Optional,
        false => TestImages::Required,
    }
}

/// Packs the plan's data, unless that was done before.
fn pack(plan: &Plan, packs_dir: &Path) -> Result<Data, Fatal> {
    let config = &plan.config().data;
    // Before they are read: what changes meanwhile is another stamp.
    let raw_stamp = thanos_data::raw_stamp(config)?;
    let bar = Bar::new(Unit::Images);
    let packs = thanos_data::pack(config, packs_dir, test_images(plan), &|split, done, total| {
        bar.at(split, done, total)
    })?;
    bar.finish();
    report_packs(config.kind, &packs);
    open(plan, packs, raw_stamp)
}

fn open(plan: &Plan, packs: Packs, raw_stamp: Option<String>) -> Result<Data, Fatal> {
    let fine = thanos_data::fine_labels(&packs.train.path)?;
    plan.check_images(&fine).map_err(|rule| Fatal::new(EXIT_DATA, rule.to_string()))?;
    let (train, test) = (packs.train.fingerprint.clone(), packs.test.fingerprint.clone());
    Ok(Data { packs, identity: DataIdentity { train, test, raw_stamp }, fine })
}

/// The data of a run to continue with. Raw files are read only if they seem to have changed, or the
/// packs are not there.
fn data_of_run(
    plan: &Plan,
    launch: &Launch,
    run_dir: &RunDir,
    changes: &[Change],
) -> Result<Data, Fatal> {
    let Some(recorded) = &run_dir.identity().data else { return pack(plan, &launch.packs_dir) };
    let config = &plan.config().data;
    let elsewhere = changes.iter().any(|change| change.condition == Some(Condition::SameData));
    let is_same = || match thanos_data::raw_stamp(config) {
        Ok(stamp) => stamp == recorded.raw_stamp,
        Err(error) => {
            tracing::warn!("the raw data cannot be read, using the packs of this run: {error}");
            true
        }
    };
    let data = if !elsewhere && (launch.again || is_same()) {
        match thanos_data::find_packs(config, &launch.packs_dir, [&recorded.train, &recorded.test])
        {
            Some(packs) => open(plan, packs, recorded.raw_stamp.clone())?,
            None => pack(plan, &launch.packs_dir)?,
        }
    } else {
        pack(plan, &launch.packs_dir)?
    };
    refuse_other_data(recorded, &data.packs, &data.identity)?;
    Ok(data)
}

/// The packs that a run was trained on, for commands that read its ledger.
///
/// # Errors
/// 65 if they are not there and the raw data is missing, or has changed.
pub(crate) fn packs_of_run(
    plan: &Plan,
    packs_dir: &Path,
    recorded: Option<&DataIdentity>,
) -> Result<Packs, Fatal> {
    let config = &plan.config().data;
    let prints = recorded.map(|recorded| [recorded.train.as_str(), recorded.test.as_str()]);
    if let Some(packs) =
        prints.and_then(|prints| thanos_data::find_packs(config, packs_dir, prints))
    {
        return Ok(packs);
    }
    let packs = thanos_data::pack(config, packs_dir, test_images(plan), &|_, _, _| {})?;
    if let Some(recorded) = recorded {
        let (train, test) = (packs.train.fingerprint.clone(), packs.test.fingerprint.clone());
        refuse_other_data(recorded, &packs, &DataIdentity { train, test, raw_stamp: None })?;
    }
    Ok(packs)
}

fn refuse_other_data(
    recorded: &DataIdentity,
    packs: &Packs,
    found: &DataIdentity,
) -> Result<(), Fatal> {
    let Some((split, expected, found)) = recorded.difference(found) else { return Ok(()) };
    let pack: &PackFile = if split == "train" { &packs.train } else { &packs.test };
    let message = format!(
        "the data has changed: the {split} pack {} has the fingerprint {found}, the run was \
         started with {expected}; set data.dir=DIR to the data that the run was started with, or \
         start a new run in another --run-dir",
        pack.path.display()
    );
    Err(Fatal::new(EXIT_DATA, message))
}

/// Steps that were made are not taken back. `images` are trained on.
fn refuse_shorter(
    plan: &Plan,
    changes: &[Change],
    run_dir: &Path,
    images: u64,
) -> Result<(), Fatal> {
    let is_length = |change: &&Change| change.condition == Some(Condition::NotShorterThanMade);
    for change in changes.iter().filter(is_length) {
        for stage in plan.stages() {
            let section = match stage {
                StagePlan::Backbone(_) => "train.",
                StagePlan::Transfer(_) => "transfer.",
            };
            let (made, allowed) =
                (steps_made(run_dir, stage.name())?, plan.total_steps(stage, images));
            if change.key.starts_with(section) && made > allowed {
                let (key, new, old, stage) = (&change.key, &change.new, &change.old, stage.name());
                let message = format!(
                    "{key}={new} allows {allowed} steps per stage, but stage {stage} has already \
                     made {made}; keep {old} or raise it, or start a new run in another --run-dir"
                );
                return Err(Fatal::new(EXIT_CONFIG, message));
            }
        }
    }
    Ok(())
}

/// A run that had checkpoints and has none that is good must not silently start over.
fn refuse_without_any(run_dir: &RunDir, found: &Found) -> Result<(), Fatal> {
    if found.warnings.is_empty() || found.resume.is_some() || !found.complete.is_empty() {
        return Ok(());
    }
    let message = format!(
        "no checkpoint of {} is valid:\n  {}\nto start over, choose another --run-dir",
        run_dir.path().display(),
        found.warnings.join("\n  ")
    );
    Err(Fatal::new(EXIT_DATA, message))
}
