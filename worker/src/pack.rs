//! `Pack`: a data set decoded once, opened by every worker. Labels and facts are read; images stay
//! in the file, and are read by their position when a batch has them, so that a pack may be larger
//! than memory and the ranks of a host share one copy in the page cache. They are not mapped:
//! libtorch maps files writable, which the kernel refuses for more than there is memory, and a
//! mapped file that is cut off ends the process with SIGBUS in place of an error.

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};
use thanos_configs::{DataSet, Labels};

/// Most bytes that a pack's header may have.
const MAX_HEADER: u64 = 64 << 20;
/// Bytes of images that are moved to a device at once.
const MOVED_BYTES: usize = 64 << 20;

/// Images and labels of one split.
pub struct Pack {
    images: Images,
    pub fine: Vec<i64>,
    pub coarse: Vec<i64>,
    /// Name, shape, mean, std and class names, as its header has them.
    pub facts: DataSet,
}

/// The images of a pack; a copy is another handle on the same ones, for another thread.
pub(crate) struct Images {
    path: PathBuf,
    /// N, S, S, C.
    shape: [i64; 4],
    store: Store,
}

enum Store {
    /// The pack's file, and where its images begin.
    File(Arc<File>, u64),
    /// [N, S, S, C] u8 on a device.
    Device(Tensor),
}

impl Images {
    /// All images, [N, S, S, C] u8, where they are in a GPU's memory.
    pub(crate) fn resident(&self) -> Option<Tensor> {
        match &self.store {
            Store::Device(pixels) => Some(pixels.shallow_clone()),
            Store::File(..) => None,
        }
    }
}

impl Clone for Images {
    fn clone(&self) -> Self {
        let store = match &self.store {
            Store::File(file, at) => Store::File(file.clone(), *at),
            Store::Device(pixels) => Store::Device(pixels.shallow_clone()),
        };
        Self { path: self.path.clone(), shape: self.shape, store }
    }
}

impl Pack {
    /// Opens a pack that has the given fingerprint.
    ///
    /// # Errors
    /// If the file is no pack, or its header names another fingerprint: another data set, or one
    /// changed since.
    pub fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        Self::read(path, fingerprint).with_context(|| format!("pack {}", path.display()))
    }

    fn read(path: &Path, fingerprint: &str) -> Result<Self> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(
            length <= MAX_HEADER,
            "its header claims {length} bytes, at most {MAX_HEADER} are allowed"
        );
        let mut header = Vec::new();
        file.by_ref().take(length).read_to_end(&mut header)?;
        // The crate's own reader wants the whole file in memory.
        let header: Metadata = serde_json::from_slice(&header).context("its header is damaged")?;
        let metadata = header.metadata().as_ref().context("its header has no metadata")?;
        let found = metadata.get("fingerprint").cloned().unwrap_or_default();
        ensure!(
            found == fingerprint,
            "its fingerprint is {found}, the coordinator's is {fingerprint}: the file differs"
        );
        let info =
            |name: &str| header.info(name).with_context(|| format!("it has no tensor `{name}`"));
        let images = info("images")?;
        let &[n, h, w, c] = images.shape.as_slice() else {
            bail!("`images` has shape {:?}", images.shape)
        };
        ensure!(h == w, "its images are {h} x {w} pixels: only squares are trained on");
        ensure!(images.dtype == Dtype::U8, "`images` is {:?}, expected U8", images.dtype);
        let data_start = 8 + length;
        let mut labels = |name: &str| -> Result<Vec<i64>> {
            let info = info(name)?;
            ensure!(info.shape == [n] && info.dtype == Dtype::I64, "`{name}` is not I64 [{n}]");
            read_labels(&mut file, data_start, info)
        };
        let (fine, coarse) = (labels("fine")?, labels("coarse")?);
        let from = data_start + images.data_offsets.0 as u64;
        let bytes =
            [n, h, w, c].into_iter().try_fold(1_u64, |bytes, side| bytes.checked_mul(side as u64));
        let end = bytes
            .and_then(|bytes| from.checked_add(bytes))
            .context("`images` is larger than any file")?;
        let shape = [n, h, w, c].map(|side| side as i64);
        ensure!(file.metadata()?.len() >= end, "it is cut off: {end} bytes were expected");
        let images = Images { path: path.into(), shape, store: Store::File(Arc::new(file), from) };
        Ok(Self { images, fine, coarse, facts: facts(metadata, h, c)? })
    }

    /// A handle on the images.
    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.fine.len()
    }

    pub fn is_empty(&self) -> bool {
        self.fine.is_empty()
    }
}

impl Images {
    /// The pixels of some images, [n * S * S * C], copied one after the other.
    ///
    /// # Errors
    /// If an id is not in the pack, or the file cannot be read.
    pub(crate) fn pixels(&self, ids: &[u64]) -> Result<Vec<u8>> {
        match &self.store {
            Store::File(file, at) => {
                self.read(file, *at, ids).with_context(|| format!("pack {}", self.path.display()))
            }
            Store::Device(_) => {
                let chosen = self.chosen(ids)?;
                let mut pixels = vec![0_u8; chosen.numel()];
                chosen.f_copy_data(&mut pixels, chosen.numel())?;
                Ok(pixels)
            }
        }
    }

    fn read(&self, file: &File, at: u64, ids: &[u64]) -> Result<Vec<u8>> {
        let (images, bytes) = (self.shape[0] as u64, self.image_bytes());
        if let Some(id) = ids.iter().find(|id| **id >= images) {
            bail!("it has {images} images, not one of id {id}");
        }
        let mut pixels = vec![0_u8; ids.len() * bytes];
        let mut rest = pixels.as_mut_slice();
        // Images that follow each other in the file are read at once.
        for run in ids.chunk_by(|one, next| one + 1 == *next) {
            let (these, others) = rest.split_at_mut(run.len() * bytes);
            file.read_exact_at(these, at + run[0] * bytes as u64)?;
            rest = others;
        }
        Ok(pixels)
    }

    fn image_bytes(&self) -> usize {
        self.shape[1..].iter().product::<i64>() as usize
    }

    /// Some images as a tensor on the device that holds them, [n, S, S, C] u8.
    ///
    /// # Errors
    /// As [`Images::pixels`].
    pub(crate) fn chosen(&self, ids: &[u64]) -> Result<Tensor> {
        let Store::Device(pixels) = &self.store else {
            let [_, s, _, c] = self.shape;
            return Ok(Tensor::from_slice(&self.pixels(ids)?).reshape([ids.len() as i64, s, s, c]));
        };
        let rows: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        let rows = Tensor::from_slice(&rows).to_device(pixels.device());
        let images = self.shape[0];
        pixels
            .f_index_select(0, &rows)
            .with_context(|| format!("pack {} has {images} images", self.path.display()))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().product::<i64>() as u64
    }

    /// The images, moved to a device part by part.
    ///
    /// # Errors
    /// If the device has not enough memory, or the file cannot be read.
    pub(crate) fn on(&self, device: Device) -> Result<Self> {
        let pixels = Tensor::f_empty(self.shape, (Kind::Uint8, device))?;
        let step = (MOVED_BYTES / self.image_bytes().max(1)).max(1);
        let ids: Vec<u64> = (0..self.shape[0] as u64).collect();
        for part in ids.chunks(step) {
            let part_of = |tensor: &Tensor| tensor.narrow(0, part[0] as i64, part.len() as i64);
            part_of(&pixels).f_copy_(&self.chosen(part)?)?;
        }
        Ok(Self { path: self.path.clone(), shape: self.shape, store: Store::Device(pixels) })
    }
}

/// What a header's metadata says about the data set; the map from fine to coarse labels is not
/// among them.
fn facts(metadata: &HashMap<String, String>, side: usize, channels: usize) -> Result<DataSet> {
    let facts = DataSet {
        name: metadata.get("name").cloned().context("its header has no name")?,
        side,
        channels,
        mean: entry(metadata, "mean")?,
        std: entry(metadata, "std")?,
        labels: Labels {
            fine_names: entry(metadata, "fine_names")?,
            coarse_names: entry(metadata, "coarse_names")?,
            coarse_of: Vec::new(),
        },
    };
    let (means, stds) = (facts.mean.len(), facts.std.len());
    ensure!(
        (means, stds) == (channels, channels),
        "{means} means and {stds} deviations of {channels} channels"
    );
    Ok(facts)
}

fn entry<T: DeserializeOwned>(metadata: &HashMap<String, String>, key: &str) -> Result<T> {
    let text = metadata.get(key).with_context(|| format!("its header has no `{key}`"))?;
    serde_json::from_str(text).with_context(|| format!("`{key}` of its header is `{text}`"))
}

fn read_labels(file: &mut File, data_start: u64, info: &TensorInfo) -> Result<Vec<i64>> {
    let (from, to) = info.data_offsets;
    file.seek(SeekFrom::Start(data_start + from as u64))?;
    let mut bytes = vec![0; to - from];
    file.read_exact(&mut bytes)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pack of `n` images of 1024 x 1024 x 3 pixels that are all 0, without a block on disk; the
    /// last is all 7.
    fn sparse(path: &Path, n: u64) -> u64 {
        let (labels, image) = (8 * n, 3 << 20);
        let header = serde_json::json!({
            "__metadata__": {
                "fingerprint": "f", "name": "image_folder", "mean": "[0.5,0.5,0.5]",
                "std": "[1.0,1.0,1.0]",
                "fine_names": "[\"a\"]", "coarse_names": "[\"a\"]",
            },
            "coarse": {"dtype": "I64", "shape": [n], "data_offsets": [0, labels]},
            "fine": {"dtype": "I64", "shape": [n], "data_offsets": [labels, 2 * labels]},
            "images": {
                "dtype": "U8", "shape": [n, 1024, 1024, 3],
                "data_offsets": [2 * labels, 2 * labels + n * image],
            },
        });
        let header = header.to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
        let file = File::create(path).expect("a file");
        file.write_all_at(&bytes, 0).expect("written");
        let end = bytes.len() as u64 + 2 * labels + n * image;
        file.write_all_at(&[7; 3 << 20], end - image).expect("written");
        end
    }

    /// More than the memory of the machines that test this; libtorch's mapping was refused by the
    /// kernel.
    #[test]
    fn a_pack_may_be_larger_than_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("large.safetensors");
        let images = 20_000;
        let bytes = sparse(&path, images);
        assert!(bytes > 58 << 30, "{bytes} bytes");
        let pack = Pack::open(&path, "f").expect("it opens");
        assert_eq!(pack.len(), images as usize);
        let pixels = pack.images().pixels(&[images - 2, images - 1, 0]).expect("three images");
        let one = 3 << 20;
        assert_eq!(
            [pixels[0], pixels[one - 1], pixels[one], pixels[2 * one - 1], pixels[2 * one]],
            [0, 0, 7, 7, 0]
        );
        let chosen = pack.images().chosen(&[images - 1]).expect("one image");
        assert_eq!(chosen.size(), [1, 1024, 1024, 3]);
        let refused = pack.images().pixels(&[images]).expect_err("not in it");
        assert!(
            format!("{refused:#}").contains("it has 20000 images, not one of id 20000"),
            "{refused:#}"
        );
        // Cut off while it is open: an error, and not the end of the process.
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(bytes - 1))
            .expect("cut");
        assert!(pack.images().pixels(&[images - 1]).is_err());
        assert!(pack.images().pixels(&[0]).is_ok());
        assert!(
            Pack::open(&path, "f")
                .err()
                .is_some_and(|error| format!("{error:#}").contains("it is cut off"))
        );
    }
}
