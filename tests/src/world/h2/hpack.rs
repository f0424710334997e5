//! Purpose: HPACK: blocks written plainly, without table or Huffman code, and any block read.
//!
//! Shape: [`block`] writes fields as literals that change no table, so that each block stands for itself; [`Decoder`] keeps
//! the sender's table and reads what real peers send.
//!
//! Source: RFC 7541. Its Huffman code is canonical, so the lengths of the codes are the whole table.

use std::collections::VecDeque;

/// The largest integer that is read.
const INTEGER_MAX: usize = 1 << 24;
/// Bytes of overhead of an entry (RFC 7541 section 4.1).
const ENTRY_OVERHEAD: usize = 32;
const TABLE_BYTES: usize = 4_096;

/// A field: name and value.
pub type Field = (String, Vec<u8>);

/// Fields as literals without indexing.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(fields: &[(N, V)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| literal(0, name.as_ref(), value.as_ref())).collect()
}

/// A field that the reader is to put into its table; the first such has the number 62.
pub fn indexed_literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    literal(0x40, name, value)
}

/// A reference to a field of the table.
pub fn indexed(number: usize) -> Vec<u8> {
    integer(0x80, 7, number)
}

fn literal(form: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let text = |bytes: &[u8]| [&integer(0, 7, bytes.len()), bytes].concat();
    [vec![form], text(name), text(value)].concat()
}

fn integer(form: u8, prefix_bits: u32, value: usize) -> Vec<u8> {
    let most = (1 << prefix_bits) - 1;
    let low = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    if value < most {
        return vec![form | low(value)];
    }
    let mut out = vec![form | low(most)];
    let mut rest = value - most;
    while rest >= 0x80 {
        out.push(0x80 | low(rest % 0x80));
        rest /= 0x80;
    }
    out.push(low(rest));
    out
}

/// Reads the blocks of one sender, in order.
#[derive(Debug)]
pub struct Decoder {
    table: VecDeque<Field>,
    table_bytes_max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { table: VecDeque::new(), table_bytes_max: TABLE_BYTES }
    }
}

impl Decoder {
    /// The fields of a block.
    pub fn decode(&mut self, block: &[u8]) -> Result<Vec<Field>, String> {
        let mut rest = block;
        let mut fields = Vec::new();
        while let Some(&first) = rest.first() {
            if first & 0x80 != 0 {
                let number = take_integer(&mut rest, 7)?;
                fields.push(self.entry(number)?);
            } else if first & 0x40 != 0 {
                let field = self.take_literal(&mut rest, 6)?;
                fields.push(field.clone());
                self.table.push_front(field);
                self.evict();
            } else if first & 0x20 != 0 {
                self.table_bytes_max = take_integer(&mut rest, 5)?;
                self.evict();
            } else {
                fields.push(self.take_literal(&mut rest, 4)?);
            }
        }
        Ok(fields)
    }

    fn entry(&self, number: usize) -> Result<Field, String> {
        let at = number.checked_sub(1).ok_or("field number 0")?;
        if let Some((name, value)) = STATIC.get(at) {
            return Ok(((*name).to_owned(), value.as_bytes().to_vec()));
        }
        self.table.get(at - STATIC.len()).cloned().ok_or_else(|| format!("no field number {number}"))
    }

    fn take_literal(&self, rest: &mut &[u8], prefix_bits: u32) -> Result<Field, String> {
        let name = match take_integer(rest, prefix_bits)? {
            0 => String::from_utf8_lossy(&take_text(rest)?).into_owned(),
            number => self.entry(number)?.0,
        };
        Ok((name, take_text(rest)?))
    }

    fn evict(&mut self) {
        let bytes = |field: &Field| field.0.len() + field.1.len() + ENTRY_OVERHEAD;
        while self.table.iter().map(bytes).sum::<usize>() > self.table_bytes_max {
            self.table.pop_back();
        }
    }
}

fn take_integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, String> {
    let take = |rest: &mut &[u8]| {
        let (first, after) = rest.split_first().ok_or("a block that breaks off")?;
        *rest = after;
        Ok::<usize, String>(usize::from(*first))
    };
    let most = (1 << prefix_bits) - 1;
    let mut value = take(rest)? & most;
    if value < most {
        return Ok(value);
    }
    for shift in (0..).step_by(7) {
        let byte = take(rest)?;
        value += (byte & 0x7f) << shift;
        if value > INTEGER_MAX {
            break;
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(format!("an integer beyond {INTEGER_MAX}"))
}

fn take_text(rest: &mut &[u8]) -> Result<Vec<u8>, String> {
    let is_huffman = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = take_integer(rest, 7)?;
    let (text, after) = rest.split_at_checked(length).ok_or("a text that breaks off")?;
    *rest = after;
    if is_huffman { decode_huffman(text) } else { Ok(text.to_vec()) }
}

/// Walks the canonical code bit by bit: at each length the codes are consecutive numbers, in the order of their symbols.
fn decode_huffman(text: &[u8]) -> Result<Vec<u8>, String> {
    let symbols_of = |length: u8| HUFFMAN_LENGTHS.iter().zip(0_u16..).filter(move |(one, _)| **one == length);
    let counts: Vec<u32> = (0..=30).map(|length| symbols_of(length).map(|_| 1).sum()).collect();
    let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1)));
    let mut out = Vec::new();
    'symbols: loop {
        let (mut code, mut first) = (0, 0);
        for length in 1..=30_u8 {
            // What is left of the last byte is ones, fewer than eight of them.
            let Some(bit) = bits.next() else {
                let is_padding = length <= 8 && code + 1 == 1 << (length - 1);
                return if is_padding { Ok(out) } else { Err("Huffman padding that is none".to_owned()) };
            };
            code = code << 1 | bit;
            first <<= 1;
            let count = counts[usize::from(length)];
            if code - first < count {
                let symbol = symbols_of(length).nth((code - first) as usize).map(|(_, symbol)| symbol);
                out.push(symbol.and_then(|symbol| u8::try_from(symbol).ok()).ok_or("the end symbol inside a text")?);
                continue 'symbols;
            }
            first += count;
        }
        return Err("no Huffman code".to_owned());
    }
}

/// Bits of the code of each symbol, 256 being the end (RFC 7541 appendix B).
#[rustfmt::skip]
const HUFFMAN_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// RFC 7541 appendix A.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&str, &str)]) -> Vec<Field> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(&two.iter().collect::<String>(), 16).unwrap()).collect()
    }

    #[test]
    fn the_huffman_coded_requests_of_the_rfc_are_read() {
        let mut decoder = Decoder::default();
        let first = decoder.decode(&hex("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff")).unwrap();
        let common = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        assert_eq!(first, fields(&common));
        let second = decoder.decode(&hex("8286 84be 5886 a8eb 1064 9cbf")).unwrap();
        assert_eq!(second, fields(&[&common[..], &[("cache-control", "no-cache")]].concat()));
        let third = decoder.decode(&hex("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf")).unwrap();
        assert_eq!(third[3..], fields(&[(":authority", "www.example.com"), ("custom-key", "custom-value")]));
    }

    #[test]
    fn what_is_written_is_read() {
        let long = "x".repeat(70_000);
        let sent = [("a", "1"), ("b", long.as_str()), ("", "")];
        assert_eq!(Decoder::default().decode(&block(&sent)).unwrap(), fields(&sent));
        let twice = [indexed_literal(b"n", b"v"), indexed(62), indexed(2)].concat();
        assert_eq!(Decoder::default().decode(&twice).unwrap(), fields(&[("n", "v"), ("n", "v"), (":method", "GET")]));
    }

    #[test]
    fn what_is_no_block_is_an_error() {
        for bad in [&b"\x80"[..], b"\xbe", b"\x00\x05ab", b"\xff\xff\xff\xff\xff\xff", b"\x00\x01a\x81\x00", b"\x00"] {
            assert!(Decoder::default().decode(bad).is_err(), "{bad:?}");
        }
    }
}
