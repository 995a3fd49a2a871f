//! A pack's header: what a file of images and labels records about them, as safetensors JSON, and
//! the labels. `thanos-data` writes packs; it and the workers read them.

use crate::pack_fault::PackFault;
use safetensors::tensor::{Dtype, Metadata};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Version of packs: of the file, of the decoders (a pixel that they give otherwise), and of the
/// fingerprint.
pub const PACK_FORMAT: u32 = 2;

/// Maximum length of the JSON, the spaces after it included.
const MAX_JSON_BYTES: u64 = 64 << 20;
/// The JSON's length comes first, u64 little-endian.
const LENGTH_BYTES: u64 = 8;
/// Of a label, which is i64.
const LABEL_BYTES: usize = 8;

/// An image that could not be decoded and was skipped, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub name: String,
    pub reason: String,
}

/// Images that could not be decoded and are not in the pack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SkippedImages {
    pub images: u64,
    /// The first of them.
    pub named: Vec<Skipped>,
}

/// What a header has in addition to what its fingerprint covers. Empty ones have no key; older
/// packs have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackNotes {
    /// What is unusual about the images, a sentence each.
    pub warnings: Vec<String>,
    /// What the images were decoded from and how, whatever their coarse labels: a SHA-256 in
    /// hexadecimal.
    pub pixels: String,
}

/// What a pack records about itself.
#[derive(Clone, Debug, Default)]
pub struct PackHeader {
    /// Of the data set.
    pub name: String,
    /// `train` or `test`.
    pub split: String,
    pub fine_names: Vec<String>,
    pub coarse_names: Vec<String>,
    /// Per channel, of pixels in [0, 1].
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
    pub skipped_images: SkippedImages,
    pub notes: PackNotes,
    /// SHA-256 over header, images and labels, in hexadecimal; empty before it is known.
    pub fingerprint: String,
    /// N, H, W, C.
    pub shape: [usize; 4],
    /// Where the tensors are in the file, in bytes; empty in a header that was not read from one.
    pub images_at: Range<u64>,
    pub fine_at: Range<u64>,
    pub coarse_at: Range<u64>,
    /// Length of the whole file; 0 in a header that was not read from one.
    pub bytes: u64,
}

impl PackHeader {
    /// Number of images.
    pub fn images(&self) -> u64 {
        self.shape[0] as u64
    }

    /// Reads a pack's header, and compares the file's length with it.
    ///
    /// # Errors
    /// If the file is not a pack of this format, or is cut off.
    pub fn read(path: &Path) -> Result<Self, PackFault> {
        Self::read_from(&File::open(path)?)
    }

    /// The same of an open file, from its beginning.
    ///
    /// # Errors
    /// As [`PackHeader::read`].
    pub fn read_from(mut file: &File) -> Result<Self, PackFault> {
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

    /// A header's bytes, with its length before it, for `coarse`, `fine` and `images` in this order
    /// after it. Equal headers give equal bytes: keys are in a fixed order.
    pub fn to_bytes(&self) -> Vec<u8> {
        let [images, h, w, c] = self.shape;
        let labels = LABEL_BYTES * images;
        let text = |value: Value| value.to_string();
        let mut header = json!({
            "__metadata__": {
                "format": PACK_FORMAT.to_string(),
                "name": self.name,
                "split": self.split,
                "shape": text(json!([h, w, c])),
                "fine_names": text(json!(self.fine_names)),
                "coarse_names": text(json!(self.coarse_names)),
                "mean": text(json!(self.mean)),
                "std": text(json!(self.std)),
                "left_out": self.skipped_images.images.to_string(),
                "left_out_names": text(json!(self.skipped_images.named)),
                "fingerprint": self.fingerprint,
            },
            "coarse": {"dtype": "I64", "shape": [images], "data_offsets": [0, labels]},
            "fine": {"dtype": "I64", "shape": [images], "data_offsets": [labels, 2 * labels]},
            "images": {
                "dtype": "U8",
                "shape": [images, h, w, c],
                "data_offsets": [2 * labels, 2 * labels + images * h * w * c],
            },
        });
        if !self.notes.warnings.is_empty() {
            header["__metadata__"]["warnings"] = text(json!(self.notes.warnings)).into();
        }
        if !self.notes.pixels.is_empty() {
            header["__metadata__"]["pixels"] = self.notes.pixels.clone().into();
        }
        let mut json = header.to_string().into_bytes();
        // The tensors begin at a multiple of 8, as the format asks; spaces fill the gap.
        json.resize(json.len().next_multiple_of(8), b' ');
        [&(json.len() as u64).to_le_bytes(), json.as_slice()].concat()
    }

    /// The same with spaces after the JSON, so that it ends at `end`; `None` if it is longer.
    pub fn to_bytes_until(&self, end: u64) -> Option<Vec<u8>> {
        let mut header = self.to_bytes();
        let length = usize::try_from(end).ok().filter(|length| *length >= header.len())?;
        header.resize(length, b' ');
        header[..LENGTH_BYTES as usize].copy_from_slice(&(end - LENGTH_BYTES).to_le_bytes());
        Some(header)
    }

    /// The fine labels of the file that the header is of, [N].
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_fine(&self, file: &File) -> io::Result<Vec<i64>> {
        read_labels(file, &self.fine_at)
    }

    /// The coarse labels, [N].
    ///
    /// # Errors
    /// As [`PackHeader::read_fine`].
    pub fn read_coarse(&self, file: &File) -> io::Result<Vec<i64>> {
        read_labels(file, &self.coarse_at)
    }

    fn parse(metadata: &Metadata, tensors_at: u64, bytes: u64) -> Result<Self, PackFault> {
        let words = Words(metadata.metadata().as_ref());
        let format = words.get("format")?;
        if format != PACK_FORMAT.to_string() {
            return Err(PackFault::Format { expected: PACK_FORMAT, got: format.to_owned() });
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
            notes: PackNotes {
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

fn read_labels(file: &File, at: &Range<u64>) -> io::Result<Vec<i64>> {
    let mut bytes = vec![0; (at.end - at.start) as usize];
    file.read_exact_at(&mut bytes, at.start)?;
    Ok(bytes.as_chunks::<LABEL_BYTES>().0.iter().map(|label| i64::from_le_bytes(*label)).collect())
}
