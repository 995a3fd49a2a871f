//! Everything that this program writes to standard output and standard error. Lines, log messages
//! and the progress bar go through one thread and a bounded queue: a terminal that is closed, full
//! or paused (Ctrl-S) costs output, never time or the run. What a command was asked to print goes
//! to standard output directly, and its failure is an error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Condvar, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait for the terminal, and of one of them; what is beyond is dropped.
const MAX_QUEUED_BYTES: usize = 1 << 20;
const MAX_LINE_BYTES: usize = 64 << 10;
/// How long the end of the program waits for lines that the terminal has not taken yet.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const BRIEF_FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

static STDERR: Queue = Queue { pending: Mutex::new(Pending::new()), changed: Condvar::new() };

/// A line on standard error, above the progress bar. Control characters are escaped, except for
/// line feeds and tabs: it may quote what another machine has sent.
pub(crate) fn line(text: &str) {
    queue().push(format!("{}\n", escaped(text)));
}

/// Shows the progress bar, if standard error is a terminal.
pub(crate) fn show_bar(bar: Bar) {
    if stderr_is_terminal() {
        queue().set_bar(Some(bar));
    }
}

pub(crate) fn hide_bar() {
    if stderr_is_terminal() {
        queue().set_bar(None);
    }
}

/// Waits until the terminal has taken all lines, for at most two seconds.
pub(crate) fn flush() {
    STDERR.flush(FLUSH_TIMEOUT);
}

/// As [`flush`], for a program that is to exit at once.
pub(crate) fn flush_briefly() {
    STDERR.flush(BRIEF_FLUSH_TIMEOUT);
}

/// Writes what a command was asked for to standard output. Control characters are escaped as in
/// [`line`].
///
/// # Errors
/// [`OutputError`].
pub(crate) fn print(text: &str) -> Result<(), OutputError> {
    flush();
    write_from_background();
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(escaped(text).as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => OutputError::Closed,
        _ => OutputError::Failed(error),
    })
}

/// As [`print`], with a line feed.
pub(crate) fn print_line(text: &str) -> Result<(), OutputError> {
    print(&format!("{text}\n"))
}

pub(crate) fn stderr_is_terminal() -> bool {
    static IS_TERMINAL: OnceLock<bool> = OnceLock::new();
    *IS_TERMINAL.get_or_init(|| io::stderr().is_terminal())
}

/// Standard output has not taken what a command printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// Its reader, such as `head`, has read enough.
    #[error("the reader of standard output has exited")]
    Closed,
    #[error("cannot write to standard output: {0}")]
    Failed(io::Error),
}

/// What the progress bar shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bar {
    pub(crate) unit: Unit,
    pub(crate) name: String,
    pub(crate) position: u64,
    pub(crate) length: u64,
    /// Shown after the numbers.
    pub(crate) text: String,
}

/// What the progress bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Images,
    Steps,
}

impl Unit {
    fn template(self) -> &'static str {
        match self {
            Self::Bytes => {
                "{prefix:26} {bar:32} {bytes:>10}/{total_bytes:10} {bytes_per_sec} {eta}"
            }
            Self::Images => "{prefix:8} {bar:32} {pos:>7}/{len:7} {eta}",
            Self::Steps => "{prefix:20} {bar:32} {pos:>6}/{len:6} {msg}",
        }
    }
}

/// Log messages as lines of the queue, for `tracing_subscriber`, which escapes what it quotes.
#[derive(Clone, Copy, Debug)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        queue().push(String::from_utf8_lossy(bytes).into_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for LogWriter {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// The queue of standard error, with its thread.
fn queue() -> &'static Queue {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        let writer = || {
            write_from_background();
            STDERR.write_to(&mut io::stderr());
        };
        // Without a thread there is no output, and the run continues.
        _ = std::thread::Builder::new().name("terminal".into()).spawn(writer);
    });
    &STDERR
}

/// The coordinator is in a process group of its own: with `stty tostop` a write to the terminal
/// would stop it.
fn write_from_background() {
    _ = SigSet::from(Signal::SIGTTOU).thread_block();
}

/// What waits for the terminal.
struct Pending {
    lines: VecDeque<String>,
    bytes: usize,
    dropped: u64,
    /// Only the newest state of the bar is of interest.
    bar: Option<Bar>,
    bar_changed: bool,
    writing: bool,
}

impl Pending {
    const fn new() -> Self {
        Self {
            lines: VecDeque::new(),
            bytes: 0,
            dropped: 0,
            bar: None,
            bar_changed: false,
            writing: false,
        }
    }

    fn is_written(&self) -> bool {
        self.lines.is_empty() && !self.bar_changed && !self.writing
    }
}

struct Queue {
    pending: Mutex<Pending>,
    changed: Condvar,
}

impl Queue {
    /// Never waits for the terminal.
    fn push(&self, mut line: String) {
        if line.len() > MAX_LINE_BYTES {
            line.truncate(line.floor_char_boundary(MAX_LINE_BYTES));
            line.push_str("...\n");
        }
        let mut pending = self.lock();
        if pending.bytes + line.len() > MAX_QUEUED_BYTES {
            pending.dropped += 1;
            return;
        }
        pending.bytes += line.len();
        pending.lines.push_back(line);
        self.changed.notify_all();
    }

    fn set_bar(&self, bar: Option<Bar>) {
        let mut pending = self.lock();
        (pending.bar, pending.bar_changed) = (bar, true);
        self.changed.notify_all();
    }

    fn flush(&self, timeout: Duration) {
        let is_open = |pending: &mut Pending| !pending.is_written();
        drop(self.changed.wait_timeout_while(self.lock(), timeout, is_open));
    }

    /// Writes what is queued, for as long as the program runs. A failed write has no effect.
    fn write_to(&self, stderr: &mut dyn Write) {
        let mut drawn = DrawnBar(None);
        loop {
            let waiting = self.changed.wait_while(self.lock(), |pending| pending.is_written());
            let mut pending = waiting.unwrap_or_else(PoisonError::into_inner);
            pending.writing = true;
            let lines = std::mem::take(&mut pending.lines);
            pending.bytes = 0;
            let dropped = std::mem::take(&mut pending.dropped);
            let bar = std::mem::take(&mut pending.bar_changed).then(|| pending.bar.clone());
            drop(pending);
            if !lines.is_empty() {
                drawn.suspend(|| write_lines(stderr, &lines, dropped));
            }
            if let Some(bar) = bar {
                drawn.draw(bar);
            }
            self.lock().writing = false;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_lines(stderr: &mut dyn Write, lines: &VecDeque<String>, dropped: u64) {
    for line in lines {
        _ = stderr.write_all(line.as_bytes());
    }
    if dropped > 0 {
        _ = stderr.write_all(
            format!("... {dropped} lines were dropped: the terminal did not take them\n")
                .as_bytes(),
        );
    }
}

/// The bar on the terminal, which only the queue's thread touches.
struct DrawnBar(Option<(Unit, String, ProgressBar)>);

impl DrawnBar {
    fn suspend(&self, write: impl FnOnce()) {
        match &self.0 {
            Some((_, _, drawn)) => drawn.suspend(write),
            None => write(),
        }
    }

    fn draw(&mut self, bar: Option<Bar>) {
        let is_same = |(unit, name, _): &(Unit, String, ProgressBar)| {
            bar.as_ref().is_some_and(|bar| (bar.unit, &bar.name) == (*unit, name))
        };
        if !self.0.as_ref().is_some_and(is_same)
            && let Some((_, _, drawn)) = self.0.take()
        {
            drawn.finish_and_clear();
        }
        let Some(Bar { unit, name, position, length, text }) = bar else { return };
        let (_, _, drawn) = self.0.get_or_insert_with(|| {
            let drawn =
                ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(10));
            let style = ProgressStyle::with_template(unit.template());
            drawn.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            (
                unit,
                name.clone(),
                drawn.with_prefix(escaped(&name).into_owned()).with_position(position),
            )
        });
        drawn.set_length(length);
        drawn.set_message(escaped(&text).into_owned());
        drawn.set_position(position);
    }
}

fn escaped(text: &str) -> Cow<'_, str> {
    let is_plain = |symbol: char| !symbol.is_control() || matches!(symbol, '\n' | '\t');
    if text.chars().all(is_plain) {
        return text.into();
    }
    let escape = |symbol: char| {
        if is_plain(symbol) { symbol.to_string() } else { symbol.escape_default().to_string() }
    };
    text.chars().map(escape).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Takes a line when the test lets it.
    struct Paused {
        allowed: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Paused {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.allowed.recv().map_err(io::Error::other)?;
            self.written
                .send(String::from_utf8_lossy(bytes).into_owned())
                .map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn leaked() -> &'static Queue {
        Box::leak(Box::new(Queue { pending: Mutex::new(Pending::new()), changed: Condvar::new() }))
    }

    #[test]
    fn a_paused_terminal_drops_lines_and_blocks_no_caller() {
        let queue = leaked();
        let ((allow, allowed), (written, lines)) = (channel(), channel());
        std::thread::spawn(move || queue.write_to(&mut Paused { allowed, written }));
        let line = format!("{}\n", "x".repeat(1023));
        // More than twice what fits: the writer's thread may have taken one queue.
        for _ in 0..2500 {
            queue.push(line.clone());
        }
        queue.flush(Duration::from_millis(1));
        assert!(!queue.lock().is_written());
        for _ in 0..2500 {
            _ = allow.send(());
        }
        queue.flush(Duration::from_secs(60));
        let all: Vec<String> = lines.try_iter().collect();
        let dropped = all.iter().filter(|line| line.contains("lines were dropped")).count();
        assert!(all.len() < 2100 && dropped == 1, "{} lines, {dropped} reports", all.len());
    }

    #[test]
    fn a_failed_write_has_no_effect() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(ErrorKind::StorageFull.into())
            }
        }
        let queue = leaked();
        std::thread::spawn(move || queue.write_to(&mut Full));
        for _ in 0..3 {
            queue.push("a line\n".into());
            queue.flush(Duration::from_secs(60));
            assert!(queue.lock().is_written());
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let host = "node\u{1b}]0;title\u{7}\r\u{9b}2J";
        assert_eq!(escaped(host), "node\\u{1b}]0;title\\u{7}\\r\\u{9b}2J");
        assert_eq!(escaped("two\n\tlines, ä"), "two\n\tlines, ä");
    }
}
