//! Downloads the published files of a data set: resumable, never longer than published, checked
//! against the published MD5, and under the final name only when whole and right. A failed address
//! is reported, and the next one is tried. It must not know what is inside the files, how progress
//! is drawn, or which command called it.

mod https;
mod part;
mod resources;
#[cfg(test)]
mod tests;
mod web;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

pub use https::{agent, untrusted};
use part::Part;
pub use resources::{PUBLISHED, Published, Resource, resources};
use thanos_formats::{EXIT_DATA, EXIT_IO, EXIT_UNREACHABLE};
use web::Answer;

/// The longest wait for a connection, its TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait without one byte before a connection counts as broken. There is no limit on the
/// whole, since a large file over a slow line may rightly take hours.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a broken body is taken up again at one address before the next address is tried.
const MAX_RESUMES: u32 = 3;
/// How many bytes are read, written and counted at a time.
const CHUNK: usize = 64 * 1024;

/// What the caller is notified of while files are downloaded.
pub trait Watch {
    /// `done` of `total` bytes of `file` are on this machine. Called often; the caller thins it
    /// out.
    fn at(&mut self, file: &str, done: u64, total: u64);
    /// One line for the user: an address that failed, or a download that is taken up again.
    fn say(&mut self, line: &str);
}

/// A file that is now in the folder, whole and with the published MD5.
#[derive(Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was downloaded; `url` is the address that gave it.
    New { path: PathBuf, url: String },
    /// It was there already, or a download of an earlier run lacked only its final name.
    Already { path: PathBuf },
}

/// How long to wait for what. A struct so that tests need not wait as long as a user.
#[derive(Clone, Copy, Debug)]
struct Timeouts {
    connect: Duration,
    idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: CONNECT_TIMEOUT, idle: IDLE_TIMEOUT }
    }
}

/// Why one address did not give a file.
#[derive(Debug, Error)]
pub enum Reason {
    #[error("HTTP status {0}")]
    Status(u16),
    #[error("{0}")]
    Refused(String),
    #[error("no answer: {0}")]
    NoAnswer(String),
    #[error("the connection broke at {at} of {total} bytes: {cause}")]
    Broke { at: u64, total: u64, cause: String },
    #[error("it declares {got} bytes, expected {expected}")]
    Length { got: u64, expected: u64 },
    #[error("it ended after {got} bytes, expected {expected}")]
    Short { got: u64, expected: u64 },
    #[error("it sends more than {expected} bytes")]
    Long { expected: u64 },
    #[error("its MD5 is {got}, expected {expected}")]
    Md5 { got: String, expected: &'static str },
}

impl Reason {
    /// Whether the address answered well but with something that is not the published file.
    fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Length { .. } | Self::Short { .. } | Self::Long { .. } | Self::Md5 { .. }
        )
    }
}

/// An address that did not give a file, and why.
#[derive(Debug)]
pub struct Failure {
    pub url: String,
    pub reason: Reason,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.url, self.reason)
    }
}

#[derive(Debug, Error)]
pub enum FetchError {
    #[error(
        "cannot {action} {path}: {source}; check its rights and the free space, or choose another \
        folder"
    )]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{path} already exists but {found}; expected {bytes} bytes with MD5 {md5}; delete it or \
         move it away, then try again (it is never overwritten)"
    )]
    WrongThere { path: PathBuf, found: String, bytes: u64, md5: &'static str },
    #[error(
        "{path} is locked: another run is downloading this file; wait for it to end, then try again"
    )]
    Busy { path: PathBuf },
    #[error("{}", none_gave(file, failures))]
    NoneGave { file: &'static str, failures: Vec<Failure> },
}

impl FetchError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io { .. } | Self::Busy { .. } => EXIT_IO,
            Self::WrongThere { .. } => EXIT_DATA,
            Self::NoneGave { failures, .. }
                if failures.iter().all(|failure| failure.reason.is_content()) =>
            {
                EXIT_DATA
            }
            Self::NoneGave { .. } => EXIT_UNREACHABLE,
        }
    }

    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }
}

fn none_gave(file: &str, failures: &[Failure]) -> String {
    let head = match failures.len() {
        1 => "its only address failed".to_string(),
        count => format!("all {count} addresses failed"),
    };
    let lines: Vec<String> = failures.iter().map(|failure| format!("\n  {failure}")).collect();
    format!("{file}: {head}:{}", lines.concat())
}

/// What ended a try at one address: a fault of the address, after which the next one is tried, or
/// one of this machine, after which nothing is.
enum Miss {
    There(Reason),
    Here(FetchError),
}

impl From<Reason> for Miss {
    fn from(reason: Reason) -> Self {
        Self::There(reason)
    }
}

impl From<FetchError> for Miss {
    fn from(error: FetchError) -> Self {
        Self::Here(error)
    }
}

/// How a body ended.
enum End {
    Whole,
    Broke(String),
    Wrong(Reason),
}

/// Brings every one of `resources` into `dir`, which is made if needed. `mirrors` are base
/// addresses that are tried before the published ones. Stops at the first file that no address
/// gave; files that came before it stay.
pub fn fetch(
    resources: &[Resource],
    mirrors: &[String],
    dir: &Path,
    watch: &mut dyn Watch,
) -> Result<Vec<Fetched>, FetchError> {
    fetch_within(Timeouts::default(), resources, mirrors, dir, watch)
}

fn fetch_within(
    times: Timeouts,
    resources: &[Resource],
    mirrors: &[String],
    dir: &Path,
    watch: &mut dyn Watch,
) -> Result<Vec<Fetched>, FetchError> {
    fs::create_dir_all(dir).map_err(|error| FetchError::io("make the folder", dir, error))?;
    resources.iter().map(|resource| Job { times, resource, mirrors, dir }.run(watch)).collect()
}

/// One file to bring, and all that is needed for it.
struct Job<'a> {
    times: Timeouts,
    resource: &'a Resource,
    mirrors: &'a [String],
    dir: &'a Path,
}

impl Job<'_> {
    fn run(&self, watch: &mut dyn Watch) -> Result<Fetched, FetchError> {
        let path = self.dir.join(self.resource.file);
        if self.is_there(&path)? {
            return Ok(Fetched::Already { path });
        }
        let mut part = Part::open(self.dir, self.resource.file)?;
        // A second look, now under the lock: another run may have given the very file that was just
        // opened its final name, and it must then not be written to.
        if self.is_there(&path)? {
            part.discard()?;
            return Ok(Fetched::Already { path });
        }
        let source = if self.is_left_whole(&mut part)? {
            None
        } else {
            Some(self.ask_all(&mut part, watch)?)
        };
        part.sync()?;
        // A third look, so that a file that someone put there meanwhile is not overwritten.
        if self.is_there(&path)? {
            part.discard()?;
            return Ok(Fetched::Already { path });
        }
        part.keep_as(&path, self.dir)?;
        Ok(match source {
            Some(url) => Fetched::New { path, url },
            None => Fetched::Already { path },
        })
    }

    /// Whether the right file has the final name already. Anything else under that name is an
    /// error.
    fn is_there(&self, path: &Path) -> Result<bool, FetchError> {
        let Resource { bytes, md5, .. } = *self.resource;
        let wrong =
            |found| Err(FetchError::WrongThere { path: path.to_path_buf(), found, bytes, md5 });
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(FetchError::io("look at", path, error)),
            Ok(_) => {}
        }
        let read = |error| FetchError::io("read", path, error);
        let about = fs::metadata(path).map_err(read)?;
        if !about.is_file() {
            return wrong("is not a regular file".to_string());
        }
        let got = part::md5_of(&mut File::open(path).map_err(read)?).map_err(read)?;
        if got == md5 && about.len() == bytes {
            return Ok(true);
        }
        wrong(format!("has {} bytes with MD5 {got}", about.len()))
    }

    /// Whether the part that an earlier run left is the whole file and right. One that is as long
    /// as the file but wrong, or longer, cannot be resumed and is emptied.
    fn is_left_whole(&self, part: &mut Part) -> Result<bool, FetchError> {
        if part.len() < self.resource.bytes {
            return Ok(false);
        }
        if part.len() == self.resource.bytes && part.md5()? == self.resource.md5 {
            return Ok(true);
        }
        part.cut(0)?;
        Ok(false)
    }

    /// Fills `part` from the first address that gives the file, and returns that address.
    fn ask_all(&self, part: &mut Part, watch: &mut dyn Watch) -> Result<String, FetchError> {
        let file = self.resource.file;
        let mirrored =
            self.mirrors.iter().map(|base| format!("{}/{file}", base.trim_end_matches('/')));
        let published = self.resource.urls.iter().map(|url| url.to_string());
        let mut failures = Vec::new();
        for url in mirrored.chain(published) {
            match self.ask_one(&url, part, watch) {
                Ok(()) => return Ok(url),
                Err(Miss::Here(error)) => return Err(error),
                Err(Miss::There(reason)) => {
                    let failure = Failure { url, reason };
                    watch.say(&format!("{file}: {failure}"));
                    failures.push(failure);
                }
            }
        }
        if part.len() == 0 {
            part.discard()?;
        }
        Err(FetchError::NoneGave { file, failures })
    }

    /// Fills `part` from one address, taking up what it holds already. What it holds after a
    /// failure can be taken up by the next address or the next run: bytes that are known to be
    /// wrong are cut off.
    fn ask_one(&self, url: &str, part: &mut Part, watch: &mut dyn Watch) -> Result<(), Miss> {
        let Resource { file, bytes, md5, .. } = *self.resource;
        let mut has_older_bytes = part.len() > 0;
        let mut resumes = 0;
        loop {
            let answer = web::open(&self.times, url, part.len(), bytes)?;
            let start = answer.start;
            has_older_bytes &= start > 0;
            match self.copy(answer, part, watch)? {
                End::Whole => {}
                End::Wrong(reason) => {
                    part.cut(0)?;
                    return Err(reason.into());
                }
                End::Broke(cause) => {
                    let reason = Reason::Broke { at: part.len(), total: bytes, cause };
                    if part.len() == start || resumes == MAX_RESUMES {
                        return Err(reason.into());
                    }
                    resumes += 1;
                    watch.say(&format!(
                        "{file}: {url}: {reason}; resuming, try {resumes} of {MAX_RESUMES}"
                    ));
                    continue;
                }
            }
            let got = part.md5()?;
            if got == md5 {
                return Ok(());
            }
            part.cut(0)?;
            let reason = Reason::Md5 { got, expected: md5 };
            if !has_older_bytes {
                return Err(reason.into());
            }
            // The older bytes may be the wrong ones, so this address gets one try of its own. The
            // part is empty now, so the next answer starts at zero and clears the mark: this
            // happens once.
            watch.say(&format!(
                "{file}: {url}: {reason}, with bytes of an earlier attempt; starting over"
            ));
        }
    }

    /// Appends the body of `answer` to `part` from where it starts, up to the published length and
    /// no further.
    fn copy(
        &self,
        mut answer: Answer,
        part: &mut Part,
        watch: &mut dyn Watch,
    ) -> Result<End, FetchError> {
        let Resource { file, bytes, .. } = *self.resource;
        part.cut(answer.start)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            watch.at(file, part.len(), bytes);
            let left = bytes.saturating_sub(part.len());
            // One byte more than is left, so that a body that is too long is noticed.
            let want = usize::try_from(left.saturating_add(1)).unwrap_or(CHUNK).min(CHUNK);
            match answer.body.read(&mut buffer[..want]) {
                Ok(0) if left == 0 => return Ok(End::Whole),
                Ok(0) if answer.chunked => {
                    return Ok(End::Wrong(Reason::Short { got: part.len(), expected: bytes }));
                }
                Ok(0) => return Ok(End::Broke("the other side closed it".to_string())),
                Ok(got) if got as u64 > left => {
                    return Ok(End::Wrong(Reason::Long { expected: bytes }));
                }
                Ok(got) => part.append(&buffer[..got])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // All bytes are here; that the connection then ended badly does not matter, the MD5
                // decides.
                Err(_) if left == 0 => return Ok(End::Whole),
                Err(error) => return Ok(End::Broke(error.to_string())),
            }
        }
    }
}
