//! Ours against the golden vectors of the published code (tests/parity/README.md): every case of
//! every file of a folder. `THANOS_PARITY` puts another folder of the same form in its place, so
//! nothing here knows a size: a file says by the start of its name what it holds, and by its header
//! how.

mod augment;
mod decoder;
mod golden;
mod losses;
mod options;
mod report;
mod splits;
mod vit;

use crate::print_line;
use crate::test_device::test_device;
use anyhow::Result;
use report::Report;
use std::env;
use std::path::{Path, PathBuf};

type Check = fn(&Path, &mut Report) -> Result<()>;

/// What is under test: tensor operations, which a GPU must get right as well, or code that only
/// ever runs on the CPU.
#[derive(Clone, Copy)]
enum RunsOn {
    TestDevice,
    CpuOnly,
}

/// What a file holds, by the start of its name.
const FORMS: [(&str, Check, RunsOn); 6] = [
    ("losses_reference", losses::check, RunsOn::TestDevice),
    ("losses_exact", losses::check, RunsOn::TestDevice),
    ("vit_", vit::check, RunsOn::TestDevice),
    ("decoder", decoder::check, RunsOn::TestDevice),
    ("augment", augment::check, RunsOn::CpuOnly),
    ("splits", splits::check, RunsOn::CpuOnly),
];

#[test]
fn every_case_of_every_file() {
    let files = files();
    assert!(!files.is_empty(), "{} holds no golden vectors", folder().display());
    let reports: Vec<Report> = files.iter().map(|path| check_file(path)).collect();
    print_line(&reports.iter().map(Report::to_string).collect::<Vec<_>>().join("\n"));
    let failures: Vec<String> = reports.into_iter().flat_map(Report::failures).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A path that is not absolute starts at the workspace, where cargo is called.
fn folder() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    env::var_os("THANOS_PARITY")
        .map_or_else(|| tests.join("parity"), |path| tests.join("..").join(path))
}

/// All files but the description, by name.
fn files() -> Vec<PathBuf> {
    let folder = folder();
    let entries = folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> =
        entries.map(|entry| entry.expect("an entry of a folder").path()).collect();
    files.retain(|path| path.extension().is_none_or(|extension| extension != "md"));
    files.sort();
    files
}

fn check_file(path: &Path) -> Report {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut report = Report::new(&name);
    match FORMS.iter().find(|(start, ..)| name.starts_with(start)) {
        Some((_, check, runs_on)) => {
            report.runs_on(match runs_on {
                RunsOn::TestDevice => format!("{:?}", test_device()),
                RunsOn::CpuOnly => "the CPU, which is all that its code runs on".into(),
            });
            if let Err(error) = check(path, &mut report) {
                report.fail(format!("{error:#}"));
            }
        }
        None => report.fail("its name starts like no known file's"),
    }
    report
}
