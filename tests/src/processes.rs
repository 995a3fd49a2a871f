//! The processes of a run, by its own events: who they are, and signals to them.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

/// Process ids of the workers that have joined and were not lost since, by their names.
pub fn workers(run_dir: &Path) -> BTreeMap<String, i32> {
    let text = fs::read_to_string(run_dir.join("events.jsonl")).unwrap_or_default();
    let mut pids = BTreeMap::new();
    for event in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let worker = event["worker"].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str() {
            Some("joined") => {
                _ = pids.insert(worker, event["pid"].as_i64().unwrap_or_default() as i32)
            }
            Some("lost") => _ = pids.remove(&worker),
            _ => {}
        }
    }
    pids
}

/// Process id of the coordinator at work on a run, if there is one.
pub fn coordinator(run_dir: &Path) -> Option<i32> {
    let text = fs::read_to_string(run_dir.join("lock")).ok()?;
    let pid = text.strip_prefix("pid ")?.split(' ').next()?.parse().ok()?;
    is_alive(pid).then_some(pid)
}

pub fn is_alive(pid: i32) -> bool {
    // A zombie has a /proc entry, but no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

/// A line of a process's status, in kB (of 1024 bytes), as `VmRSS`.
///
/// # Panics
/// If the process, or the line, is not there.
#[track_caller]
pub fn status_kb(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let number = line.and_then(|line| line.trim().split(' ').next()).map(str::parse);
    number.and_then(Result::ok).unwrap_or_else(|| panic!("no {key} in the status of {pid}"))
}

/// # Panics
/// If the process is not there.
#[track_caller]
pub fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it is running");
}

/// Waits until none of the processes is there, and says how long it took.
///
/// # Panics
/// If it takes longer than `most`.
#[track_caller]
pub fn exit_within(pids: &[i32], most: Duration) -> Duration {
    let started = Instant::now();
    while pids.iter().any(|pid| is_alive(*pid)) {
        assert!(started.elapsed() < most, "still there after {most:?}: {pids:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    started.elapsed()
}

/// Process ids and command lines of those whose working folder is this one.
pub fn commands_in(folder: &Path) -> Vec<(i32, String)> {
    let Ok(folder) = folder.canonicalize() else { return Vec::new() };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let here = entries
        .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder));
    let command = |entry: fs::DirEntry| {
        let words = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        Some((entry.file_name().to_str()?.parse().ok()?, words.replace('\0', " ")))
    };
    here.filter_map(command).collect()
}

/// Open descriptors of a process; none if it has exited.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Addresses on which a process listens for TCP connections.
pub fn listening(pid: i32) -> BTreeSet<SocketAddr> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links =
        links.filter_map(|entry| fs::read_link(entry.path()).ok()?.to_str().map(str::to_owned));
    let own: BTreeSet<String> = links
        .filter_map(|link| Some(link.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let tables = ["tcp", "tcp6"]
        .map(|name| fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default());
    let lines = tables.iter().flat_map(|table| table.lines().skip(1));
    let listens = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // The state 0A is LISTEN; the tenth word is the socket.
        (words.get(3) == Some(&"0A") && own.contains(*words.get(9)?))
            .then(|| address(words[1]))
            .flatten()
    };
    lines.filter_map(listens).collect()
}

/// `0100007F:1F90`, the bytes of each group of four in the machine's order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let group = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_le_bytes());
    let bytes: Vec<u8> = (0..ip.len()).step_by(8).map(group).collect::<Option<Vec<_>>>()?.concat();
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}
