//! How much a worker's message may hold. What is longer than any worker of ours sends is malformed;
//! free text is cut.

use crate::malformed::Malformed;
use crate::v1;
use std::collections::BTreeMap;

/// Bytes of a name: of a stage, a loss term, a phase, a split, a file, a host, a version or an
/// address.
const MAX_NAME_BYTES: usize = 255;
/// Bytes of a text for people, which is cut there.
const MAX_TEXT_BYTES: usize = 4096;
/// Loss terms or phases of a step, and files of a checkpoint.
const MAX_ENTRIES: usize = 32;
/// Steps that a worker brings along when it comes back.
const MAX_RECENT_STEPS: usize = 256;
/// Steps that a benchmark may measure.
pub const MAX_BENCH_STEPS: u64 = 100_000;

fn malformed(message: &'static str, problem: String) -> Malformed {
    Malformed { message, problem }
}

fn name(message: &'static str, field: &str, name: &str) -> Result<(), Malformed> {
    if name.len() > MAX_NAME_BYTES {
        return Err(malformed(
            message,
            format!("{field} has {} bytes, at most {MAX_NAME_BYTES} are allowed", name.len()),
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(malformed(message, format!("{field} has a control character: {name:?}")));
    }
    Ok(())
}

fn entries(message: &'static str, field: &str, count: usize, max: usize) -> Result<(), Malformed> {
    match count <= max {
        true => Ok(()),
        false => Err(malformed(
            message,
            format!("{field} has {count} entries, at most {max} are allowed"),
        )),
    }
}

fn named(
    message: &'static str,
    field: &str,
    values: &BTreeMap<String, f64>,
) -> Result<(), Malformed> {
    entries(message, field, values.len(), MAX_ENTRIES)?;
    values.keys().try_for_each(|key| name(message, field, key))
}

/// Cuts a text, and takes out what a terminal would act on.
fn text(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push_str(" [...]");
    }
    let is_harmful = |character: char| character.is_control() && !"\n\t".contains(character);
    if text.contains(is_harmful) {
        *text = text.replace(is_harmful, "\u{fffd}");
    }
}

/// Checks one message of a worker.
///
/// # Errors
/// The field that holds too much.
pub(crate) fn check(event: &mut v1::worker_event::Event) -> Result<(), Malformed> {
    use v1::worker_event::Event;
    match event {
        Event::Hello(hello) => {
            name("Hello", "worker_id", &hello.worker_id)?;
            name("Hello", "host", &hello.host)?;
            name("Hello", "version", &hello.version)?;
            hello.device.as_ref().map_or(Ok(()), device)
        }
        Event::Ready(ready) => name("Ready", "config_digest", &ready.config_digest),
        Event::Heartbeat(heartbeat) => {
            name("Heartbeat", "stage", &heartbeat.stage)?;
            name("Heartbeat", "phase", &heartbeat.phase)
        }
        Event::Step(done) => step(done),
        Event::Rejoin(rejoin) => {
            entries("Rejoin", "recent", rejoin.recent.len(), MAX_RECENT_STEPS)?;
            if let Some(failure) = &mut rejoin.failure {
                text(&mut failure.message);
                name("GroupFailure", "stage", &failure.stage)?;
            }
            rejoin.recent.iter_mut().try_for_each(step)
        }
        Event::Evaluated(evaluated) => {
            name("Evaluated", "stage", &evaluated.stage)?;
            name("Evaluated", "measure", &evaluated.measure)
        }
        Event::Checkpoint(written) => checkpoint(written),
        Event::StageFinished(finished) => name("StageFinished", "stage", &finished.stage),
        Event::Stopped(stopped) => name("Stopped", "stage", &stopped.stage),
        Event::Failed(failed) => {
            text(&mut failed.phase);
            text(&mut failed.message);
            Ok(())
        }
        Event::Fetching(fetching) => name("Fetching", "split", &fetching.split),
        Event::NotSaved(not_saved) => {
            text(&mut not_saved.reason);
            name("NotSaved", "stage", &not_saved.stage)
        }
        Event::Repaired(repaired) => {
            text(&mut repaired.problem);
            Ok(())
        }
        Event::StopRequested(requested) => {
            text(&mut requested.reason);
            Ok(())
        }
        Event::Shows(shows) => name("Shows", "address", &shows.address),
        Event::Benched(report) => benched(report),
        _ => Ok(()),
    }
}

fn device(device: &v1::Device) -> Result<(), Malformed> {
    name("Device", "name", &device.name)?;
    device.id.as_ref().map_or(Ok(()), |id| name("Device", "id", id))
}

fn step(step: &mut v1::StepDone) -> Result<(), Malformed> {
    const STEP: &str = "StepDone";
    name(STEP, "stage", &step.stage)?;
    name(STEP, "samples_sha256", &step.samples_sha256)?;
    named(STEP, "losses", &step.losses)?;
    named(STEP, "phase_seconds", &step.phase_seconds)?;
    // A loss may be non-finite, which is what `skipped` is for; a duration may not.
    if let Some((phase, seconds)) =
        step.phase_seconds.iter().find(|(_, seconds)| !seconds.is_finite())
    {
        return Err(malformed(STEP, format!("phase_seconds of {phase} is {seconds}")));
    }
    if let Some(skipped) = &mut step.skipped {
        text(skipped);
    }
    Ok(())
}

fn benched(report: &v1::BenchReport) -> Result<(), Malformed> {
    const REPORT: &str = "BenchReport";
    name(REPORT, "device", &report.device)?;
    name(REPORT, "precision", &report.precision)?;
    name(REPORT, "collectives", &report.collectives)?;
    name(REPORT, "ceiling_product", &report.ceiling_product)?;
    entries(REPORT, "step_seconds", report.step_seconds.len(), MAX_BENCH_STEPS as usize)?;
    named(REPORT, "phase_seconds", &report.phase_seconds)?;
    let numbers = report
        .step_seconds
        .iter()
        .chain(report.phase_seconds.values())
        .chain([&report.ceiling_flops_per_s]);
    match numbers.copied().find(|number| !number.is_finite()) {
        Some(number) => Err(malformed(REPORT, format!("a time or rate is {number}"))),
        None => Ok(()),
    }
}

fn checkpoint(written: &v1::CheckpointWritten) -> Result<(), Malformed> {
    const CHECKPOINT: &str = "CheckpointWritten";
    name(CHECKPOINT, "stage", &written.stage)?;
    // A folder is a path of a stage's name and two more.
    if written.folder.len() > 2 * MAX_NAME_BYTES {
        return Err(malformed(CHECKPOINT, format!("folder has {} bytes", written.folder.len())));
    }
    entries(CHECKPOINT, "files", written.files.len(), MAX_ENTRIES)?;
    for file in &written.files {
        name(CHECKPOINT, "a file's name", &file.name)?;
        name(CHECKPOINT, "a file's sha256", &file.sha256)?;
    }
    written.result.as_ref().map_or(Ok(()), |result| name(CHECKPOINT, "result.stage", &result.stage))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WorkerEvent;
    use v1::worker_event::Event;

    fn converted(event: Event) -> Result<WorkerEvent, Malformed> {
        WorkerEvent::try_from(v1::WorkerEvent { event: Some(event) })
    }

    fn step_with(change: impl FnOnce(&mut v1::StepDone)) -> v1::StepDone {
        let mut step =
            v1::StepDone { stage: "cae".into(), loss: f64::NAN, ..v1::StepDone::default() };
        change(&mut step);
        step
    }

    #[test]
    fn messages_that_hold_too_much_are_malformed() {
        let long = || "x".repeat(MAX_NAME_BYTES + 1);
        let many = || (0..=MAX_ENTRIES).map(|index| (index.to_string(), 1.0)).collect();
        converted(Event::Step(step_with(|_| {}))).expect("a loss may be non-finite");
        let cpu = || v1::Device { kind: v1::DeviceKind::Cpu.into(), ..v1::Device::default() };
        let on = |device| Event::Hello(v1::Hello { device: Some(device), ..v1::Hello::default() });
        let hello = |host: String| {
            Event::Hello(v1::Hello {
                worker_id: "a".into(),
                host,
                device: Some(cpu()),
                ..v1::Hello::default()
            })
        };
        converted(hello("node-1.example".into())).expect("a host");
        for bad in [
            hello(long()),
            hello("\u{1b}[2J".into()),
            on(v1::Device { name: long(), ..cpu() }),
            on(v1::Device { name: "\u{1b}[2J".into(), ..cpu() }),
            on(v1::Device { id: Some(long()), ..cpu() }),
            Event::Heartbeat(v1::Heartbeat { phase: long(), ..v1::Heartbeat::default() }),
            Event::Step(step_with(|step| step.stage = long())),
            Event::Step(step_with(|step| step.losses = many())),
            Event::Step(step_with(|step| step.losses = BTreeMap::from([(long(), 1.0)]))),
            Event::Step(step_with(|step| step.phase_seconds = many())),
            Event::Step(step_with(|step| {
                step.phase_seconds = BTreeMap::from([("data".into(), f64::INFINITY)])
            })),
            Event::Rejoin(v1::Rejoin {
                recent: vec![v1::StepDone::default(); MAX_RECENT_STEPS + 1],
                ..v1::Rejoin::default()
            }),
            Event::Rejoin(v1::Rejoin {
                failure: Some(v1::GroupFailure { stage: long(), ..v1::GroupFailure::default() }),
                ..v1::Rejoin::default()
            }),
            Event::Checkpoint(v1::CheckpointWritten {
                files: vec![v1::WrittenFile::default(); MAX_ENTRIES + 1],
                ..v1::CheckpointWritten::default()
            }),
            Event::Shows(v1::Shows { address: long() }),
            Event::Benched(v1::BenchReport { device: long(), ..v1::BenchReport::default() }),
            Event::Benched(v1::BenchReport { phase_seconds: many(), ..v1::BenchReport::default() }),
            Event::Benched(v1::BenchReport {
                step_seconds: vec![0.1, f64::NAN],
                ..v1::BenchReport::default()
            }),
            Event::Benched(v1::BenchReport {
                step_seconds: vec![0.1; MAX_BENCH_STEPS as usize + 1],
                ..v1::BenchReport::default()
            }),
        ] {
            assert!(converted(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn text_for_people_is_cut_and_cannot_steer_a_terminal() {
        let message = format!("\u{1b}[31mred\nline{}", "é".repeat(MAX_TEXT_BYTES));
        let failed = v1::Failed { phase: "forward".into(), message, exit_code: 70 };
        let WorkerEvent::Failed(failed) = converted(Event::Failed(failed)).expect("cut") else {
            panic!("another event")
        };
        assert!(failed.message.starts_with("\u{fffd}[31mred\nline"), "{}", failed.message);
        assert!(failed.message.ends_with("é [...]"), "{}", failed.message);
        assert!(failed.message.len() < MAX_TEXT_BYTES + 16);
        let failure = v1::GroupFailure {
            message: "x".repeat(2 * MAX_TEXT_BYTES),
            ..v1::GroupFailure::default()
        };
        let rejoin = v1::Rejoin { failure: Some(failure), ..v1::Rejoin::default() };
        let WorkerEvent::Rejoin(rejoin) = converted(Event::Rejoin(rejoin)).expect("cut") else {
            panic!("another event")
        };
        assert!(rejoin.failure.is_some_and(|failure| failure.message.len() < MAX_TEXT_BYTES + 16));
    }
}
