//! `Pack`: a data set decoded once, opened by every worker. Labels and facts are read; images stay
//! in the file, and are read by their position when a batch has them, so that a pack may be larger
//! than memory and the ranks of a host share one copy in the page cache. They are not mapped:
//! libtorch maps files writable, which the kernel refuses for more than there is memory, and a
//! mapped file that is cut off ends the process with SIGBUS in place of an error.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Kind, Tensor};
use thanos_configs::{DataSet, Labels};
use thanos_formats::PackHeader;

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
    /// If the file is not a pack, or its header names another fingerprint: another data set, or one
    /// changed since.
    pub fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        Self::read(path, fingerprint).with_context(|| format!("pack {}", path.display()))
    }

    fn read(path: &Path, fingerprint: &str) -> Result<Self> {
        let file = File::open(path)?;
        let header = PackHeader::read_from(&file)?;
        let found = &header.fingerprint;
        ensure!(
            found == fingerprint,
            "its fingerprint is {found}, the coordinator's is {fingerprint}: the file differs"
        );
        let [_, h, w, _] = header.shape;
        ensure!(h == w, "its images are {h} x {w} pixels: only squares are trained on");
        let (fine, coarse) = (header.read_fine(&file)?, header.read_coarse(&file)?);
        let shape = header.shape.map(|size| size as i64);
        let store = Store::File(Arc::new(file), header.images_at.start);
        let images = Images { path: path.into(), shape, store };
        Ok(Self { images, fine, coarse, facts: facts(header)? })
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

/// What a header says about the data set; the map from fine to coarse labels is not in it.
fn facts(header: PackHeader) -> Result<DataSet> {
    let PackHeader { name, fine_names, coarse_names, mean, std, .. } = header;
    let [_, _, side, channels] = header.shape;
    let (means, stds) = (mean.len(), std.len());
    ensure!(
        (means, stds) == (channels, channels),
        "{means} means and {stds} deviations of {channels} channels"
    );
    let labels = Labels { fine_names, coarse_names, coarse_of: Vec::new() };
    Ok(DataSet { name, side, channels, mean, std, labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pack of `n` images of 1024 x 1024 x 3 pixels that are all 0, without a block on disk; the
    /// last is all 7.
    fn sparse(path: &Path, n: u64) -> u64 {
        let header = PackHeader {
            name: "image_folder".into(),
            split: "train".into(),
            fine_names: vec!["a".into()],
            coarse_names: vec!["a".into()],
            mean: vec![0.5; 3],
            std: vec![1.0; 3],
            fingerprint: "f".into(),
            shape: [n as usize, 1 << 10, 1 << 10, 3],
            ..PackHeader::default()
        };
        let (bytes, image) = (header.to_bytes(), 3 << 20);
        let file = File::create(path).expect("a file");
        file.write_all_at(&bytes, 0).expect("written");
        let end = bytes.len() as u64 + n * (16 + image);
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
                .is_some_and(|error| format!("{error:#}").contains("it was cut off"))
        );
    }
}
