//! The stack machine a pickle is a program for, with every opcode that makes more than plain data
//! omitted. It builds nodes that point at each other and at the input; how they unfold into values
//! it does not know.

use super::input::Input;
use super::node::{Global, Id, Node, shortened};
use super::{MAX_NESTED, MAX_OPCODES, Outcome, PickleFault};
use std::borrow::Cow;
use std::collections::HashMap;

/// Far more than images need. Arrays can share one shape in the pickle, yet each keeps its own
/// copy.
const MAX_DIMENSIONS: usize = 8;

pub(super) struct Machine<'a> {
    pub(super) input: Input<'a>,
    pub(super) nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack; nothing below the last one can be taken before that mark is.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes of text put through `_codecs.encode` so far, which a pickle could ask for again and
    /// again.
    decoded: usize,
}

impl<'a> Machine<'a> {
    pub(super) fn new(content: &'a [u8]) -> Self {
        let input = Input { content, next: 0, opcode_at: 0 };
        let (nodes, stack, marks, memo) = (Vec::new(), Vec::new(), Vec::new(), HashMap::new());
        Machine { input, nodes, stack, marks, memo, decoded: 0 }
    }

    /// Runs to the end and gives the place of the one value the pickle leaves.
    pub(super) fn run(&mut self) -> Outcome<Id> {
        if self.input.content.is_empty() {
            return Err(PickleFault::NoPickle("it is empty".to_string()));
        }
        for _ in 0..MAX_OPCODES {
            self.input.opcode_at = self.input.next;
            match self.input.byte()? {
                b'.' => return self.stop(),
                opcode => self.step(opcode)?,
            }
        }
        self.input.opcode_at = self.input.next;
        Err(self.input.too_much(MAX_OPCODES, "opcodes"))
    }

    fn stop(&self) -> Outcome<Id> {
        let count = self.input.rest().len();
        match (&self.stack[..], &self.marks[..]) {
            ([root], []) if count == 0 => Ok(*root),
            ([_], []) => Err(PickleFault::Trailing { at: self.input.next, count }),
            (values, marks) => {
                let got = format!("{} and {} open marks", values.len(), marks.len());
                Err(self.input.unexpected("one value at the end", got))
            }
        }
    }

    fn step(&mut self, opcode: u8) -> Outcome<()> {
        if let Some(node) = self.scalar(opcode)? {
            self.push(node);
            return Ok(());
        }
        match opcode {
            0x80 => self.protocol(), // PROTO
            0x95 => self.input.length::<8>().and_then(|length| self.input.need(length)).map(drop),
            // FRAME
            b'(' | b'0' | b'1' | b't' | b'l' | b'd' | 0x85..=0x87 | b'a' | b'e' | b's' | b'u' => {
                self.gather(opcode)
            }
            b'p' | b'q' | b'r' | 0x94 => {
                let key = self.memo_key(opcode)?;
                let top = self.top()?;
                self.memo.insert(key, top);
                Ok(())
            }
            b'g' | b'h' | b'j' => {
                let key = self.memo_key(opcode)?;
                let missing = || {
                    self.input
                        .unexpected("a memo entry", format!("number {key}, which was never put"))
                };
                self.stack.push(*self.memo.get(&key).ok_or_else(missing)?);
                Ok(())
            }
            b'c' => {
                let module = self.input.line()?;
                let name = self.input.line()?;
                self.push(Node::Global(self.global(module, name)?));
                Ok(())
            }
            0x93 => {
                // STACK_GLOBAL
                let (name, module) = (self.pop()?, self.pop()?);
                self.push(Node::Global(self.global(self.text(module)?, self.text(name)?)?));
                Ok(())
            }
            b'R' => self.reduce(),
            b'b' => self.build(),
            _ if self.input.opcode_at == 0 => {
                let start = self.input.content.iter().take(4).map(|byte| format!("{byte:02x}"));
                Err(PickleFault::NoPickle(format!(
                    "it begins with 0x{}",
                    start.collect::<String>()
                )))
            }
            _ => Err(PickleFault::Opcode { at: self.input.opcode_at, opcode }),
        }
    }

    fn protocol(&mut self) -> Outcome<()> {
        match self.input.byte()? {
            0..=5 => Ok(()),
            other => Err(self.input.unexpected("protocol 0 to 5", format!("protocol {other}"))),
        }
    }

    /// The opcodes that push one new value and look at nothing but the input.
    fn scalar(&mut self, opcode: u8) -> Outcome<Option<Node<'a>>> {
        let input = &mut self.input;
        Ok(Some(match opcode {
            b'N' => Node::None,
            0x88 => Node::Bool(true),  // NEWTRUE
            0x89 => Node::Bool(false), // NEWFALSE
            b'I' | b'L' => input.int_line(opcode)?,
            b'J' => Node::Int(i32::from_le_bytes(input.array()?).into()), // BININT
            b'K' => Node::Int(input.byte()?.into()),                      // BININT1
            b'M' => Node::Int(u16::from_le_bytes(input.array()?).into()), // BININT2
            0x8a => Node::Int(input.long()?),
            b'F' => {
                let line = input.line()?;
                Node::Float(input.number(line, "a number")?)
            }
            b'G' => Node::Float(f64::from_be_bytes(input.array()?)), // BINFLOAT
            b'S' => input.quoted_line()?,
            b'V' => input.unicode_line()?,
            b'U' | b'C' | 0x8c => input.counted::<1>()?,
            // SHORT_BINSTRING, SHORT_BINBYTES, SHORT_BINUNICODE
            b'T' | b'B' | b'X' => input.counted::<4>()?, // BINSTRING, BINBYTES, BINUNICODE
            0x8d | 0x8e | 0x96 => input.counted::<8>()?, // BINUNICODE8, BINBYTES8, BYTEARRAY8
            b']' => Node::List(Vec::new()),
            b')' => Node::Tuple(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            _ => return Ok(None),
        }))
    }

    /// The opcodes that mark the stack, take from it, or put what they took into a container.
    fn gather(&mut self, opcode: u8) -> Outcome<()> {
        match opcode {
            b'(' if self.marks.len() == MAX_NESTED => {
                return Err(self.input.too_much(MAX_NESTED, "nested marks"));
            }
            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            // POP of a bare mark
            b'0' => drop(self.pop()?),
            b'1' => drop(self.since_mark()?), // POP_MARK
            b't' => {
                let items = self.since_mark()?;
                self.push(Node::Tuple(items));
            }
            b'l' => {
                let items = self.since_mark()?;
                self.push(Node::List(items));
            }
            b'd' => {
                let items = self.since_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.extend(items, true)?;
            }
            0x85..=0x87 => {
                let items = self.top_items(usize::from(opcode - 0x84))?; // TUPLE1, TUPLE2, TUPLE3
                self.push(Node::Tuple(items));
            }
            b'a' | b's' => {
                let is_dict = opcode == b's';
                let items = self.top_items(if is_dict { 2 } else { 1 })?;
                self.extend(items, is_dict)?;
            }
            _ => {
                let items = self.since_mark()?; // APPENDS, SETITEMS
                self.extend(items, opcode == b'u')?;
            }
        }
        Ok(())
    }

    fn extend(&mut self, items: Vec<Id>, is_dict: bool) -> Outcome<()> {
        let target = self.top()?;
        match &mut self.nodes[target] {
            Node::List(list) if !is_dict => list.extend(items),
            Node::Dict(pairs) if is_dict && items.len().is_multiple_of(2) => pairs.extend(items),
            Node::Dict(_) if is_dict => {
                return Err(self.input.unexpected("a value for each key", "a lone key"));
            }
            other => {
                let expected = if is_dict { "a dict to put into" } else { "a list to append to" };
                return Err(self.input.unexpected(expected, other.kind()));
            }
        }
        Ok(())
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn top(&self) -> Outcome<Id> {
        let reachable = &self.stack[self.marks.last().copied().unwrap_or(0)..];
        reachable
            .last()
            .copied()
            .ok_or_else(|| self.input.unexpected("a value on the stack", "none"))
    }

    fn pop(&mut self) -> Outcome<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top_items(&mut self, count: usize) -> Outcome<Vec<Id>> {
        let mut items = (0..count).map(|_| self.pop()).collect::<Outcome<Vec<Id>>>()?;
        items.reverse();
        Ok(items)
    }

    fn since_mark(&mut self) -> Outcome<Vec<Id>> {
        let height =
            self.marks.pop().ok_or_else(|| self.input.unexpected("a mark on the stack", "none"))?;
        Ok(self.stack.drain(height..).collect())
    }

    fn memo_key(&mut self, opcode: u8) -> Outcome<u32> {
        Ok(match opcode {
            b'p' | b'g' => {
                let line = self.input.line()?;
                self.input.number(line, "a memo number")?
            }
            b'q' | b'h' => self.input.byte()?.into(),
            b'r' | b'j' => u32::from_le_bytes(self.input.array()?),
            _ => self.memo.len() as u32,
            // MEMOIZE counts by itself; MAX_OPCODES keeps the count small
        })
    }

    fn global(&self, module: &[u8], name: &[u8]) -> Outcome<Global> {
        let asked = || format!("{}.{}", shortened(module), shortened(name));
        Global::find(module, name)
            .ok_or_else(|| PickleFault::Global { at: self.input.opcode_at, name: asked() })
    }

    fn refused<T>(&self, expected: &str, got: Id) -> Outcome<T> {
        Err(self.input.unexpected(expected, self.nodes[got].kind()))
    }

    fn text(&self, id: Id) -> Outcome<&[u8]> {
        match &self.nodes[id] {
            Node::Bytes(bytes) => Ok(bytes),
            _ => self.refused("a string", id),
        }
    }

    fn fields<const N: usize>(&self, id: Id, expected: &str) -> Outcome<[Id; N]> {
        match &self.nodes[id] {
            Node::Tuple(items) => items[..].try_into().or_else(|_| self.refused(expected, id)),
            _ => self.refused(expected, id),
        }
    }

    /// REDUCE: what the named call would make of its arguments, without the call.
    fn reduce(&mut self) -> Outcome<()> {
        let (arguments, called) = (self.pop()?, self.pop()?);
        let made = match self.nodes[called] {
            Node::Global(Global::Reconstruct) => {
                let [class, ..] =
                    self.fields::<3>(arguments, "(numpy.ndarray, shape, type code)")?;
                match self.nodes[class] {
                    Node::Global(Global::Ndarray) => Node::Blank,
                    _ => return self.refused("the class numpy.ndarray", class),
                }
            }
            Node::Global(Global::Dtype) => {
                let [name, ..] = self.fields::<3>(arguments, "(dtype name, align, copy)")?;
                match &self.nodes[name] {
                    Node::Bytes(name) if matches!(&name[..], b"u1" | b"|u1" | b"uint8") => {
                        Node::Dtype
                    }
                    _ => return self.refused("the dtype `u1` (unsigned bytes)", name),
                }
            }
            Node::Global(Global::FromBuffer) => {
                let [bytes, dtype, shape, order] =
                    self.fields(arguments, "(bytes, dtype, shape, order)")?;
                match self.text(order)? {
                    b"C" => self.array(shape, dtype, bytes)?,
                    _ => return self.refused("an array in C order", order),
                }
            }
            Node::Global(Global::Encode) => self.encode(arguments)?,
            _ => return self.refused("a function of numpy to call", called),
        };
        self.push(made);
        Ok(())
    }

    /// `_codecs.encode(text, 'latin1')`: how Python 3 writes bytes in protocols that know none.
    fn encode(&mut self, arguments: Id) -> Outcome<Node<'a>> {
        let [text, encoding] = self.fields(arguments, "(text, encoding)")?;
        if !matches!(self.text(encoding)?, b"latin1" | b"latin-1") {
            return self.refused("the encoding `latin1`", encoding);
        }
        // A Latin-1 byte of the pickle is two of a text.
        let max = self.input.content.len().saturating_mul(2);
        self.decoded += self.text(text)?.len();
        if self.decoded > max {
            return Err(self.input.too_much(max, "bytes of encoded text"));
        }
        let latin =
            |text: &str| text.chars().map(|character| u8::try_from(character).ok()).collect();
        match str::from_utf8(self.text(text)?).ok().and_then(latin) {
            Some(bytes) => Ok(Node::Bytes(Cow::Owned(bytes))),
            None => self.refused("a string of Latin-1 characters", text),
        }
    }

    /// BUILD: gives an array its shape and bytes. A dtype's state says nothing new about unsigned
    /// bytes.
    fn build(&mut self) -> Outcome<()> {
        let state = self.pop()?;
        let target = self.top()?;
        match (&self.nodes[target], &self.nodes[state]) {
            (Node::Dtype, Node::Tuple(_)) => Ok(()),
            (Node::Blank, _) => {
                let expected = "(version, shape, dtype, order, bytes)";
                let [_, shape, dtype, is_fortran, bytes] = self.fields(state, expected)?;
                match self.nodes[is_fortran] {
                    Node::Bool(false) | Node::Int(0) => {}
                    Node::Bool(true) | Node::Int(_) => {
                        return Err(self
                            .input
                            .unexpected("an array in C order", "one in Fortran order"));
                    }
                    _ => return self.refused("whether the array is in Fortran order", is_fortran),
                }
                self.nodes[target] = self.array(shape, dtype, bytes)?;
                Ok(())
            }
            (Node::Dtype, _) => self.refused("the state of a dtype", state),
            _ => self.refused("a new numpy array to fill", target),
        }
    }

    fn array(&self, shape: Id, dtype: Id, bytes: Id) -> Outcome<Node<'a>> {
        if !matches!(self.nodes[dtype], Node::Dtype) {
            return self.refused("a numpy dtype", dtype);
        }
        let Node::Tuple(sides) = &self.nodes[shape] else { return self.refused("a shape", shape) };
        if sides.len() > MAX_DIMENSIONS {
            return Err(self.input.too_much(MAX_DIMENSIONS, "dimensions"));
        }
        let side = |id: &Id| match self.nodes[*id] {
            Node::Int(side) => {
                usize::try_from(side).or_else(|_| self.refused("a side of an array", *id))
            }
            _ => self.refused("a side of an array", *id),
        };
        let shape = sides.iter().map(side).collect::<Outcome<Vec<usize>>>()?;
        let product = shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side));
        let got = self.text(bytes)?.len();
        if product != Some(got) {
            return Err(self
                .input
                .unexpected(format!("an array of shape {shape:?}"), format!("{got} bytes")));
        }
        Ok(Node::Array(shape, bytes))
    }
}
