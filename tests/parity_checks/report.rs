//! What came out of a file's cases. A case continues after a difference, and the file after a case
//! that failed or panicked, so that one run reports everything.

use crate::nearness::{relative_error, worst_element};
use anyhow::Result;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tch::{Kind, Tensor};

/// The README's tolerance of each element: |a - b| <= 1e-6 + 1e-4 |b|.
const ABSOLUTE: f64 = 1e-6;
const RELATIVE: f64 = 1e-4;

/// Relative tolerances of a tensor as a whole, computed in float64 (expected ones are stored as
/// float32, which is exact to 6e-8) and in float32.
const DOUBLE: f64 = 1e-6;
const SINGLE: f64 = 1e-5;

/// Errors of what is smaller are relative to this.
const MIN_NORM: f64 = 1e-6;

/// Shown as one line: the file, its cases, its device and the worst relative error, of float64
/// where ours can compute in it.
pub(crate) struct Report {
    file: String,
    device: String,
    cases: usize,
    worst: f64,
    failures: Vec<String>,
}

impl Report {
    pub(crate) fn new(file: &str) -> Self {
        Self {
            file: file.into(),
            device: String::new(),
            cases: 0,
            worst: 0.0,
            failures: Vec::new(),
        }
    }

    pub(crate) fn runs_on(&mut self, device: String) {
        self.device = device;
    }

    /// Counts and runs one case.
    pub(crate) fn case(&mut self, name: &str, body: impl FnOnce(&mut Case) -> Result<()>) {
        self.cases += 1;
        let mut case = Case { worst: 0.0, wrong: Vec::new() };
        let ended = catch_unwind(AssertUnwindSafe(|| body(&mut case)));
        let stopped_by = match ended {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            Err(_) => Some("it panicked, see above".into()),
        };
        if let Some(cause) = stopped_by {
            case.worst = f64::INFINITY;
            case.wrong.push(cause);
        }
        self.worst = self.worst.max(case.worst);
        case.wrong.iter().for_each(|what| self.fail(format!("{name}: {what}")));
    }

    pub(crate) fn fail(&mut self, what: impl fmt::Display) {
        self.failures.push(format!("{}: {what}", self.file));
    }

    /// What failed; a file without a case is a failure too.
    pub(crate) fn failures(mut self) -> Vec<String> {
        if self.cases == 0 {
            self.fail("it has no case");
        }
        self.failures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, device, cases, worst, .. } = self;
        write!(f, "{file}: {cases} cases, worst relative error {worst:.1e}, on {device}")
    }
}

/// Comparisons within one case.
pub(crate) struct Case {
    worst: f64,
    wrong: Vec<String>,
}

impl Case {
    /// One number; `tolerance` is relative.
    pub(crate) fn number(&mut self, what: &str, found: f64, expected: f64, tolerance: f64) {
        let error = relative_error(&Tensor::from(found), &Tensor::from(expected), MIN_NORM);
        self.worst = self.worst.max(error);
        self.near(what, found, expected, tolerance);
    }

    /// As [`Self::number`], but its error does not count as the case's.
    pub(crate) fn near(&mut self, what: &str, found: f64, expected: f64, tolerance: f64) {
        let error = relative_error(&Tensor::from(found), &Tensor::from(expected), MIN_NORM);
        self.require(error <= tolerance, || {
            format!("{what} is {found}, expected {expected}: error {error:.1e} > {tolerance:.0e}")
        });
    }

    /// A tensor as a whole and element by element. Its error counts as the case's.
    pub(crate) fn tensor(&mut self, what: &str, found: &Tensor, expected: &Tensor) {
        self.worst = self.worst.max(relative_error(found, expected, MIN_NORM));
        self.whole(what, found, expected);
        self.elements(what, found, expected);
    }

    /// Each element, by the README's tolerance.
    pub(crate) fn elements(&mut self, what: &str, found: &Tensor, expected: &Tensor) {
        let times = worst_element(found, expected, ABSOLUTE, RELATIVE);
        let kind = found.kind();
        self.require(times <= 1.0, || {
            format!("{what} in {kind:?}: an element is off by {times:.1} x the tolerance")
        });
    }

    /// The tensor as a whole, by the tolerance of its kind.
    pub(crate) fn whole(&mut self, what: &str, found: &Tensor, expected: &Tensor) {
        let (error, kind, shapes) = (
            relative_error(found, expected, MIN_NORM),
            found.kind(),
            (found.size(), expected.size()),
        );
        let tolerance = if kind == Kind::Double { DOUBLE } else { SINGLE };
        self.require(error <= tolerance, || {
            format!(
                "{what} in {kind:?}: error {error:.1e} > {tolerance:.0e}; shape {:?}, expected \
                {:?}",
                shapes.0, shapes.1
            )
        });
    }

    pub(crate) fn equal<T: PartialEq + fmt::Debug>(&mut self, what: &str, found: T, expected: T) {
        if found != expected {
            self.worst = f64::INFINITY;
        }
        self.require(found == expected, || format!("{what} is {found:?}, expected {expected:?}"));
    }

    fn require(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(otherwise());
        }
    }
}
