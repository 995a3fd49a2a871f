//! Takes numbers, lengths, texts and lines off the bytes of a pickle, and names the place of what
//! is wrong there. It knows how one operand of an opcode is written; what an opcode does with it is
//! the machine's.

use super::node::{Node, shown};
use super::{Outcome, PickleFault};
use std::borrow::Cow;

const LONGEST_LINE: usize = 1 << 20;

/// The bytes and the place of the opcode being read, which every fault names.
pub(super) struct Input<'a> {
    pub(super) content: &'a [u8],
    pub(super) next: usize,
    pub(super) opcode_at: usize,
}

impl<'a> Input<'a> {
    pub(super) fn unexpected(
        &self,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> PickleFault {
        PickleFault::Unexpected { at: self.opcode_at, expected: expected.into(), got: got.into() }
    }

    pub(super) fn too_much(&self, max: usize, what: &'static str) -> PickleFault {
        PickleFault::TooMuch { at: self.opcode_at, max, what }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.content.get(self.next..).unwrap_or_default()
    }

    /// The claimed length is held against what is left before anything is set aside for it.
    pub(super) fn need(&self, claimed: u64) -> Outcome<usize> {
        let left = self.rest().len();
        let cut_off = PickleFault::CutOff { at: self.next, expected: claimed, left };
        usize::try_from(claimed).ok().filter(|length| *length <= left).ok_or(cut_off)
    }

    pub(super) fn take(&mut self, claimed: u64) -> Outcome<&'a [u8]> {
        let length = self.need(claimed)?;
        let taken = &self.rest()[..length];
        self.next += length;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    pub(super) fn byte(&mut self) -> Outcome<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A little-endian length of N bytes.
    pub(super) fn length<const N: usize>(&mut self) -> Outcome<u64> {
        let bytes = self.array::<N>()?;
        Ok(bytes.iter().rev().fold(0, |length, byte| length << 8 | u64::from(*byte)))
    }

    pub(super) fn counted<const N: usize>(&mut self) -> Outcome<Node<'a>> {
        let length = self.length::<N>()?;
        Ok(Node::Bytes(Cow::Borrowed(self.take(length)?)))
    }

    pub(super) fn line(&mut self) -> Outcome<&'a [u8]> {
        let rest = self.rest();
        match rest.iter().take(LONGEST_LINE + 1).position(|byte| *byte == b'\n') {
            Some(length) => {
                self.next += length + 1;
                Ok(&rest[..length])
            }
            None if rest.len() > LONGEST_LINE => {
                Err(self.too_much(LONGEST_LINE, "bytes in one line"))
            }
            None => Err(PickleFault::OpenLine { at: self.next }),
        }
    }

    pub(super) fn number<T: std::str::FromStr>(&self, line: &[u8], expected: &str) -> Outcome<T> {
        let number = str::from_utf8(line).ok().and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.unexpected(expected, shown(line)))
    }

    /// INT and LONG: Python writes truth values of protocol 0 as the numbers 00 and 01.
    pub(super) fn int_line(&mut self, opcode: u8) -> Outcome<Node<'a>> {
        let line = self.line()?;
        Ok(match (opcode, line) {
            (b'I', b"00") => Node::Bool(false),
            (b'I', b"01") => Node::Bool(true),
            (b'L', [digits @ .., b'L']) => Node::Int(self.number(digits, "a 64-bit integer")?),
            _ => Node::Int(self.number(line, "a 64-bit integer")?),
        })
    }

    /// LONG1: little-endian two's complement of any length.
    pub(super) fn long(&mut self) -> Outcome<i64> {
        let length = self.length::<1>()?;
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Err(
                self.unexpected("a 64-bit integer", format!("one of {} bytes", bytes.len()))
            );
        }
        let negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(wide))
    }

    /// STRING: a Python 2 literal in quotes, with the escapes that Python 2 itself writes.
    pub(super) fn quoted_line(&mut self) -> Outcome<Node<'a>> {
        let line = self.line()?;
        let no_literal = || self.unexpected("a quoted string", shown(line));
        let inner = match line {
            [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
            _ => return Err(no_literal()),
        };
        if !inner.contains(&b'\\') {
            return Ok(Node::Bytes(Cow::Borrowed(inner)));
        }
        let mut text = Vec::with_capacity(inner.len());
        let mut bytes = inner.iter();
        while let Some(byte) = bytes.next() {
            text.push(match (*byte == b'\\').then(|| bytes.next()) {
                None => *byte,
                Some(Some(b'n')) => b'\n',
                Some(Some(b'r')) => b'\r',
                Some(Some(b't')) => b'\t',
                Some(Some(b'x')) => hex(&mut bytes, 2)
                    .and_then(|code| code.try_into().ok())
                    .ok_or_else(no_literal)?,
                Some(Some(same @ (b'\\' | b'\'' | b'"'))) => *same,
                Some(_) => return Err(no_literal()),
            });
        }
        Ok(Node::Bytes(Cow::Owned(text)))
    }

    /// UNICODE: Latin-1 bytes, with \uXXXX and \UXXXXXXXX for the other characters; it becomes
    /// UTF-8.
    pub(super) fn unicode_line(&mut self) -> Outcome<Node<'a>> {
        let line = self.line()?;
        let mut text = String::with_capacity(line.len());
        let mut bytes = line.iter();
        while let Some(byte) = bytes.next() {
            let digits = match (*byte, bytes.as_slice().first()) {
                (b'\\', Some(b'u')) => 4,
                (b'\\', Some(b'U')) => 8,
                _ => {
                    text.push(char::from(*byte));
                    continue;
                }
            };
            bytes.next();
            let character = hex(&mut bytes, digits).and_then(char::from_u32);
            text.push(
                character.ok_or_else(|| {
                    self.unexpected("a string with complete escapes", shown(line))
                })?,
            );
        }
        Ok(Node::Bytes(Cow::Owned(text.into_bytes())))
    }
}

fn hex(bytes: &mut std::slice::Iter<u8>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0, |code, _| Some(code << 4 | char::from(*bytes.next()?).to_digit(16)?))
}
