//! The data sets that come as a handful of files, from their raw bytes to samples: the embedded digits, IDX, CIFAR.
//! Which files those are is `sources`'; how they are written is the decoders'.

use super::cifar::Cifar;
use super::error::{DataError, RawFault};
use super::pack_file::Sink;
use super::raw::RawFile;
use super::sources::{Form, Found};
use super::{Decoded, OnProgress, RawSet, Samples, Split, digits, idx};
use rayon::prelude::*;
use sha2::Sha256;
use thanos_configs::DataSet;

pub(super) struct Digits {
    facts: DataSet,
}

impl Digits {
    pub(super) fn new(facts: DataSet) -> Self {
        Self { facts }
    }
}

impl RawSet for Digits {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn hash_into(&self, _: Split, hash: &mut Sha256) -> Result<(), DataError> {
        RawFile::embedded(digits::NAME, digits::EMBEDDED).hash_into(hash);
        Ok(())
    }

    fn decode(&self, split: Split, sink: &mut Sink<'_>, _: OnProgress<'_>) -> Result<Decoded, DataError> {
        let file = RawFile::embedded(digits::NAME, digits::EMBEDDED);
        put(decode_file(&file, |content| digits::decode(content, split))?, sink)
    }
}

pub(super) struct IdxFiles {
    facts: DataSet,
    found: Found,
}

impl IdxFiles {
    pub(super) fn new(facts: DataSet, found: Found) -> Self {
        Self { facts, found }
    }
}

impl RawSet for IdxFiles {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn hash_into(&self, split: Split, hash: &mut Sha256) -> Result<(), DataError> {
        self.found.originals(split)?.iter().for_each(|file| file.hash_into(hash));
        Ok(())
    }

    fn decode(&self, split: Split, sink: &mut Sink<'_>, _: OnProgress<'_>) -> Result<Decoded, DataError> {
        let files = self.found.files(split)?;
        let (images, labels) = (&files[0], &files[1]);
        let (side, classes) = (self.facts.side, self.facts.labels.fine_names.len());
        let pixels = decode_file(images, |content| idx::images(content, side).map(<[u8]>::to_vec))?;
        let fine = decode_file(labels, |content| idx::labels(content, classes))?;
        let (image_count, label_count) = ((pixels.len() / (side * side)) as u64, fine.len() as u64);
        if image_count != label_count {
            let (images, labels) = (images.path.clone(), labels.path.clone());
            return Err(DataError::Counts { images, image_count, labels, label_count });
        }
        put(Samples { images: pixels, fine }, sink)
    }
}

pub(super) struct CifarFiles {
    facts: DataSet,
    found: Found,
}

impl CifarFiles {
    pub(super) fn new(facts: DataSet, found: Found) -> Self {
        Self { facts, found }
    }
}

impl RawSet for CifarFiles {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn hash_into(&self, split: Split, hash: &mut Sha256) -> Result<(), DataError> {
        self.found.originals(split)?.iter().for_each(|file| file.hash_into(hash));
        Ok(())
    }

    fn decode(&self, split: Split, sink: &mut Sink<'_>, _: OnProgress<'_>) -> Result<Decoded, DataError> {
        let files = self.found.files(split)?;
        let labels = &self.facts.labels;
        let cifar = if labels.fine_names.len() == 10 { Cifar::Ten } else { Cifar::Hundred };
        let decode = |content: &[u8]| match self.found.layout.form {
            Form::Pickle => cifar.decode_pickle(content, labels),
            Form::Binary | Form::Idx => cifar.decode_binary(content, labels),
        };
        let batches: Vec<_> = files.par_iter().map(|file| decode_file(file, decode)).collect();
        let mut all = Samples::default();
        for batch in batches {
            let batch = batch?;
            all.images.extend(batch.images);
            all.fine.extend(batch.fine);
        }
        refuse_twins(&files)?;
        put(all, sink)
    }
}

/// Puts all images of a small data set into its pack.
fn put(samples: Samples, sink: &mut Sink<'_>) -> Result<Decoded, DataError> {
    let Samples { images, fine } = samples;
    sink.expect(fine.len(), false)?;
    sink.images(&images)?;
    Ok(Decoded { fine, skipped: Vec::new() })
}

/// A batch that is there twice under two names would be trained on twice.
fn refuse_twins(files: &[RawFile]) -> Result<(), DataError> {
    for (at, file) in files.iter().enumerate() {
        if let Some(twin) = files[..at].iter().find(|other| other.same_bytes(file)) {
            return Err(DataError::raw(&file.path, RawFault::SameContent { as_file: twin.path.clone() }));
        }
    }
    Ok(())
}

fn decode_file<T>(file: &RawFile, decode: impl FnOnce(&[u8]) -> Result<T, RawFault>) -> Result<T, DataError> {
    decode(&file.content()?).map_err(|fault| DataError::raw(&file.path, fault))
}
