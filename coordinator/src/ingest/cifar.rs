//! The binary version of CIFAR-10: records of a label and 3,072 pixels, a plane a channel
//! (cs.toronto.edu/~kriz/cifar.html). It decodes bytes and knows neither files nor gzip.

use super::Samples;
use super::error::RawFault;

const PLANE: usize = 32 * 32;
const RECORD: usize = 1 + 3 * PLANE;
/// CIFAR-100 has two labels a record.
const CIFAR100_RECORD: usize = RECORD + 1;

/// The images, planes turned to [N, 32, 32, 3] u8, and the labels, each below `classes`.
///
/// # Errors
/// No records, a length that is no whole number of them (CIFAR-100 is recognised by it), or a label out of range.
pub(super) fn decode(content: &[u8], classes: usize) -> Result<Samples, RawFault> {
    let got = content.len() as u64;
    if content.is_empty() {
        return Err(RawFault::Empty);
    }
    if !content.len().is_multiple_of(RECORD) {
        if content.len().is_multiple_of(CIFAR100_RECORD) {
            return Err(RawFault::Cifar100 { got });
        }
        let record = (content.len() / RECORD) as u64;
        return Err(RawFault::PartialRecord { record_bytes: RECORD as u64, record, got });
    }
    let mut fine = Vec::with_capacity(content.len() / RECORD);
    let mut images = Vec::with_capacity(content.len());
    for (record, bytes) in content.chunks_exact(RECORD).enumerate() {
        let (label, planes) = (bytes[0], &bytes[1..]);
        if usize::from(label) >= classes {
            let (offset, most) = ((record * RECORD) as u64, classes as u64 - 1);
            return Err(RawFault::Label { record: record as u64, offset, most, got: i64::from(label) });
        }
        fine.push(i64::from(label));
        images.extend((0..PLANE).flat_map(|pixel| [planes[pixel], planes[PLANE + pixel], planes[2 * PLANE + pixel]]));
    }
    Ok(Samples { images, fine })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_become_pixels() {
        // A red, a green and a blue plane that differ, and within each the number of the pixel.
        let plane = |start: u8| (0..PLANE).map(move |pixel| start.wrapping_add((pixel % 50) as u8));
        let record = |label: u8| [label].into_iter().chain(plane(0)).chain(plane(100)).chain(plane(200));
        let content: Vec<u8> = record(9).chain(record(0)).collect();
        let Samples { images, fine } = decode(&content, 10).unwrap();
        assert_eq!(fine, [9, 0]);
        assert_eq!(images.len(), 2 * 32 * 32 * 3);
        for image in images.chunks_exact(3 * PLANE) {
            for (pixel, rgb) in image.chunks_exact(3).enumerate() {
                let at = (pixel % 50) as u8;
                assert_eq!(rgb, [at, 100 + at, 200 + at], "pixel {pixel}");
            }
        }
    }

    #[test]
    fn bad_files_say_what_is_wrong() {
        let check = |content: &[u8], expected: &str| {
            let error = decode(content, 10).map(|_| ()).unwrap_err().to_string();
            assert_eq!(error, expected);
        };
        check(&[], "it holds no records");
        let partial = "expected a whole number of records of 3073 bytes, got";
        check(&[0; 2 * RECORD - 1], &format!("{partial} 6145 bytes: record 1 is cut off"));
        check(&[0; 2 * RECORD + 1], &format!("{partial} 6147 bytes: record 2 is cut off"));
        check(&[0; 100], &format!("{partial} 100 bytes: record 0 is cut off"));
        let hundred = "6148 bytes are records of 3074 bytes, not 3073: this is CIFAR-100, expected the binary CIFAR-10";
        check(&[0; 2 * CIFAR100_RECORD], hundred);
        let mut labels = [0; 3 * RECORD];
        labels[2 * RECORD] = 10;
        check(&labels, "record 2 at offset 6146: expected a label in 0..=9, got 10");
    }
}
