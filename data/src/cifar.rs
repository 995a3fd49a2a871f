//! CIFAR-10 and CIFAR-100 in their published forms: the binary version (records of one or two
//! labels and 3,072 pixels, one plane per channel) and the Python version (pickles of the same);
//! cs.toronto.edu/~kriz/cifar.html. It decodes bytes and knows neither files nor archives.

use super::error::RawFault;
use super::pickle::{self, Value};
use super::samples::Samples;
use thanos_configs::Labels;

const PLANE: usize = 32 * 32;
const PIXELS: usize = 3 * PLANE;

/// Which of the two: they differ in their labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cifar {
    Ten,
    Hundred,
}

impl Cifar {
    /// Bytes of a binary record; CIFAR-100 has a coarse label in front of the fine one.
    fn record(self) -> usize {
        match self {
            Self::Ten => 1 + PIXELS,
            Self::Hundred => 2 + PIXELS,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ten => "CIFAR-10",
            Self::Hundred => "CIFAR-100",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Ten => Self::Hundred,
            Self::Hundred => Self::Ten,
        }
    }

    fn mistaken(self) -> RawFault {
        RawFault::OtherCifar { expected: self.name(), got: self.other().name() }
    }

    /// The images of a binary file, planes turned to [N, 32, 32, 3] u8, and their fine labels.
    ///
    /// # Errors
    /// No records, a length that is not a whole number of them (the other CIFAR is recognised by
    /// it), or a label that is out of range, or coarse labels that are not those of the fine ones.
    pub(super) fn decode_binary(
        self,
        content: &[u8],
        labels: &Labels,
    ) -> Result<Samples, RawFault> {
        let record_bytes = self.record();
        let got = content.len() as u64;
        if content.is_empty() {
            return Err(RawFault::Empty);
        }
        if !content.len().is_multiple_of(record_bytes) {
            if content.len().is_multiple_of(self.other().record()) {
                return Err(self.mistaken());
            }
            let record = (content.len() / record_bytes) as u64;
            return Err(RawFault::PartialRecord { record_bytes: record_bytes as u64, record, got });
        }
        let mut samples = Samples::with_capacity(content.len() / record_bytes, PIXELS);
        for (record, bytes) in content.chunks_exact(record_bytes).enumerate() {
            let (head, planes) = bytes.split_at(record_bytes - PIXELS);
            let offset = (record * record_bytes) as u64;
            let at = |byte: usize| (record as u64, offset + byte as u64);
            match *head {
                [fine] => {
                    samples.fine.push(check_label(i64::from(fine), labels.fine_names.len(), at(0))?)
                }
                [coarse, fine, ..] => {
                    let fine = check_label(i64::from(fine), labels.fine_names.len(), at(1))?;
                    check_coarse(i64::from(coarse), fine, labels, at(0))?;
                    samples.fine.push(fine);
                }
                [] => unreachable!("a record begins with a label"),
            }
            push_planes(planes, &mut samples.images);
        }
        Ok(samples)
    }

    /// The same of a pickled batch.
    ///
    /// # Errors
    /// If it is not a pickle of plain data, or another structure than the published one.
    pub(super) fn decode_pickle(
        self,
        content: &[u8],
        labels: &Labels,
    ) -> Result<Samples, RawFault> {
        let batch = pickle::read(content).map_err(|fault| RawFault::Pickle(fault.to_string()))?;
        let key = match self {
            Self::Ten => "labels",
            Self::Hundred => "fine_labels",
        };
        let other = if self == Self::Ten { "fine_labels" } else { "labels" };
        if batch.get(key).is_none() && batch.get(other).is_some() {
            return Err(self.mistaken());
        }
        let fine = integers(&batch, key)?;
        let Some(Value::Array(data)) = batch.get("data") else {
            return Err(structure("data", "a numpy array of bytes", batch.get("data")));
        };
        if data.shape != [fine.len(), PIXELS] {
            let expected = format!("an array of [{}, {PIXELS}]", fine.len());
            return Err(RawFault::Structure {
                key: "data".into(),
                expected,
                got: format!("one of {:?}", data.shape),
            });
        }
        if fine.is_empty() {
            return Err(RawFault::Empty);
        }
        let mut samples = Samples::with_capacity(fine.len(), PIXELS);
        let coarse = match self {
            Self::Ten => Vec::new(),
            Self::Hundred => integers(&batch, "coarse_labels")?,
        };
        if self == Self::Hundred && coarse.len() != fine.len() {
            let (expected, got) = (format!("{} labels", fine.len()), coarse.len().to_string());
            return Err(RawFault::Structure { key: "coarse_labels".into(), expected, got });
        }
        for (record, (fine, planes)) in
            fine.into_iter().zip(data.bytes.chunks_exact(PIXELS)).enumerate()
        {
            let at = (record as u64, (record * PIXELS) as u64);
            let fine = check_label(fine, labels.fine_names.len(), at)?;
            if let Some(coarse) = coarse.get(record) {
                check_coarse(*coarse, fine, labels, at)?;
            }
            samples.fine.push(fine);
            push_planes(planes, &mut samples.images);
        }
        Ok(samples)
    }
}

/// `at` is a record and its offset, for the message.
fn check_label(label: i64, classes: usize, (record, offset): (u64, u64)) -> Result<i64, RawFault> {
    let max = classes as u64 - 1;
    if (0..classes as i64).contains(&label) {
        Ok(label)
    } else {
        Err(RawFault::Label { record, offset, max, got: label })
    }
}

fn check_coarse(
    got: i64,
    fine: i64,
    labels: &Labels,
    (record, offset): (u64, u64),
) -> Result<(), RawFault> {
    let expected = labels.coarse_of[fine as usize];
    if got == expected {
        Ok(())
    } else {
        Err(RawFault::CoarseLabel { record, offset, fine, expected, got })
    }
}

/// Three planes to pixels of three channels.
fn push_planes(planes: &[u8], images: &mut Vec<u8>) {
    images.extend(
        (0..PLANE)
            .flat_map(|pixel| [planes[pixel], planes[PLANE + pixel], planes[2 * PLANE + pixel]]),
    );
}

fn integers(batch: &Value, key: &str) -> Result<Vec<i64>, RawFault> {
    let Some(Value::List(items)) = batch.get(key) else {
        return Err(structure(key, "a list of labels", batch.get(key)));
    };
    let integer = |item: &Value| match item {
        Value::Int(label) => Ok(*label),
        other => Err(structure(key, "a list of integers", Some(other))),
    };
    items.iter().map(integer).collect()
}

fn structure(key: &str, expected: &str, got: Option<&Value>) -> RawFault {
    let got = match got {
        None => "nothing under this key",
        Some(Value::None) => "None",
        Some(Value::Bool(_)) => "a boolean",
        Some(Value::Int(_)) => "an integer",
        Some(Value::Float(_)) => "a float",
        Some(Value::Bytes(_)) => "a string",
        Some(Value::List(_)) => "a list",
        Some(Value::Tuple(_)) => "a tuple",
        Some(Value::Dict(_)) => "a dict",
        Some(Value::Array(_)) => "an array",
    };
    RawFault::Structure { key: key.into(), expected: expected.into(), got: got.into() }
}

#[cfg(test)]
mod tests;
