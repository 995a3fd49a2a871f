//! A job that is requeued when its run was stopped before its end: by the program, as the job
//! script stays a line. A job that comes no further, or was queued too often, ends instead: it
//! would take its turn for ever.

use super::{ask, job_id};
use crate::terminal;
use std::path::Path;

/// The newest checkpoint of a run, as its `LATEST` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpointed(Option<String>);

impl Checkpointed {
    /// As it is now.
    pub(crate) fn of(run_dir: &Path) -> Self {
        Self(std::fs::read_to_string(run_dir.join("LATEST")).ok())
    }
}

/// What becomes of a job whose run was stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Requeue,
    /// Ended, as this line says.
    End(String),
    /// It may not be requeued, or Slurm ends it or has queued it already.
    Leave,
}

/// Queues this job again, if it may be and Slurm has not done so: it has had fewer than
/// `max_requeues` restarts, and a checkpoint was committed since `before`.
pub(crate) fn requeue(run_dir: &Path, before: &Checkpointed, max_requeues: u32) {
    let Some(job) = job_id() else { return };
    // --all: its partition may be hidden from ordinary users.
    let description =
        ask("scontrol", &["--all", "--oneliner", "show", "job", &job]).unwrap_or_default();
    let has_progressed = *before != Checkpointed::of(run_dir);
    match decide(&description, has_progressed, max_requeues) {
        Decision::Leave => {}
        Decision::End(why) => terminal::line(&format!(
            "job {job} is not requeued: {why}; the run is unchanged, and another job can resume it \
             with --resume --run-dir {}",
            run_dir.display()
        )),
        Decision::Requeue => {
            terminal::line(&format!("job {job} is requeued"));
            if let Err(error) = ask("scontrol", &["requeue", &job]) {
                terminal::line(&format!("warning: {error}"));
            }
        }
    }
}

/// `job` is what `scontrol show job` prints.
fn decide(job: &str, has_progressed: bool, max_requeues: u32) -> Decision {
    let says = |field: &str| job.split_whitespace().any(|word| word == field);
    if !["JobState=RUNNING", "Requeue=1", "BatchFlag=1"].into_iter().all(says) {
        return Decision::Leave;
    }
    let restarts =
        job.split_whitespace().find_map(|word| word.strip_prefix("Restarts=")?.parse::<u32>().ok());
    match restarts.unwrap_or(0) {
        _ if !has_progressed => {
            Decision::End("no checkpoint was committed since it started".into())
        }
        restarts if restarts >= max_requeues => Decision::End(format!(
            "it was restarted {restarts} times, and --max-requeues is {max_requeues}"
        )),
        _ => Decision::Requeue,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_requeued_while_it_progresses_and_may_be() {
        let job = |fields: &str| format!("JobId=7 {fields} RunTime=00:00:10");
        let running = |restarts: u32| {
            job(&format!("JobState=RUNNING Requeue=1 Restarts={restarts} BatchFlag=1"))
        };
        let check = |job: &str, has_progressed, max_requeues, expected: Result<Decision, &str>| {
            let found = decide(job, has_progressed, max_requeues);
            match expected {
                Ok(expected) => assert_eq!(found, expected, "{job}"),
                Err(part) => {
                    assert!(matches!(&found, Decision::End(why) if why.contains(part)), "{found:?}")
                }
            }
        };
        check(&running(0), true, 20, Ok(Decision::Requeue));
        check(&running(19), true, 20, Ok(Decision::Requeue));
        check(&running(20), true, 20, Err("it was restarted 20 times, and --max-requeues is 20"));
        check(&running(0), true, 0, Err("--max-requeues is 0"));
        check(&running(0), false, 20, Err("no checkpoint was committed since it started"));
        // Cancelled; queued by Slurm itself; --no-requeue; salloc.
        for fields in [
            "JobState=COMPLETING Requeue=1 Restarts=0 BatchFlag=1",
            "JobState=PENDING Requeue=1 Restarts=1 BatchFlag=1",
            "JobState=RUNNING Requeue=0 Restarts=0 BatchFlag=1",
            "JobState=RUNNING Requeue=1 Restarts=0 BatchFlag=0",
        ] {
            check(&job(fields), true, 20, Ok(Decision::Leave));
        }
        check("", true, 20, Ok(Decision::Leave));
    }

    #[test]
    fn progress_is_another_newest_checkpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = Checkpointed::of(folder.path());
        assert_eq!(before, Checkpointed::of(folder.path()));
        std::fs::write(folder.path().join("LATEST"), "checkpoints/a/step-00000010")
            .expect("written");
        assert_ne!(before, Checkpointed::of(folder.path()));
    }
}
