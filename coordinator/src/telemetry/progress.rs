//! What the terminal shows of a run: a bar for the stage in training, or plain lines when standard
//! error is not a terminal.

use crate::run::{Notice, RecoveredFrom};
use crate::terminal::{self, Unit};
use indicatif::HumanBytes;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use thanos_configs::DataKind;
use thanos_data::{PackFile, Packs};
use thanos_proto::{Heartbeat, RankPhase, StageResult, StepDone};

/// Without a terminal, a line is printed this often at first, then whenever a run is a twentieth
/// older, and finally so often: a day of training is 400 lines.
const MIN_LINE_INTERVAL: Duration = Duration::from_secs(5);
const MAX_LINE_INTERVAL: Duration = Duration::from_secs(300);
/// The rate is that of the last seconds.
const WINDOW: Duration = Duration::from_secs(5);

/// Skipped images that are named; the pack names more.
const MAX_NAMED: usize = 20;

/// Shortest time between two states of a bar that is moved by many threads.
const MIN_BAR_INTERVAL: Duration = Duration::from_millis(50);

/// How far packing or a download is: a bar if standard error is a terminal, else nothing until it
/// is done.
pub(crate) struct Bar {
    unit: Unit,
    shown: Mutex<Shown>,
}

/// What the bar shows now.
#[derive(Default)]
struct Shown {
    part: String,
    position: u64,
    when: Option<Instant>,
}

impl Bar {
    pub(crate) fn new(unit: Unit) -> Self {
        Self { unit, shown: Mutex::default() }
    }

    /// `done` of `total` of a part; from any thread.
    pub(crate) fn at(&self, part: &str, done: u64, total: u64) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.part != part {
            *shown = Shown { part: part.into(), ..Shown::default() };
        }
        shown.position = done.max(shown.position);
        let is_recent = shown.when.is_some_and(|when| when.elapsed() < MIN_BAR_INTERVAL);
        if is_recent && shown.position < total {
            return;
        }
        shown.when = Some(Instant::now());
        let (unit, position) = (self.unit, shown.position);
        terminal::show_bar(terminal::Bar {
            unit,
            name: part.into(),
            position,
            length: total,
            text: String::new(),
        });
    }

    pub(crate) fn finish(&self) {
        terminal::hide_bar();
    }
}

/// What people should know of packs: that there are not as many images as were published, and which
/// were skipped. A file that was cut off between two records has no other sign.
pub(crate) fn report_packs(kind: DataKind, packs: &Packs) {
    for (pack, published) in
        [&packs.train, &packs.test].into_iter().zip(kind.published_images().unwrap_or_default())
    {
        if published > 0 && pack.images != published {
            terminal::line(&format!(
                "note: {} {} images, {published} are published",
                pack.images, pack.split
            ));
        }
    }
    let warnings = |pack: &PackFile| {
        let split = pack.split.clone();
        pack.warnings
            .iter()
            .map(move |warning| format!("of the {split} images, {warning}"))
            .collect::<Vec<_>>()
    };
    for line in
        packs.notes.iter().cloned().chain(warnings(&packs.train)).chain(warnings(&packs.test))
    {
        terminal::line(&format!("note: {line}"));
    }
    report_skipped(&packs.train);
    report_skipped(&packs.test);
}

fn report_skipped(pack: &PackFile) {
    if pack.skipped_images == 0 {
        return;
    }
    terminal::line(&format!(
        "skipped {} {} images that cannot be decoded:",
        pack.skipped_images, pack.split
    ));
    for image in pack.skipped.iter().take(MAX_NAMED) {
        terminal::line(&format!("  {}: {}", image.name, image.reason));
    }
    if pack.skipped_images > MAX_NAMED as u64 {
        terminal::line(&format!(
            "  and more, see `thanos-coord data info {}`",
            pack.path.display()
        ));
    }
}

/// The stage in training, as people see it.
pub(crate) struct Progress {
    view: View,
    stage: Option<StageProgress>,
}

enum View {
    /// From the first step of a stage to its end.
    Bar,
    Lines {
        began: Instant,
        last: Instant,
    },
}

struct StageProgress {
    name: String,
    /// Steps done, and all of them.
    position: u64,
    length: u64,
    started: Instant,
    /// When a step was committed, and its images.
    recent: VecDeque<(Instant, u64)>,
}

/// Interval between two lines of a run of this age.
fn between_lines(age: Duration) -> Duration {
    (age / 20).clamp(MIN_LINE_INTERVAL, MAX_LINE_INTERVAL)
}

impl Progress {
    /// A bar if standard error is a terminal, else lines.
    pub(crate) fn new() -> Self {
        let view = match terminal::stderr_is_terminal() {
            true => View::Bar,
            false => View::Lines { began: Instant::now(), last: Instant::now() },
        };
        Self { view, stage: None }
    }

    /// A step was committed.
    pub(crate) fn step(&mut self, step: &StepDone) {
        let now = Instant::now();
        if self.stage.as_ref().is_none_or(|stage| stage.name != step.stage) {
            let (name, recent) = (step.stage.clone(), VecDeque::new());
            self.stage = Some(StageProgress { name, position: 0, length: 0, started: now, recent });
        }
        let Some(stage) = &mut self.stage else { return };
        (stage.position, stage.length) = (step.step + 1, step.total_steps);
        stage.recent.push_back((now, step.images));
        while stage.recent.front().is_some_and(|(then, _)| now.duration_since(*then) > WINDOW) {
            stage.recent.pop_front();
        }
        let text = stage.describe(step, now);
        match &mut self.view {
            View::Bar => terminal::show_bar(stage.bar(text)),
            View::Lines { began, last }
                if now.duration_since(*last) >= between_lines(now.duration_since(*began)) =>
            {
                *last = now;
                terminal::line(&format!(
                    "{}: step {}/{}, {text}",
                    step.stage,
                    step.step + 1,
                    step.total_steps
                ));
            }
            View::Lines { .. } => {}
        }
    }

    /// A rank says what it does. Between steps the bar shows it instead of a rate that no longer
    /// holds.
    pub(crate) fn heartbeat(&self, heartbeat: &Heartbeat) {
        let (View::Bar, Some(stage)) = (&self.view, &self.stage) else { return };
        let Some(activity) = activity(&heartbeat.phase).filter(|_| heartbeat.stage == stage.name)
        else {
            return;
        };
        terminal::show_bar(stage.bar(activity.into()));
    }

    /// Something happened that a person may want to read.
    pub(crate) fn notice(&mut self, notice: &Notice) {
        if let Notice::StageComplete(result) = notice {
            terminal::hide_bar();
            terminal::line(&summary(result));
            self.stage = None;
        } else if let Some(message) = message(notice) {
            terminal::line(&message);
        }
    }
}

/// What is printed about the run.
fn message(notice: &Notice) -> Option<String> {
    Some(match notice {
        Notice::Began { generation, workers, devices, collectives } => {
            let collectives = collectives_name(collectives.label());
            format!("generation {generation}: {}", workers_on(workers.len(), devices, collectives))
        }
        Notice::Recovered { generation, step, seconds, from, .. } => {
            let from = match from {
                RecoveredFrom::Memory(worker) => format!("with the state of {worker}"),
                RecoveredFrom::Checkpoint => "from the last checkpoint".into(),
                RecoveredFrom::Start => "from the start of the stage".into(),
            };
            format!(
                "generation {generation} continues after step {step} {from}, recovered in \
                {seconds:.1} s"
            )
        }
        Notice::StorageBlocked { problem } => {
            format!("{problem}; retrying; training pauses when too many steps are unrecorded")
        }
        Notice::StorageRecovered { seconds } => {
            format!("the run directory can be written again, after {seconds:.1} s")
        }
        Notice::Stopping { reason } => format!("stopping at a common step: {reason}"),
        Notice::GraceOver => "the grace period is over: the run ends at its last checkpoint".into(),
        Notice::Skipped { stage, step, problem } => {
            format!("{problem} at step {step} of stage {stage}: the update is skipped")
        }
        Notice::Repaired { problem } => {
            format!("{problem}: repaired with the state of the majority")
        }
        Notice::NotSaved { stage, step, reason } => {
            format!("checkpoint save failed: step {step} of stage {stage}: {reason}")
        }
        of_worker => return worker_message(of_worker),
    })
}

/// What is printed about one worker. Every notice is in one of the two.
fn worker_message(notice: &Notice) -> Option<String> {
    Some(match notice {
        Notice::SavingBeforeEnd { worker, stage, step } => format!(
            "saving the state of {worker} (step {step} of stage {stage}) before the run ends"
        ),
        Notice::Terminating { worker, limit } => format!(
            "{worker} received SIGTERM, most others did not: it trains on until it is killed, at \
            most {limit:?}"
        ),
        Notice::Straggler { worker, last_position, share } => format!(
            "{worker} is slow: the others wait for it {:.0} % of the time, in {last_position}",
            share * 100.0
        ),
        Notice::Lost { reason, .. } | Notice::GroupFailed { reason, .. } => reason.clone(),
        Notice::Restarting { worker, how, restart, .. } => {
            format!("{worker} {how}: restarting it (restart {restart} since the last step)")
        }
        Notice::Abandoned { worker, how } => format!("{worker} {how}: not restarting it"),
        Notice::Refused { reason, .. } => format!("refused: {reason}"),
        Notice::Fetched { worker, split, bytes, .. } => format!(
            "{worker} received the {split} images from the coordinator: {}",
            HumanBytes(*bytes)
        ),
        Notice::Joined { .. }
        | Notice::Evaluated(_)
        | Notice::Saved { .. }
        | Notice::Benched(_)
        | Notice::StageComplete(_)
        | Notice::Began { .. }
        | Notice::Recovered { .. }
        | Notice::StorageBlocked { .. }
        | Notice::StorageRecovered { .. }
        | Notice::Stopping { .. }
        | Notice::GraceOver
        | Notice::Skipped { .. }
        | Notice::Repaired { .. }
        | Notice::NotSaved { .. } => return None,
    })
}

/// What a rank does in a phase in which it makes no step.
fn activity(phase: &RankPhase) -> Option<&'static str> {
    match phase {
        RankPhase::Evaluate => Some("evaluating"),
        RankPhase::Measure => Some("measuring on the test images"),
        RankPhase::Save => Some("saving"),
        RankPhase::Record => Some("recording a CUDA graph"),
        _ => None,
    }
}

impl StageProgress {
    fn bar(&self, text: String) -> terminal::Bar {
        let (name, position, length) = (self.name.clone(), self.position, self.length);
        terminal::Bar { unit: Unit::Steps, name, position, length, text }
    }

    /// Loss, images per second, time left.
    fn describe(&self, step: &StepDone, now: Instant) -> String {
        let (first, _) = self.recent.front().copied().unwrap_or((self.started, 0));
        let seconds = now.duration_since(first).as_secs_f64();
        // The first entry opened the window: its images were done before it.
        let images: u64 = self.recent.iter().skip(1).map(|(_, images)| images).sum();
        let steps = self.recent.len().saturating_sub(1) as f64;
        if seconds <= 0.0 || steps <= 0.0 {
            return format!("loss {:.4}", step.loss);
        }
        let left = (step.total_steps - step.step - 1) as f64 * seconds / steps;
        let left = clock(Duration::from_secs_f64(left));
        format!("loss {:.4}  {:.0} images/s  ETA {left}", step.loss, images as f64 / seconds)
    }
}

/// `4 workers on CPU (model), Gloo`.
pub(crate) fn workers_on(workers: usize, devices: &str, collectives: &str) -> String {
    format!("{workers} worker{} on {devices}, {collectives}", if workers == 1 { "" } else { "s" })
}

/// A library by its label, as its own documentation writes it.
pub(crate) fn collectives_name(label: &str) -> &str {
    match label {
        "gloo" => "Gloo",
        "nccl" => "NCCL",
        other => other,
    }
}

/// Hours, minutes and seconds: 3:13:00.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn summary(result: &StageResult) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let accuracy = match result.fine_test_accuracy {
        Some(fine) => format!("fine test accuracy {}", percent(fine)),
        None => {
            let knn = percent(result.knn_fine_accuracy);
            format!(
                "coarse test accuracy {}, kNN on fine labels {knn}",
                percent(result.coarse_test_accuracy)
            )
        }
    };
    format!("{}: done in {:.1} s, {accuracy}", result.stage, result.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_hours_minutes_and_seconds() {
        let cases = [
            (193 * 60, "3:13:00"),
            (59, "0:00:59"),
            (3600, "1:00:00"),
            (100 * 3600 + 61, "100:01:01"),
        ];
        for (seconds, shown) in cases {
            assert_eq!(clock(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn a_phase_without_steps_is_shown_as_an_activity() {
        assert_eq!(activity(&RankPhase::Evaluate), Some("evaluating"));
        for phase in
            [RankPhase::Forward, RankPhase::Reduce, RankPhase::Other("anything else".into())]
        {
            assert_eq!(activity(&phase), None, "{phase:?}");
        }
    }

    #[test]
    fn a_day_of_lines_is_no_flood() {
        let (mut age, mut lines) = (Duration::ZERO, 0);
        while age < Duration::from_secs(24 * 3600) {
            age += between_lines(age);
            lines += 1;
        }
        assert!((300..450).contains(&lines), "{lines}");
    }
}
