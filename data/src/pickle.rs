//! Reads a Python pickle as plain data: numbers, texts, lists, tuples, dicts and numpy arrays of
//! bytes. Nothing a pickle asks for is ever run; what it calls is one of five known names or a
//! fault. Its input is untrusted, so depth, steps and the growth of shared values are bounded. It
//! knows bytes only: neither the files they lie in nor the data set they describe.

mod input;
mod machine;
mod node;

use input::Input;
use machine::Machine;
use node::{Id, Node};

/// Containers within containers, and marks within marks.
const MAX_NESTED: usize = 64;
/// Each opcode makes at most one value, one memo entry or one mark, so this bounds memory and time
/// together.
const MAX_OPCODES: usize = 4 << 20;
/// What values shared through the memo may add to a small pickle when each gets its own copy.
const SHARING_ALLOWANCE: usize = 1 << 20;

/// A text and a byte string are both `Bytes`: Python 2 knew no difference, and texts are UTF-8
/// where it matters.
#[derive(Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Array(Array),
}

/// A numpy array of unsigned bytes in C order: the last dimension varies fastest.
#[derive(Debug, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl Value {
    /// The value under a text key; the last one where a key comes twice, as in Python. None if this
    /// is not a dict.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let Value::Dict(pairs) = self else { return None };
        let is_key =
            |found: &Value| matches!(found, Value::Bytes(bytes) if bytes == key.as_bytes());
        pairs.iter().rev().find(|(found, _)| is_key(found)).map(|(_, value)| value)
    }
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum PickleFault {
    #[error("not a pickle: {0}")]
    NoPickle(String),
    #[error("cut off: offset {at} expects {expected} more bytes, {left} are left")]
    CutOff { at: usize, expected: u64, left: usize },
    #[error("cut off: offset {at} begins a line that never ends")]
    OpenLine { at: usize },
    #[error("offset {at}: opcode {opcode:#04x} is not one of a data file")]
    Opcode { at: usize, opcode: u8 },
    #[error(
        "offset {at}: the pickle asks for `{name}`: only numpy arrays, lists, texts and numbers \
        are read"
    )]
    Global { at: usize, name: String },
    #[error("offset {at}: expected {expected}, got {got}")]
    Unexpected { at: usize, expected: String, got: String },
    #[error("offset {at}: more than {max} {what}")]
    TooMuch { at: usize, max: usize, what: &'static str },
    #[error("offset {at}: {count} bytes follow the end of the pickle")]
    Trailing { at: usize, count: usize },
}

type Outcome<T> = Result<T, PickleFault>;

pub(super) fn read(content: &[u8]) -> Outcome<Value> {
    let mut machine = Machine::new(content);
    let root = machine.run()?;
    let byte_budget = content.len().saturating_mul(2).saturating_add(SHARING_ALLOWANCE);
    Unfold { input: &machine.input, nodes: &machine.nodes, values: 0, bytes: 0, byte_budget }
        .value(root, 0)
}

/// Turns nodes into values. A node met twice is copied twice, so what is made is counted before it
/// is made.
struct Unfold<'m, 'a> {
    input: &'m Input<'a>,
    nodes: &'m [Node<'a>],
    values: usize,
    bytes: usize,
    byte_budget: usize,
}

impl Unfold<'_, '_> {
    fn value(&mut self, id: Id, depth: usize) -> Outcome<Value> {
        let nodes = self.nodes;
        Ok(match &nodes[id] {
            Node::None => Value::None,
            Node::Bool(truth) => Value::Bool(*truth),
            Node::Int(number) => Value::Int(*number),
            Node::Float(number) => Value::Float(*number),
            Node::Bytes(bytes) => Value::Bytes(self.copy(bytes)?),
            Node::List(items) => Value::List(self.all(items, depth)?),
            Node::Tuple(items) => Value::Tuple(self.all(items, depth)?),
            Node::Dict(items) => {
                self.enter(items, depth)?;
                let mut pairs = Vec::with_capacity(items.len() / 2);
                for pair in items.chunks_exact(2) {
                    pairs.push((self.value(pair[0], depth + 1)?, self.value(pair[1], depth + 1)?));
                }
                Value::Dict(pairs)
            }
            Node::Array(shape, bytes) => match &nodes[*bytes] {
                Node::Bytes(bytes) => {
                    self.bytes = self.bytes.saturating_add(size_of_val(&shape[..]));
                    Value::Array(Array { bytes: self.copy(bytes)?, shape: shape.clone() })
                }
                other => return Err(self.input.unexpected("bytes of an array", other.kind())),
            },
            other => return Err(self.input.unexpected("values only at the end", other.kind())),
        })
    }

    fn all(&mut self, items: &[Id], depth: usize) -> Outcome<Vec<Value>> {
        self.enter(items, depth)?;
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            values.push(self.value(*item, depth + 1)?);
        }
        Ok(values)
    }

    /// A container that holds itself ends here too: it is deeper than any limit.
    fn enter(&mut self, items: &[Id], depth: usize) -> Outcome<()> {
        if depth == MAX_NESTED {
            return Err(self.input.too_much(MAX_NESTED, "nested values"));
        }
        self.values += items.len();
        match self.values > MAX_OPCODES || self.values.saturating_add(self.bytes) > self.byte_budget
        {
            true => Err(self.input.too_much(
                self.byte_budget.min(MAX_OPCODES),
                "values, counting shared ones each time",
            )),
            false => Ok(()),
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Outcome<Vec<u8>> {
        self.bytes = self.bytes.saturating_add(bytes.len());
        match self.values.saturating_add(self.bytes) > self.byte_budget {
            true => {
                Err(self.input.too_much(self.byte_budget, "bytes, counting shared ones each time"))
            }
            false => Ok(bytes.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests;
