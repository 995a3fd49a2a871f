//! What the terminal shows of a run: a bar for the stage in training, or plain lines when nobody watches.

use crate::ingest::{PackFile, Packs};
use crate::run::{Notice, RecoveredFrom};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use thanos_configs::DataKind;
use thanos_proto::{StageResult, StepDone};

/// Where nobody watches, a line comes this often at first, then whenever a run is a twentieth older, and at last so often:
/// a day of training is 400 lines.
const LEAST_BETWEEN_LINES: Duration = Duration::from_secs(5);
const MOST_BETWEEN_LINES: Duration = Duration::from_secs(300);
/// The rate is that of the last seconds.
const WINDOW: Duration = Duration::from_secs(5);

/// Skipped images that are named; the pack names more.
const MOST_NAMED: usize = 20;

/// How far packing or a download is: a bar if somebody watches, else nothing until it is done.
pub(crate) struct Bar {
    bar: ProgressBar,
    /// What the bar shows now.
    part: Mutex<String>,
}

impl Bar {
    /// `unit` is what is counted: `images`, or `bytes`.
    pub(crate) fn new(unit: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        let template = match unit {
            "bytes" => "{prefix:26} {bar:32} {bytes:>10}/{total_bytes:10} {bytes_per_sec} {eta}",
            _ => "{prefix:8} {bar:32} {pos:>7}/{len:7} {eta}",
        };
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, part: Mutex::default() }
    }

    /// `done` of `total` of a part; from any thread.
    pub(crate) fn at(&self, part: &str, done: u64, total: u64) {
        let mut shown = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown != part {
            *shown = part.into();
            self.bar.reset();
            self.bar.set_prefix(part.to_owned());
            self.bar.set_length(total);
        }
        self.bar.set_position(done.max(self.bar.position()));
    }

    /// A line above the bar, or on standard error.
    pub(crate) fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// What people should know of packs: that there are not as many images as were published, and which were left out. A
/// file that was cut off between two records has no other sign.
pub(crate) fn tell_of(kind: DataKind, packs: &Packs) {
    for (pack, published) in [&packs.train, &packs.test].into_iter().zip(kind.published_images().unwrap_or_default()) {
        if published > 0 && pack.images != published {
            eprintln!("note: {} {} images, {published} are published", pack.images, pack.split);
        }
    }
    tell_left_out(&packs.train);
    tell_left_out(&packs.test);
}

fn tell_left_out(pack: &PackFile) {
    if pack.left_out == 0 {
        return;
    }
    eprintln!("left out {} {} images that cannot be decoded:", pack.left_out, pack.split);
    for image in pack.skipped.iter().take(MOST_NAMED) {
        eprintln!("  {}: {}", image.name, image.reason);
    }
    if pack.left_out > MOST_NAMED as u64 {
        eprintln!("  and more, see `thanos-coord data info {}`", pack.path.display());
    }
}

/// The stage in training, as people see it.
pub(crate) struct Progress {
    view: View,
    stage: Option<Stage>,
}

enum View {
    Bar(ProgressBar),
    Lines { began: Instant, last: Instant },
}

struct Stage {
    name: String,
    started: Instant,
    /// When a step was committed, and its images.
    recent: VecDeque<(Instant, u64)>,
}

/// How long a run of this age is silent.
fn between_lines(age: Duration) -> Duration {
    (age / 20).clamp(LEAST_BETWEEN_LINES, MOST_BETWEEN_LINES)
}

impl Progress {
    /// A bar if standard error is a terminal, else lines.
    pub(crate) fn new() -> Self {
        let view = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template("{prefix:20} {bar:32} {pos:>6}/{len:6} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            View::Bar(bar)
        } else {
            View::Lines { began: Instant::now(), last: Instant::now() }
        };
        Self { view, stage: None }
    }

    /// A step was committed.
    pub(crate) fn step(&mut self, step: &StepDone) {
        let now = Instant::now();
        if self.stage.as_ref().is_none_or(|stage| stage.name != step.stage) {
            self.stage = Some(Stage { name: step.stage.clone(), started: now, recent: VecDeque::new() });
            if let View::Bar(bar) = &self.view {
                bar.reset();
                bar.set_prefix(step.stage.clone());
            }
        }
        let Some(stage) = &mut self.stage else { return };
        stage.recent.push_back((now, step.images));
        while stage.recent.front().is_some_and(|(then, _)| now.duration_since(*then) > WINDOW) {
            stage.recent.pop_front();
        }
        let text = stage.describe(step, now);
        match &mut self.view {
            View::Bar(bar) => {
                bar.set_length(step.total_steps);
                bar.set_position(step.step + 1);
                bar.set_message(text);
            }
            View::Lines { began, last } if now.duration_since(*last) >= between_lines(now.duration_since(*began)) => {
                *last = now;
                eprintln!("{}: step {}/{}, {text}", step.stage, step.step + 1, step.total_steps);
            }
            View::Lines { .. } => {}
        }
    }

    /// Something happened that a person may want to read.
    pub(crate) fn notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Began { generation, workers } => {
                let ranks = workers.len();
                self.line(&format!("generation {generation}: {ranks} worker{}", if ranks == 1 { "" } else { "s" }));
            }
            Notice::StageComplete(result) => {
                self.line(&summary(result));
                self.stage = None;
            }
            Notice::Stopping { reason } => self.line(&format!("stopping at a common step: {reason}")),
            Notice::SavingBeforeEnd { worker, stage, step } => {
                self.line(&format!("saving the state of {worker} (step {step} of stage {stage}) before the run ends"));
            }
            Notice::StorageBlocked { problem } => {
                self.line(&format!("{problem}; trying again, training pauses when too many steps wait"));
            }
            Notice::StorageRecovered { seconds } => {
                self.line(&format!("the run directory can be written again, after {seconds:.1} s"));
            }
            Notice::GraceOver => self.line("the time for a stop is over: the last checkpoint is what stays"),
            Notice::Skipped { stage, step, problem } => {
                self.line(&format!("{problem} at step {step} of stage {stage}: the update is left out"));
            }
            Notice::Repaired { problem } => self.line(&format!("{problem}: it was given the state of the others")),
            Notice::Straggler { worker, whereabouts, share } => {
                let share = share * 100.0;
                self.line(&format!(
                    "{worker} is slow: the others wait for it {share:.0} % of the time, in {whereabouts}"
                ));
            }
            Notice::Lost { worker: _, reason } => self.line(reason),
            Notice::Restarting { worker, how, restart } => {
                self.line(&format!("{worker} {how}: it is started again (start {restart} since the last step)"));
            }
            Notice::Abandoned { worker, how } => self.line(&format!("{worker} {how}: it is not started again")),
            Notice::Recovered { generation, step, seconds, from, .. } => {
                let from = match from {
                    RecoveredFrom::Memory(worker) => format!("with the state of {worker}"),
                    RecoveredFrom::Checkpoint => "from the last checkpoint".into(),
                    RecoveredFrom::Start => "from the start of the stage".into(),
                };
                self.line(&format!("generation {generation} goes on behind step {step} {from}, after {seconds:.1} s"));
            }
            Notice::Refused { reason, .. } => self.line(&format!("refused: {reason}")),
            Notice::NotSaved { stage, step, reason } => {
                self.line(&format!("the checkpoint of step {step} of stage {stage} was not saved: {reason}"));
            }
            Notice::Fetched { worker, split, bytes, .. } => {
                self.line(&format!("{worker} got the {split} images from here: {}", HumanBytes(*bytes)));
            }
            Notice::Joined { .. } | Notice::Evaluated(_) | Notice::Saved { .. } => {}
        }
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        match &self.view {
            View::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            View::Lines { .. } => eprintln!("{text}"),
        }
    }

    pub(crate) fn finish(&self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

impl Stage {
    /// Loss, images a second, time left.
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
        let (minutes, seconds_left) = (left as u64 / 60, left as u64 % 60);
        format!("loss {:.4}  {:.0} images/s  ETA {minutes}:{seconds_left:02}", step.loss, images as f64 / seconds)
    }
}

fn summary(result: &StageResult) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let accuracy = match result.fine_test_accuracy {
        Some(fine) => format!("fine test accuracy {}", percent(fine)),
        None => {
            let knn = percent(result.knn_fine_accuracy);
            format!("coarse test accuracy {}, kNN on fine labels {knn}", percent(result.coarse_test_accuracy))
        }
    };
    format!("{}: done in {:.1} s, {accuracy}", result.stage, result.seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

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
