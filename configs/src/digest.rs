//! How digests are written: one way for configurations, samples, packs, checkpoints and weights. It
//! opens no file.

use sha2::{Digest, Sha256};
use std::io::{self, Read};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// Bytes as lower-case hexadecimal digits, two a byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Length and SHA-256 of all that is left to read.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_of(mut from: impl Read) -> io::Result<(u64, String)> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match from.read(&mut chunk)? {
            0 => return Ok((bytes, hex(&hash.finalize()))),
            read => {
                hash.update(&chunk[..read]);
                bytes += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_two_digits() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
        assert_eq!(hex(&[]), "");
    }

    #[test]
    fn every_chunk_is_in_the_digest() {
        for bytes in [0, 1, CHUNK, CHUNK + 1] {
            let content = vec![7; bytes];
            assert_eq!(
                sha256_of(&*content).expect("read"),
                (bytes as u64, hex(&Sha256::digest(&content)))
            );
        }
    }
}
