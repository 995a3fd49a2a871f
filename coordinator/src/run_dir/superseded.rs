//! What a run no longer needs when a stage that was complete is to make more steps: everything of
//! the stages after it was made from its former end. It is moved aside into `superseded/N`, never
//! deleted. A crash at any point leaves a run that the next resume brings to the same state.

use crate::exit::{EXIT_IO, Fatal};
use crate::run_dir::ledger::{Ledger, read_steps};
use crate::run_dir::{sync_folder, write_durably};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use thanos_formats::{CHECKPOINTS, RESULTS_JSON, STEPS_JSONL};
use thanos_proto::CheckpointRef;

/// Folders of a run directory that have a folder for each stage.
const OF_STAGES: [&str; 2] = [CHECKPOINTS, "tensorboard"];
const LATEST: &str = "LATEST";

/// Moves aside what the stages `later` have, and cuts the ledger back to `resume`. `complete` are
/// the stages before it. Returns where it is now.
///
/// # Errors
/// 74, naming what cannot be moved.
pub(crate) fn move_aside(
    run_dir: &Path,
    complete: &[CheckpointRef],
    resume: &CheckpointRef,
    later: &[&str],
) -> Result<PathBuf, Fatal> {
    let cannot = |error: io::Error| {
        let run_dir = run_dir.display();
        Fatal::new(
            EXIT_IO,
            format!("cannot move superseded files to {run_dir}/superseded: {error}"),
        )
    };
    let aside = new_folder(&run_dir.join("superseded")).map_err(cannot)?;
    copy(run_dir, &aside, STEPS_JSONL)
        .and_then(|()| copy(run_dir, &aside, RESULTS_JSON))
        .map_err(cannot)?;
    for folder in OF_STAGES {
        // The last stage first: what is left is always a beginning of the run.
        for stage in later.iter().rev() {
            rename(&run_dir.join(folder), &aside.join(folder), stage).map_err(cannot)?;
        }
    }
    write_durably(&run_dir.join(LATEST), format!("{}\n", resume.folder).as_bytes())?;
    match fs::remove_file(run_dir.join(RESULTS_JSON)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    let cut = Ledger::open(run_dir)?.cut(|line| {
        line.stage == resume.stage && line.step < resume.step
            || complete.iter().any(|complete| complete.stage == line.stage)
    });
    cut.map_err(cannot)?;
    Ok(aside)
}

/// The first `parent/N` that is free.
fn new_folder(parent: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(parent)?;
    let mut number = 1;
    loop {
        let folder = parent.join(number.to_string());
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => number += 1,
            made => {
                made?;
                sync_folder(parent)?;
                return Ok(folder);
            }
        }
    }
}

fn copy(from: &Path, to: &Path, name: &str) -> io::Result<()> {
    match fs::copy(from.join(name), to.join(name)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        copied => copied?,
    };
    File::open(to.join(name))?.sync_all()?;
    sync_folder(to)
}

fn rename(from: &Path, to: &Path, name: &str) -> io::Result<()> {
    if !from.join(name).exists() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    fs::rename(from.join(name), to.join(name))?;
    sync_folder(to)?;
    sync_folder(from)
}

/// Steps that the ledger has of a stage.
///
/// # Errors
/// As of [`read_steps`].
pub(crate) fn steps_made(run_dir: &Path, stage: &str) -> Result<u64, Fatal> {
    let steps = read_steps(run_dir)?;
    Ok(steps.iter().filter(|line| line.stage == stage).map(|line| line.step + 1).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_step;
    use thanos_proto::StepDone;

    fn step(stage: &str, step: u64) -> StepDone {
        test_step(stage, step, 1)
    }

    #[test]
    fn later_stages_are_moved_and_the_ledger_ends_where_the_run_continues() {
        let folder = tempfile::tempdir().expect("a folder");
        let run_dir = folder.path();
        let mut ledger = Ledger::open(run_dir).expect("new");
        for (stage, steps) in [("a", 2), ("b", 3), ("c", 1)] {
            (0..steps).for_each(|number| ledger.step(&step(stage, number)).expect("written"));
            let checkpoint = run_dir.join(format!("checkpoints/{stage}/step-{steps:08}"));
            fs::create_dir_all(&checkpoint).expect("made");
            fs::write(checkpoint.join("file"), stage).expect("written");
        }
        fs::write(run_dir.join(RESULTS_JSON), "{}").expect("written");
        let before = fs::read(run_dir.join(STEPS_JSONL)).expect("there");
        assert_eq!(
            ["a", "b", "c", "d"].map(|stage| steps_made(run_dir, stage).expect("whole")),
            [2, 3, 1, 0]
        );
        let reference = |stage: &str, step| {
            let folder = format!("checkpoints/{stage}/step-{step:08}");
            CheckpointRef { stage: stage.into(), folder, manifest_sha256: String::new(), step }
        };
        for number in ["1", "2"] {
            let aside = move_aside(run_dir, &[reference("a", 2)], &reference("b", 3), &["c"])
                .expect("moved");
            assert_eq!(
                aside,
                run_dir.join("superseded").join(number),
                "a second time is safe, too"
            );
        }
        let kept =
            read_steps(run_dir).expect("whole").into_iter().map(|line| (line.stage, line.step));
        let expected = [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]
            .map(|(stage, step)| (stage.to_owned(), step));
        assert_eq!(kept.collect::<Vec<_>>(), expected);
        let aside = run_dir.join("superseded/1");
        assert_eq!(fs::read(aside.join(STEPS_JSONL)).expect("copied"), before);
        assert_eq!(
            fs::read_to_string(aside.join("checkpoints/c/step-00000001/file")).expect("moved"),
            "c"
        );
        assert!(run_dir.join("checkpoints/b").is_dir() && !run_dir.join("checkpoints/c").exists());
        assert!(aside.join(RESULTS_JSON).is_file() && !run_dir.join(RESULTS_JSON).exists());
        assert_eq!(
            fs::read_to_string(run_dir.join(LATEST)).expect("there"),
            "checkpoints/b/step-00000003\n"
        );
    }
}
