//! `Pack`: a data set decoded once, opened by every worker. libtorch maps the images into memory, so that the ranks
//! of a host share them; labels and facts are read. Nothing is decoded, augmented or moved to a device here.

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};
use thanos_configs::{DataSet, Labels};

/// Most bytes that a pack's header may have.
const MOST_HEADER: u64 = 64 << 20;

/// Images and labels of one split.
pub struct Pack {
    images: Images,
    pub fine: Vec<i64>,
    pub coarse: Vec<i64>,
    /// Name, shape, mean, std and class names, as its header has them.
    pub facts: DataSet,
}

/// The images of a pack; a copy is another handle on the same memory, for another thread.
pub(crate) struct Images {
    path: PathBuf,
    /// [N, S, S, C] u8, mapped.
    pixels: Tensor,
}

impl Clone for Images {
    fn clone(&self) -> Self {
        Self { path: self.path.clone(), pixels: self.pixels.shallow_clone() }
    }
}

impl Pack {
    /// Opens a pack that has the given fingerprint.
    ///
    /// # Errors
    /// If the file is no pack, or its header names another fingerprint: another data set, or one changed since.
    pub fn open(path: &Path, fingerprint: &str) -> Result<Self> {
        Self::read(path, fingerprint).with_context(|| format!("pack {}", path.display()))
    }

    fn read(path: &Path, fingerprint: &str) -> Result<Self> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        ensure!(length <= MOST_HEADER, "its header claims {length} bytes, at most {MOST_HEADER} are allowed");
        let mut header = Vec::new();
        file.by_ref().take(length).read_to_end(&mut header)?;
        // The crate's own reader wants the whole file, which is to be mapped, not read.
        let header: Metadata = serde_json::from_slice(&header).context("its header is damaged")?;
        let words = header.metadata().as_ref().context("its header has no words")?;
        let found = words.get("fingerprint").cloned().unwrap_or_default();
        ensure!(
            found == fingerprint,
            "its fingerprint is {found}, the coordinator's is {fingerprint}: the file differs"
        );
        let info = |name: &str| header.info(name).with_context(|| format!("it has no tensor `{name}`"));
        let images = info("images")?;
        let &[n, h, w, c] = images.shape.as_slice() else { bail!("`images` has shape {:?}", images.shape) };
        ensure!(h == w, "its images are {h} x {w} pixels: only squares are trained on");
        ensure!(images.dtype == Dtype::U8, "`images` is {:?}, expected U8", images.dtype);
        let data_start = 8 + length;
        let mut labels = |name: &str| -> Result<Vec<i64>> {
            let info = info(name)?;
            ensure!(info.shape == [n] && info.dtype == Dtype::I64, "`{name}` is not I64 [{n}]");
            read_labels(&mut file, data_start, info)
        };
        let (fine, coarse) = (labels("fine")?, labels("coarse")?);
        let from = data_start as i64 + images.data_offsets.0 as i64;
        let bytes = (n * h * w * c) as i64;
        let end = from + bytes;
        ensure!(file.metadata()?.len() >= end as u64, "it is cut off: {end} bytes were expected");
        let name = path.to_str().context("its path is not UTF-8")?;
        let pixels = Tensor::f_from_file(name, false, end, (Kind::Uint8, Device::Cpu))?
            .narrow(0, from, bytes)
            .reshape([n as i64, h as i64, w as i64, c as i64]);
        Ok(Self { images: Images { path: path.into(), pixels }, fine, coarse, facts: facts(words, h, c)? })
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
    /// The pixels of some images, [n * S * S * C], copied one behind the other.
    ///
    /// # Errors
    /// If an id is not in the pack.
    pub(crate) fn pixels(&self, ids: &[u64]) -> Result<Vec<u8>> {
        let chosen = self.chosen(ids)?;
        let mut pixels = vec![0_u8; chosen.numel()];
        chosen.f_copy_data(&mut pixels, chosen.numel())?;
        Ok(pixels)
    }

    /// Some images as a tensor on the device that holds them, [n, S, S, C] u8.
    ///
    /// # Errors
    /// As [`Images::pixels`].
    pub(crate) fn chosen(&self, ids: &[u64]) -> Result<Tensor> {
        let rows: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
        let rows = Tensor::from_slice(&rows).to_device(self.pixels.device());
        let images = self.pixels.size()[0];
        self.pixels
            .f_index_select(0, &rows)
            .with_context(|| format!("pack {} has {images} images", self.path.display()))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.pixels.numel() as u64
    }

    /// The images, moved to a device.
    pub(crate) fn on(&self, device: Device) -> Self {
        Self { path: self.path.clone(), pixels: self.pixels.to_device(device) }
    }
}

/// What a header's words say about the data set; the map from fine to coarse labels is not among them.
fn facts(words: &HashMap<String, String>, side: usize, channels: usize) -> Result<DataSet> {
    let facts = DataSet {
        name: words.get("name").cloned().context("its header has no name")?,
        side,
        channels,
        mean: word(words, "mean")?,
        std: word(words, "std")?,
        labels: Labels {
            fine_names: word(words, "fine_names")?,
            coarse_names: word(words, "coarse_names")?,
            coarse_of: Vec::new(),
        },
    };
    let (means, stds) = (facts.mean.len(), facts.std.len());
    ensure!((means, stds) == (channels, channels), "{means} means and {stds} deviations of {channels} channels");
    Ok(facts)
}

fn word<T: DeserializeOwned>(words: &HashMap<String, String>, key: &str) -> Result<T> {
    let text = words.get(key).with_context(|| format!("its header has no `{key}`"))?;
    serde_json::from_str(text).with_context(|| format!("`{key}` of its header is `{text}`"))
}

fn read_labels(file: &mut File, data_start: u64, info: &TensorInfo) -> Result<Vec<i64>> {
    let (from, to) = info.data_offsets;
    file.seek(SeekFrom::Start(data_start + from as u64))?;
    let mut bytes = vec![0; to - from];
    file.read_exact(&mut bytes)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect())
}
