//! The data sets that come as a handful of files, from their raw bytes to samples: the embedded
//! digits, IDX, CIFAR. Which files those are is `layouts`'; how they are written is the decoders'.

use super::error::{DataError, RawFault};
use super::layouts::{Form, Found};
use super::pack_file::Sink;
use super::raw::RawFile;
use super::raw_set::RawSet;
use super::samples::{Decoded, OnProgress, Samples, Split};
use super::{digits, idx};
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

    fn decode(
        &self,
        split: Split,
        sink: &mut Sink<'_>,
        _: OnProgress<'_>,
    ) -> Result<Decoded, DataError> {
        let file = RawFile::embedded(digits::NAME, digits::EMBEDDED);
        put(decode_file(&file, |content| digits::decode(content, split))?, sink)
    }
}

/// A data set of a few files, or of an archive of them.
pub(super) struct Files {
    facts: DataSet,
    found: Found,
}

impl Files {
    pub(super) fn new(facts: DataSet, found: Found) -> Self {
        Self { facts, found }
    }
}

impl RawSet for Files {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn hash_into(&self, split: Split, hash: &mut Sha256) -> Result<(), DataError> {
        self.found.originals(split)?.iter().for_each(|file| file.hash_into(hash));
        Ok(())
    }

    fn decode(
        &self,
        split: Split,
        sink: &mut Sink<'_>,
        _: OnProgress<'_>,
    ) -> Result<Decoded, DataError> {
        let (form, files) = self.found.files(split)?;
        let labels = &self.facts.labels;
        let samples = match form {
            Form::Idx => decode_idx(&files, &self.facts)?,
            Form::Binary(cifar) => {
                decode_cifar(&files, |content| cifar.decode_binary(content, labels))?
            }
            Form::Pickle(cifar) => {
                decode_cifar(&files, |content| cifar.decode_pickle(content, labels))?
            }
        };
        put(samples, sink)
    }
}

/// `files` are the images and the labels.
fn decode_idx(files: &[RawFile], facts: &DataSet) -> Result<Samples, DataError> {
    let (images, labels) = (&files[0], &files[1]);
    let (side, classes) = (facts.side, facts.labels.fine_names.len());
    let pixels = decode_file(images, |content| idx::images(content, side).map(<[u8]>::to_vec))?;
    let fine = decode_file(labels, |content| idx::labels(content, classes))?;
    let (image_count, label_count) = ((pixels.len() / (side * side)) as u64, fine.len() as u64);
    if image_count != label_count {
        let (images, labels) = (images.path.clone(), labels.path.clone());
        return Err(DataError::Counts { images, image_count, labels, label_count });
    }
    Ok(Samples { images: pixels, fine })
}

/// `files` are batches, which `decode` reads one by one.
fn decode_cifar(
    files: &[RawFile],
    decode: impl Fn(&[u8]) -> Result<Samples, RawFault> + Sync,
) -> Result<Samples, DataError> {
    let batches: Vec<_> = files.par_iter().map(|file| decode_file(file, &decode)).collect();
    let mut all = Samples::default();
    for batch in batches {
        let batch = batch?;
        all.images.extend(batch.images);
        all.fine.extend(batch.fine);
    }
    refuse_twins(files)?;
    Ok(all)
}

/// Puts all images of a small data set into its pack.
fn put(samples: Samples, sink: &mut Sink<'_>) -> Result<Decoded, DataError> {
    let Samples { images, fine } = samples;
    sink.expect(fine.len(), false)?;
    sink.images(&images)?;
    Ok(Decoded { fine, ..Decoded::default() })
}

/// A batch that occurs twice under two names would be trained on twice.
fn refuse_twins(files: &[RawFile]) -> Result<(), DataError> {
    for (at, file) in files.iter().enumerate() {
        if let Some(twin) = files[..at].iter().find(|other| other.same_bytes(file)) {
            return Err(DataError::raw(
                &file.path,
                RawFault::SameContent { as_file: twin.path.clone() },
            ));
        }
    }
    Ok(())
}

fn decode_file<T>(
    file: &RawFile,
    decode: impl FnOnce(&[u8]) -> Result<T, RawFault>,
) -> Result<T, DataError> {
    decode(&file.content()?).map_err(|fault| DataError::raw(&file.path, fault))
}
