//! A pack's header: what it records about the images and labels after it, as safetensors JSON and
//! back. It knows lengths and offsets, and reads no pixel.

use super::error::PackFault;
use super::samples::Skipped;
use safetensors::tensor::{Dtype, Metadata};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use thanos_configs::{DataSet, Labels};

/// Version of packs: of the file, of the decoders (a pixel that they give otherwise), and of the
/// fingerprint.
pub(super) const FORMAT: u32 = 2;

/// Maximum length of the JSON, the spaces after it included; the worker's reader has the same
/// bound.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// The JSON's length comes first, u64 little-endian.
const LENGTH_BYTES: u64 = 8;

/// Images that could not be decoded and are not in the pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SkippedImages {
    pub(super) images: u64,
    /// The first of them.
    pub(super) named: Vec<Skipped>,
}

/// What a header has in addition to what its fingerprint covers. Empty ones have no key; older
/// packs have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// What is unusual about the images, a sentence each.
    pub(super) warnings: Vec<String>,
    /// What the images were decoded from and how, whatever their coarse labels: a SHA-256 in
    /// hexadecimal.
    pub(super) pixels: String,
}

/// What a pack records about itself.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) split: String,
    pub(super) fine_names: Vec<String>,
    pub(super) coarse_names: Vec<String>,
    /// Per channel, of pixels in [0, 1].
    pub(super) mean: Vec<f64>,
    pub(super) std: Vec<f64>,
    pub(super) skipped_images: SkippedImages,
    pub(super) notes: Notes,
    pub(super) fingerprint: String,
    /// N, H, W, C.
    pub(super) shape: [usize; 4],
    /// Where the tensors are in the file.
    pub(super) images_at: Range<u64>,
    pub(super) fine_at: Range<u64>,
    pub(super) coarse_at: Range<u64>,
    /// Length of the whole file.
    pub(super) bytes: u64,
}

impl Header {
    /// That of a pack which is not written yet: it has no fingerprint and no place for its tensors.
    pub(super) fn of(
        data: &DataSet,
        split: &str,
        skipped_images: SkippedImages,
        fine: &[i64],
    ) -> Self {
        Self {
            name: data.name.clone(),
            split: split.into(),
            fine_names: data.labels.fine_names.clone(),
            coarse_names: data.labels.coarse_names.clone(),
            mean: data.mean.clone(),
            std: data.std.clone(),
            skipped_images,
            notes: Notes::default(),
            fingerprint: String::new(),
            shape: [fine.len(), data.side, data.side, data.channels],
            images_at: 0..0,
            fine_at: 0..0,
            coarse_at: 0..0,
            bytes: 0,
        }
    }

    /// Number of images.
    pub(super) fn images(&self) -> u64 {
        self.shape[0] as u64
    }

    /// Whether a pack of this data set and split has this header.
    pub(super) fn describes(&self, data: &DataSet, split: &str) -> bool {
        (self.name.as_str(), self.split.as_str()) == (data.name.as_str(), split)
            && self.shape[1..] == [data.side, data.side, data.channels]
            && self.fine_names == data.labels.fine_names
            && self.coarse_names == data.labels.coarse_names
            && (data.mean.is_empty() || (&self.mean, &self.std) == (&data.mean, &data.std))
    }

    /// The data set as the header describes it; the map from fine to coarse labels is not in it.
    pub(super) fn facts(&self) -> DataSet {
        let [_, side, _, channels] = self.shape;
        DataSet {
            name: self.name.clone(),
            side,
            channels,
            mean: self.mean.clone(),
            std: self.std.clone(),
            labels: Labels {
                fine_names: self.fine_names.clone(),
                coarse_names: self.coarse_names.clone(),
                coarse_of: Vec::new(),
            },
        }
    }

    /// Reads a pack's header, and compares the file's length with it.
    ///
    /// # Errors
    /// If the file is not a pack of this format, or is cut off.
    pub(super) fn read(path: &Path) -> Result<Self, PackFault> {
        let mut file = File::open(path)?;
        let got = file.metadata()?.len();
        let mut length = [0; LENGTH_BYTES as usize];
        if got < LENGTH_BYTES {
            return Err(PackFault::Length { expected: LENGTH_BYTES, got });
        }
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_JSON_BYTES {
            return Err(PackFault::Header(format!(
                "its length is {length} bytes, at most {MAX_JSON_BYTES} are allowed"
            )));
        }
        let tensors_at = LENGTH_BYTES + length;
        if got < tensors_at {
            return Err(PackFault::Length { expected: tensors_at, got });
        }
        let mut text = Vec::new();
        file.take(length).read_to_end(&mut text)?;
        let metadata: Metadata =
            serde_json::from_slice(&text).map_err(|error| PackFault::Header(error.to_string()))?;
        let expected = tensors_at.saturating_add(metadata.data_len() as u64);
        if got != expected {
            return Err(PackFault::Length { expected, got });
        }
        Self::parse(&metadata, tensors_at, got)
    }

    fn parse(metadata: &Metadata, tensors_at: u64, bytes: u64) -> Result<Self, PackFault> {
        let words = Words(metadata.metadata().as_ref());
        let format = words.get("format")?;
        if format != FORMAT.to_string() {
            return Err(PackFault::Format { expected: FORMAT, got: format.to_owned() });
        }
        let (shape, images_at) = tensor(metadata, "images", Dtype::U8, tensors_at)?;
        let &[n, h, w, c] = shape else {
            return Err(PackFault::Header(format!(
                "`images` has shape {shape:?}, expected [N, H, W, C]"
            )));
        };
        if n * h * w * c == 0 {
            return Err(PackFault::Header(format!(
                "`images` has shape {shape:?}: there are no pixels"
            )));
        }
        let labels = |name| {
            let (shape, at) = tensor(metadata, name, Dtype::I64, tensors_at)?;
            if shape == [n] {
                Ok(at)
            } else {
                Err(PackFault::Header(format!("`{name}` is {shape:?}, expected [{n}]")))
            }
        };
        Ok(Self {
            name: words.get("name")?.to_owned(),
            split: words.get("split")?.to_owned(),
            fine_names: words.json("fine_names")?,
            coarse_names: words.json("coarse_names")?,
            mean: words.json("mean")?,
            std: words.json("std")?,
            skipped_images: SkippedImages {
                images: words.json("left_out")?,
                named: words.json("left_out_names")?,
            },
            notes: Notes {
                warnings: if words.get("warnings").is_ok() {
                    words.json("warnings")?
                } else {
                    Vec::new()
                },
                pixels: words.get("pixels").unwrap_or_default().to_owned(),
            },
            fingerprint: words.get("fingerprint")?.to_owned(),
            shape: [n, h, w, c],
            images_at,
            fine_at: labels("fine")?,
            coarse_at: labels("coarse")?,
            bytes,
        })
    }
}

/// The metadata of a header, which is text throughout.
struct Words<'a>(Option<&'a HashMap<String, String>>);

impl Words<'_> {
    fn get(&self, key: &str) -> Result<&str, PackFault> {
        let word = self.0.and_then(|words| words.get(key));
        word.map(String::as_str)
            .ok_or_else(|| PackFault::Header(format!("it has no `{key}`: not a pack")))
    }

    fn json<T: DeserializeOwned>(&self, key: &str) -> Result<T, PackFault> {
        let text = self.get(key)?;
        serde_json::from_str(text)
            .map_err(|_| PackFault::Header(format!("`{key}` is `{text}`, expected other JSON")))
    }
}

/// A tensor's shape, and where it is in the file.
fn tensor<'a>(
    metadata: &'a Metadata,
    name: &str,
    dtype: Dtype,
    tensors_at: u64,
) -> Result<(&'a [usize], Range<u64>), PackFault> {
    let info = metadata
        .info(name)
        .ok_or_else(|| PackFault::Header(format!("it has no tensor `{name}`: not a pack")))?;
    if info.dtype != dtype {
        return Err(PackFault::Header(format!("`{name}` is {:?}, expected {dtype:?}", info.dtype)));
    }
    let (from, to) = info.data_offsets;
    Ok((&info.shape, tensors_at + from as u64..tensors_at + to as u64))
}

/// A header's bytes, with its length before it, for `coarse`, `fine` and `images` in this order
/// after it. Equal data give equal bytes: keys are in a fixed order.
pub(super) fn to_bytes(
    data: &DataSet,
    split: &str,
    skipped_images: &SkippedImages,
    (images, fingerprint): (usize, &str),
    notes: &Notes,
) -> Vec<u8> {
    let labels = 8 * images;
    let (h, w, c) = (data.side, data.side, data.channels);
    let text = |value: Value| value.to_string();
    let mut header = json!({
        "__metadata__": {
            "format": FORMAT.to_string(),
            "name": data.name,
            "split": split,
            "shape": text(json!([h, w, c])),
            "fine_names": text(json!(data.labels.fine_names)),
            "coarse_names": text(json!(data.labels.coarse_names)),
            "mean": text(json!(data.mean)),
            "std": text(json!(data.std)),
            "left_out": skipped_images.images.to_string(),
            "left_out_names": text(json!(skipped_images.named)),
            "fingerprint": fingerprint,
        },
        "coarse": {"dtype": "I64", "shape": [images], "data_offsets": [0, labels]},
        "fine": {"dtype": "I64", "shape": [images], "data_offsets": [labels, 2 * labels]},
        "images": {
            "dtype": "U8",
            "shape": [images, h, w, c],
            "data_offsets": [2 * labels, 2 * labels + images * h * w * c],
        },
    });
    if !notes.warnings.is_empty() {
        header["__metadata__"]["warnings"] = text(json!(notes.warnings)).into();
    }
    if !notes.pixels.is_empty() {
        header["__metadata__"]["pixels"] = notes.pixels.clone().into();
    }
    let mut json = header.to_string().into_bytes();
    // The tensors begin at a multiple of 8, as the format asks; spaces fill the gap.
    json.resize(json.len().next_multiple_of(8), b' ');
    [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
}

/// A header's bytes with spaces after its JSON, so that it ends at `end`; `None` if it is longer.
pub(super) fn padded(mut header: Vec<u8>, end: u64) -> Option<Vec<u8>> {
    let end = usize::try_from(end).ok().filter(|end| *end >= header.len())?;
    header.resize(end, b' ');
    header[..LENGTH_BYTES as usize].copy_from_slice(&(end as u64 - LENGTH_BYTES).to_le_bytes());
    Some(header)
}
