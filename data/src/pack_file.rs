//! Packs on disk: written whole or not at all, read back, and checked against their fingerprint.
//! It knows the tensors' bytes; what the header says is `thanos_formats`', raw files are others'.

use super::error::DataError;
use super::moments::Moments;
use super::pack_header;
use super::samples::{Decoded, Split};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::NamedTempFile;
use thanos_configs::{DataSet, hex};
use thanos_formats::{PackFault, PackHeader, PackNotes, SkippedImages};

/// Bytes of the two labels of an image.
const LABELS_OF_AN_IMAGE: u64 = 16;
/// Bytes of images that are read at once.
const READ_BYTES: u64 = 4 << 20;
/// Room in front of the labels for what a header has more than when it was begun: a fingerprint,
/// mean and std.
const ROOM: usize = 2 << 10;
/// The same for the names of images that are skipped.
const ROOM_FOR_NAMES: usize = 64 << 10;

/// SHA-256 over images, fine and coarse labels, and the header without its fingerprint, all numbers
/// little-endian; `hash` has the images already.
fn fingerprint(mut hash: Sha256, header: &PackHeader, labels: [&[i64]; 2]) -> String {
    labels.iter().for_each(|labels| hash.update(to_le_bytes(labels)));
    let (fingerprint, notes) = (String::new(), PackNotes::default());
    hash.update(PackHeader { fingerprint, notes, ..header.clone() }.to_bytes());
    hex(&hash.finalize())
}

/// Where a decoder puts images: into an unfinished pack, next to its final name, so that no reader
/// sees a part of one and a second writer does no harm. Images are written as they come, and not
/// kept; what stands in front of them is written at the end, into room that was left for it.
/// Dropped unfinished, it removes its file.
pub(super) struct Sink<'a> {
    path: &'a Path,
    data: &'a DataSet,
    split: Split,
    /// Once it is known how many images may come.
    begun: Option<Begun>,
}

struct Begun {
    file: NamedTempFile,
    images_at: u64,
    hash: Sha256,
    /// Where mean and std are to be measured.
    moments: Option<Moments>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(path: &'a Path, data: &'a DataSet, split: Split) -> Self {
        Self { path, data, split, begun: None }
    }

    /// So many images may come, and `names` of ones that do not. Makes the folder if needed.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub(super) fn expect(&mut self, max_images: usize, names: bool) -> Result<(), DataError> {
        let room = if names { ROOM + ROOM_FOR_NAMES } else { ROOM };
        let begun = begin(self.path, self.data, self.split, (max_images, room))
            .map_err(|error| self.cannot(error))?;
        self.begun = Some(begun);
        Ok(())
    }

    /// Appends images, [n, H, W, C].
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn images(&mut self, pixels: &[u8]) -> Result<(), DataError> {
        let begun = self
            .begun
            .as_mut()
            .expect("a decoder says how many images may come before it brings one");
        begun.hash.update(pixels);
        if let Some(moments) = &mut begun.moments {
            moments.add(pixels);
        }
        begun.file.write_all(pixels).map_err(|error| self.cannot(error))
    }

    /// Writes labels and header, and gives the pack its name. Mean and std that are not known are
    /// the images'. The header that was written comes back.
    ///
    /// # Errors
    /// If anything cannot be written.
    pub(super) fn finish(mut self, decoded: Decoded) -> Result<PackHeader, DataError> {
        let begun = self.begun.take().expect("a decoder brings images");
        let mut data = self.data.clone();
        if let Some(moments) = &begun.moments {
            (data.mean, data.std) = moments.mean_and_std();
            // A channel that is the same everywhere has nothing to scale by.
            data.std.iter_mut().filter(|std| **std == 0.0).for_each(|std| *std = 1.0);
        }
        finish(begun, self.path, (&data, self.split), decoded).map_err(|error| self.cannot(error))
    }

    fn cannot(&self, source: io::Error) -> DataError {
        DataError::Write { path: self.path.into(), source }
    }
}

fn begin(
    path: &Path,
    data: &DataSet,
    split: Split,
    (max_images, room): (usize, usize),
) -> io::Result<Begun> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(".pack-")
        .suffix(".tmp")
        // Less the umask, as for any file: a temporary one is its owner's alone, but workers may be
        // another user's.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    let header = pack_header::of(data, split.name(), max_images).to_bytes();
    let images_at =
        (header.len() + room).next_multiple_of(8) as u64 + LABELS_OF_AN_IMAGE * max_images as u64;
    file.seek(SeekFrom::Start(images_at))?;
    let moments = data.mean.is_empty().then(|| Moments::new(data.channels));
    Ok(Begun { file, images_at, hash: Sha256::new(), moments })
}

fn finish(
    begun: Begun,
    path: &Path,
    (data, split): (&DataSet, Split),
    decoded: Decoded,
) -> io::Result<PackHeader> {
    let Begun { mut file, images_at, hash, .. } = begun;
    let Decoded { fine, skipped, warnings, pixels } = decoded;
    let coarse: Vec<i64> = fine.iter().map(|fine| data.labels.coarse_of[*fine as usize]).collect();
    let labels_at = images_at - LABELS_OF_AN_IMAGE * fine.len() as u64;
    // As many names of images that were skipped as there is room for; all are counted.
    let mut header = PackHeader {
        skipped_images: SkippedImages { images: skipped.len() as u64, named: skipped },
        notes: PackNotes { pixels, ..PackNotes::default() },
        ..pack_header::of(data, split.name(), fine.len())
    };
    let fingerprint_bytes = 2 * Sha256::output_size();
    let fits =
        |header: &PackHeader| header.to_bytes().len() + fingerprint_bytes <= labels_at as usize;
    while !fits(&header) && !header.skipped_images.named.is_empty() {
        header.skipped_images.named.truncate(header.skipped_images.named.len() / 2);
    }
    header.notes.warnings = warnings;
    while !fits(&header) && header.notes.warnings.pop().is_some() {}
    header.fingerprint = fingerprint(hash, &header, [&fine, &coarse]);
    let bytes = header.to_bytes_until(labels_at).ok_or_else(|| {
        io::Error::other(format!("its header needs more than the {labels_at} bytes left for it"))
    })?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&bytes)?;
    file.write_all(&to_le_bytes(&coarse))?;
    file.write_all(&to_le_bytes(&fine))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    PackHeader::read(path).map_err(|fault| io::Error::other(format!("it was written, but {fault}")))
}

/// The labels of a pack.
pub(super) struct PackLabels {
    /// [N].
    pub(super) fine: Vec<i64>,
    /// [N].
    pub(super) coarse: Vec<i64>,
}

/// Reads a pack's header and labels, without checking its fingerprint.
///
/// # Errors
/// If it is not a pack, or cut off.
pub(super) fn read_labels(path: &Path) -> Result<(PackHeader, PackLabels), PackFault> {
    let file = File::open(path)?;
    let header = PackHeader::read_from(&file)?;
    let labels = PackLabels { fine: header.read_fine(&file)?, coarse: header.read_coarse(&file)? };
    Ok((header, labels))
}

/// The fine labels of a pack, without its images.
///
/// # Errors
/// As [`read_labels`].
pub(super) fn read_fine(path: &Path) -> Result<Vec<i64>, PackFault> {
    let file = File::open(path)?;
    Ok(PackHeader::read_from(&file)?.read_fine(&file)?)
}

/// The images of a pack, which may be larger than memory.
pub(super) struct Images {
    file: File,
    at: Range<u64>,
    image_bytes: u64,
}

impl Images {
    /// # Errors
    /// As [`read_labels`].
    pub(super) fn open(path: &Path) -> Result<Self, PackFault> {
        let file = File::open(path)?;
        let header = PackHeader::read_from(&file)?;
        let image_bytes = header.shape[1..].iter().product::<usize>() as u64;
        Ok(Self { file, at: header.images_at, image_bytes })
    }

    /// One image, [H, W, C]; `id` is below their number.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn image(&mut self, id: u64) -> Result<Vec<u8>, PackFault> {
        let from = self.at.start + id * self.image_bytes;
        Ok(read_tensor(&mut self.file, &(from..from + self.image_bytes))?)
    }

    /// Gives all images to `take`, in order, some whole ones at a time.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn each(&mut self, mut take: impl FnMut(&[u8])) -> Result<(), PackFault> {
        let step = self.image_bytes * (READ_BYTES / self.image_bytes).max(1);
        let mut from = self.at.start;
        while from < self.at.end {
            let to = (from + step).min(self.at.end);
            take(&read_tensor(&mut self.file, &(from..to))?);
            from = to;
        }
        Ok(())
    }
}

fn read_tensor(file: &mut File, at: &Range<u64>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; (at.end - at.start) as usize];
    file.seek(SeekFrom::Start(at.start))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Recomputes the fingerprint.
///
/// # Errors
/// As [`read_labels`], and if the header names another fingerprint.
pub(super) fn verify(path: &Path) -> Result<(), PackFault> {
    let (header, labels) = read_labels(path)?;
    let mut hash = Sha256::new();
    Images::open(path)?.each(|images| hash.update(images))?;
    let got = fingerprint(hash, &header, [&labels.fine, &labels.coarse]);
    if got == header.fingerprint {
        return Ok(());
    }
    Err(PackFault::Fingerprint { expected: header.fingerprint, got })
}

fn to_le_bytes(labels: &[i64]) -> Vec<u8> {
    labels.iter().flat_map(|label| label.to_le_bytes()).collect()
}
