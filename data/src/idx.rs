//! IDX, the format of MNIST and Fashion-MNIST: a big-endian header, then one byte a pixel or label
//! (yann.lecun.com/exdb/mnist). It decodes bytes and knows neither files nor gzip.

use super::error::RawFault;

const IMAGES_MAGIC: u32 = 0x803;
const LABELS_MAGIC: u32 = 0x801;
const IMAGES_HEADER: usize = 16;
const LABELS_HEADER: usize = 8;

/// The pixels of an images file, [N, side, side] u8 as stored; `side` in pixels.
///
/// # Errors
/// Another magic number or side, no images, or a length that is not what the header promises.
pub(super) fn images(content: &[u8], side: usize) -> Result<&[u8], RawFault> {
    let header = header::<IMAGES_HEADER>(content)?;
    check_magic(&header, "images", IMAGES_MAGIC)?;
    let (rows, columns) = (word(&header, 8), word(&header, 12));
    if (rows as usize, columns as usize) != (side, side) {
        return Err(RawFault::Sides { side: side as u32, rows, columns });
    }
    body(content, IMAGES_HEADER, word(&header, 4), side * side)
}

/// The labels of a labels file, [N], each below `classes`.
///
/// # Errors
/// As [`images`], and a label out of range.
pub(super) fn labels(content: &[u8], classes: usize) -> Result<Vec<i64>, RawFault> {
    let header = header::<LABELS_HEADER>(content)?;
    check_magic(&header, "labels", LABELS_MAGIC)?;
    let labels = body(content, LABELS_HEADER, word(&header, 4), 1)?;
    if let Some(record) = labels.iter().position(|&label| usize::from(label) >= classes) {
        let offset = (LABELS_HEADER + record) as u64;
        let (max, got) = (classes as u64 - 1, i64::from(labels[record]));
        return Err(RawFault::Label { record: record as u64, offset, max, got });
    }
    Ok(labels.iter().copied().map(i64::from).collect())
}

fn header<const N: usize>(content: &[u8]) -> Result<[u8; N], RawFault> {
    content
        .first_chunk()
        .copied()
        .ok_or(RawFault::HeaderCutOff { expected: N as u64, got: content.len() as u64 })
}

fn check_magic(header: &[u8], what: &'static str, expected: u32) -> Result<(), RawFault> {
    let got = word(header, 0);
    if got == expected { Ok(()) } else { Err(RawFault::Magic { what, expected, got }) }
}

/// The big-endian word at an offset within a header.
fn word(header: &[u8], offset: usize) -> u32 {
    header[offset..offset + 4].iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn body(
    content: &[u8],
    header_bytes: usize,
    records: u32,
    record_bytes: usize,
) -> Result<&[u8], RawFault> {
    if records == 0 {
        return Err(RawFault::Empty);
    }
    let expected = header_bytes as u64 + u64::from(records) * record_bytes as u64;
    let got = content.len() as u64;
    if got != expected {
        return Err(RawFault::Length { records: u64::from(records), expected, got });
    }
    Ok(&content[header_bytes..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(words: &[u32], body: &[u8]) -> Vec<u8> {
        let header = words.iter().flat_map(|word| word.to_be_bytes());
        header.chain(body.iter().copied()).collect()
    }

    #[test]
    fn good_files_are_read() {
        let pixels: Vec<u8> = (0..18).collect();
        assert_eq!(images(&file(&[0x803, 2, 3, 3], &pixels), 3).unwrap(), pixels);
        assert_eq!(labels(&file(&[0x801, 3], &[9, 0, 4]), 10).unwrap(), [9, 0, 4]);
    }

    #[test]
    fn bad_images_say_what_is_wrong() {
        let check = |words: &[u32], body: usize, expected: &str| {
            let error = images(&file(words, &vec![0; body]), 3).unwrap_err().to_string();
            assert_eq!(error, expected);
        };
        let magic = "offset 0: expected magic number 0x00000803 (IDX images), got 0x00000801";
        check(&[0x801, 2, 3, 3], 18, magic);
        check(&[0x803, 2, 3, 4], 24, "offset 8: expected images of 3 x 3 pixels, got 3 x 4");
        check(&[0x803, 0, 3, 3], 0, "it holds no records");
        let promise = "its header declares 2 records, which is 34 bytes in all, got";
        check(&[0x803, 2, 3, 3], 17, &format!("{promise} 33 bytes"));
        check(&[0x803, 2, 3, 3], 19, &format!("{promise} 35 bytes"));
        let max = "its header declares 4294967295 records, which is 38654705671 bytes in all, got \
            34 bytes";
        check(&[0x803, u32::MAX, 3, 3], 18, max);
        check(&[0x803, 2, 3], 3, "its header is cut off: expected 16 bytes, got 15");
        check(&[], 0, "its header is cut off: expected 16 bytes, got 0");
    }

    #[test]
    fn bad_labels_say_what_is_wrong() {
        let check = |words: &[u32], body: &[u8], expected: &str| {
            let error = labels(&file(words, body), 10).unwrap_err().to_string();
            assert_eq!(error, expected);
        };
        let magic = "offset 0: expected magic number 0x00000801 (IDX labels), got 0x00000803";
        check(&[0x803, 3], &[1, 2, 3], magic);
        check(&[0x801, 3], &[1, 2, 10], "record 2 at offset 10: expected a label in 0..=9, got 10");
        check(
            &[0x801, 3],
            &[1, 2],
            "its header declares 3 records, which is 11 bytes in all, got 10 bytes",
        );
        check(
            &[0x801, 3],
            &[1, 2, 3, 4],
            "its header declares 3 records, which is 11 bytes in all, got 12 bytes",
        );
        check(&[0x801, 0], &[], "it holds no records");
        check(&[0x801], &[0, 0], "its header is cut off: expected 8 bytes, got 6");
    }
}
