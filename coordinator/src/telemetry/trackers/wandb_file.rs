//! The file of an offline run of Weights & Biases, as their client writes and reads it: seven bytes
//! of header, then LevelDB's log format (github.com/google/leveldb, doc/log_format.md) with CRC-32
//! as zlib has it, each record a protobuf `Record`. The messages are those fields of
//! `wandb_internal.proto` (PyPI wandb 0.31, MIT) that a run needs.

use prost::{Message, Oneof};

/// What the file begins with: magic, and version 0.
const HEADER: [u8; 7] = [b':', b'W', b'&', b'B', 0xe1, 0xbe, 0];
const BLOCK_BYTES: usize = 32 << 10;
/// Checksum, length and kind before each fragment of a record.
const FRAGMENT_HEADER_BYTES: usize = 7;

/// Kinds of fragments.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Record {
    /// Counted in the file, from 1.
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
    #[prost(oneof = "Content", tags = "2, 3, 17, 18, 21")]
    pub(super) content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Content {
    #[prost(message, tag = "2")]
    History(History),
    #[prost(message, tag = "3")]
    Summary(Summary),
    #[prost(message, tag = "17")]
    Run(Run),
    #[prost(message, tag = "18")]
    Exit(Exit),
    #[prost(message, tag = "21")]
    Header(Header),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct History {
    #[prost(message, repeated, tag = "1")]
    pub(super) item: Vec<Item>,
    #[prost(message, optional, tag = "2")]
    pub(super) step: Option<HistoryStep>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct HistoryStep {
    #[prost(int64, tag = "1")]
    pub(super) num: i64,
}

/// Of a configuration, a line of the history or the summary.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Item {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(string, tag = "16")]
    pub(super) value_json: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Config {
    #[prost(message, repeated, tag = "1")]
    pub(super) update: Vec<Item>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Run {
    #[prost(string, tag = "1")]
    pub(super) run_id: String,
    #[prost(string, tag = "2")]
    pub(super) entity: String,
    #[prost(string, tag = "3")]
    pub(super) project: String,
    #[prost(message, optional, tag = "4")]
    pub(super) config: Option<Config>,
    #[prost(string, tag = "6")]
    pub(super) run_group: String,
    #[prost(string, tag = "8")]
    pub(super) display_name: String,
    #[prost(string, repeated, tag = "10")]
    pub(super) tags: Vec<String>,
    #[prost(string, tag = "13")]
    pub(super) host: String,
    #[prost(int64, tag = "14")]
    pub(super) starting_step: i64,
    #[prost(message, optional, tag = "17")]
    pub(super) start_time: Option<Timestamp>,
}

/// `google.protobuf.Timestamp`, since 1970.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Exit {
    #[prost(int32, tag = "1")]
    pub(super) exit_code: i32,
    #[prost(int32, tag = "2")]
    pub(super) runtime: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Header {
    #[prost(message, optional, tag = "1")]
    pub(super) version_info: Option<VersionInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct VersionInfo {
    #[prost(string, tag = "1")]
    pub(super) producer: String,
    #[prost(string, tag = "2")]
    pub(super) min_consumer: String,
}

/// Makes the bytes of a file, from its start.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoder {
    /// Bytes of the file so far.
    position: usize,
    records: i64,
}

impl Encoder {
    /// The bytes that add these records to the file.
    pub(super) fn encode(&mut self, contents: impl IntoIterator<Item = Content>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.position == 0 {
            bytes.extend(HEADER);
        }
        for content in contents {
            self.records += 1;
            let record = Record { num: self.records, content: Some(content) };
            self.fragments(&record.encode_to_vec(), &mut bytes);
        }
        self.position += bytes.len();
        bytes
    }

    /// One record, in as many fragments as blocks that it is in.
    fn fragments(&self, mut rest: &[u8], bytes: &mut Vec<u8>) {
        let mut is_first = true;
        loop {
            let left = BLOCK_BYTES - (self.position + bytes.len()) % BLOCK_BYTES;
            if left < FRAGMENT_HEADER_BYTES {
                bytes.extend(std::iter::repeat_n(0, left));
                continue;
            }
            let (now, later) = rest.split_at(rest.len().min(left - FRAGMENT_HEADER_BYTES));
            let kind = match (is_first, later.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, true) => LAST,
                (false, false) => MIDDLE,
            };
            let length = u16::try_from(now.len()).expect("a block is shorter than 64 KiB");
            bytes.extend(checksum(kind, now).to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.push(kind);
            bytes.extend(now);
            if later.is_empty() {
                return;
            }
            (is_first, rest) = (false, later);
        }
    }
}

/// What a file holds up to the first record that is damaged or cut off.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Decoded {
    pub(super) records: Vec<Record>,
    /// Bytes of the file up to the end of the last of them.
    pub(super) len: usize,
}

pub(super) fn decode(bytes: &[u8]) -> Decoded {
    let (mut decoded, mut record, mut position) = (Decoded::default(), Vec::new(), HEADER.len());
    if !bytes.starts_with(&HEADER) {
        return decoded;
    }
    loop {
        let left = BLOCK_BYTES - position % BLOCK_BYTES;
        if left < FRAGMENT_HEADER_BYTES {
            position += left;
        }
        let Some((header, rest)) =
            bytes.get(position..).and_then(<[u8]>::split_first_chunk::<FRAGMENT_HEADER_BYTES>)
        else {
            return decoded;
        };
        let [a, b, c, d, low, high, kind] = *header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some(fragment) = rest.get(..length) else { return decoded };
        if checksum(kind, fragment) != u32::from_le_bytes([a, b, c, d]) {
            return decoded;
        }
        record.extend(fragment);
        position += FRAGMENT_HEADER_BYTES + length;
        if kind == FULL || kind == LAST {
            let Ok(complete) = Record::decode(&record[..]) else { return decoded };
            decoded.records.push(complete);
            decoded.len = position;
            record.clear();
        }
    }
}

/// Over the kind and the content of a fragment.
fn checksum(kind: u8, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(content);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(length: usize) -> Content {
        let item = Item { key: "a".into(), value_json: "1".repeat(length) };
        Content::History(History { item: vec![item], step: Some(HistoryStep { num: 3 }) })
    }

    #[test]
    fn what_is_encoded_is_decoded_across_blocks_and_without_what_is_cut_off() {
        // Ends of records at every distance from the end of a block, and one over three blocks.
        let lengths = (32_600..32_720).chain([10, 70_000, 5]);
        let mut encoder = Encoder::default();
        let mut bytes = Vec::new();
        for length in lengths.clone() {
            bytes.extend(encoder.encode([history(length)]));
        }
        let Decoded { records: decoded, len } = decode(&bytes);
        assert_eq!(len, bytes.len());
        let contents: Vec<Option<Content>> =
            decoded.iter().map(|record| record.content.clone()).collect();
        assert_eq!(contents, lengths.map(|length| Some(history(length))).collect::<Vec<_>>());
        assert_eq!(decoded.last().map(|record| record.num), Some(123));
        let cut = decode(&bytes[..bytes.len() - 1]);
        assert_eq!(
            (cut.records.len(), decode(&bytes[..cut.len])),
            (122, decode(&bytes[..cut.len + 3]))
        );
        *bytes.last_mut().expect("not empty") ^= 1;
        assert_eq!(decode(&bytes).records.len(), 122);
        assert_eq!(decode(b"something else"), Decoded::default());
    }

    /// Python: `zlib.crc32(b"\x01ab")`.
    #[test]
    fn a_file_begins_with_its_header_and_a_record_with_its_checksum() {
        assert_eq!(checksum(FULL, b"ab"), 0x21d9_e9b7);
        let bytes = Encoder::default().encode([history(1)]);
        assert_eq!(bytes[..7], *b":W&B\xe1\xbe\x00");
        assert_eq!(usize::from(bytes[11]), bytes.len() - 14);
    }
}
