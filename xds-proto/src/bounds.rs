//! How much an encoded message may cost to decode.
//!
//! **Purpose.** Two bytes on the wire, an empty message in a list, become hundreds of bytes in memory. [`scan`]
//! reads the wire form against the descriptor, without allocating, and refuses what would grow beyond the limits.
//! **Errors.** [`Excess`] says which limit, or that the bytes are no message.
//! **Limits.** [`MAX_BYTES`], [`MAX_MESSAGES`], [`MAX_FIELDS`], [`MAX_DEPTH`]; [`MAX_ANY_DEPTH`] for callers that follow `Any`s.
//! **Source.** protobuf.dev, "Encoding". A group (wire types 3 and 4) is refused: no message here has one.
//! **Tests.** Below; random bytes in `tests/robust.rs`.

use crate::reflect::{Kind, MessageDescriptor};

/// Longest encoded message, in bytes.
pub const MAX_BYTES: usize = 64 << 20;
/// Most messages inside one message, itself included.
pub const MAX_MESSAGES: u32 = 1_000_000;
/// Most fields with a value, repeated ones counted each time, packed numbers apart.
pub const MAX_FIELDS: u32 = 4_000_000;
/// Deepest nesting of messages.
pub const MAX_DEPTH: u32 = 100;
/// Deepest nesting of `Any` in `Any`.
pub const MAX_ANY_DEPTH: usize = 16;

/// Why a message is not decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Excess {
    /// Too long.
    #[error("{bytes} bytes encoded; at most {MAX_BYTES} are read")]
    Bytes {
        /// Its length.
        bytes: usize,
    },
    /// Too deep.
    #[error("messages nest more than {MAX_DEPTH} deep")]
    Depth,
    /// Too many fields.
    #[error("more than {MAX_FIELDS} fields are set")]
    Fields,
    /// Not the encoding of a message.
    #[error("not an encoded message: {reason} at byte {offset}")]
    Malformed {
        /// Where, within the innermost message.
        offset: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Too many messages.
    #[error("more than {MAX_MESSAGES} messages inside")]
    Messages,
}

/// Refuses bytes that are not a message of this type or cost too much to decode.
pub fn scan(descriptor: &MessageDescriptor, bytes: &[u8]) -> Result<(), Excess> {
    if bytes.len() > MAX_BYTES {
        return Err(Excess::Bytes { bytes: bytes.len() });
    }
    Tally { messages: 0, fields: 0 }.message(descriptor, bytes, 0)
}

struct Tally {
    messages: u32,
    fields: u32,
}

impl Tally {
    fn message(&mut self, descriptor: &MessageDescriptor, bytes: &[u8], depth: u32) -> Result<(), Excess> {
        if depth > MAX_DEPTH {
            return Err(Excess::Depth);
        }
        self.messages += 1;
        if self.messages > MAX_MESSAGES {
            return Err(Excess::Messages);
        }
        let mut wire = Wire { bytes, offset: 0 };
        while let Some((number, content)) = wire.next_field()? {
            self.fields += 1;
            if self.fields > MAX_FIELDS {
                return Err(Excess::Fields);
            }
            let Some(content) = content else { continue };
            let field = descriptor.get_field(number);
            if let Some(Kind::Message(inner)) = field.map(|field| field.kind()) {
                self.message(&inner, content, depth + 1)?;
            }
        }
        Ok(())
    }
}

/// A field's number, and its bytes when it is length-delimited.
type WireField<'a> = (u32, Option<&'a [u8]>);

/// The wire form of one message.
struct Wire<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Wire<'a> {
    /// The next field; none at the end.
    fn next_field(&mut self) -> Result<Option<WireField<'a>>, Excess> {
        if self.offset == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = match u32::try_from(key >> 3) {
            Ok(number @ 1..=0x1fff_ffff) => number,
            _ => return Err(self.malformed("a field number out of range")),
        };
        let content = match key & 7 {
            0 => {
                self.varint()?;
                None
            }
            1 => self.take(8).map(|_| None)?,
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Some(self.take(length)?)
            }
            5 => self.take(4).map(|_| None)?,
            _ => return Err(self.malformed("an unknown wire type")),
        };
        Ok(Some((number, content)))
    }

    fn varint(&mut self) -> Result<u64, Excess> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number longer than 64 bits"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Excess> {
        let rest = &self.bytes[self.offset..];
        if length > rest.len() {
            return Err(self.malformed("a length beyond the end"));
        }
        self.offset += length;
        Ok(&rest[..length])
    }

    fn malformed(&self, reason: &'static str) -> Excess {
        Excess::Malformed { offset: self.offset, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor;

    fn listener() -> MessageDescriptor {
        descriptor::message("envoy.config.listener.v3.Listener").unwrap()
    }

    /// `depth` messages, each inside the one before, by a field number below 16.
    fn nested(field: u8, depth: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..depth {
            let mut outer = vec![field << 3 | 2];
            prost::encoding::encode_varint(bytes.len() as u64, &mut outer);
            outer.extend_from_slice(&bytes);
            bytes = outer;
        }
        bytes
    }

    #[test]
    fn a_list_of_empty_messages_is_counted() {
        let list = |items: u32| [0x1a, 0].repeat(items as usize);
        assert_eq!(scan(&listener(), &list(MAX_MESSAGES - 1)), Ok(()));
        assert_eq!(scan(&listener(), &list(MAX_MESSAGES)), Err(Excess::Messages));
    }

    #[test]
    fn nesting_is_counted() {
        // AndMatch-like recursion: Permission.not_rule is field 8.
        let permission = descriptor::message("envoy.config.rbac.v3.Permission").unwrap();
        assert_eq!(scan(&permission, &nested(8, MAX_DEPTH)), Ok(()));
        assert_eq!(scan(&permission, &nested(8, MAX_DEPTH + 1)), Err(Excess::Depth));
    }

    #[test]
    fn a_huge_length_prefix_costs_nothing() {
        let mut bytes = vec![0x1a];
        prost::encoding::encode_varint(1 << 30, &mut bytes);
        assert!(matches!(scan(&listener(), &bytes), Err(Excess::Malformed { .. })));
        assert!(matches!(scan(&listener(), &[0x1a, 0xff, 0xff]), Err(Excess::Malformed { .. })));
        assert!(matches!(scan(&listener(), &[0xff; 11]), Err(Excess::Malformed { .. })));
        assert!(matches!(scan(&listener(), &[0]), Err(Excess::Malformed { .. })));
        assert!(matches!(scan(&listener(), &[0x0b]), Err(Excess::Malformed { .. })));
    }

    #[test]
    fn fields_are_counted() {
        let fields = |count: u32| [0x0a, 0].repeat(count as usize);
        assert_eq!(scan(&listener(), &fields(MAX_FIELDS)), Ok(()));
        assert_eq!(scan(&listener(), &fields(MAX_FIELDS + 1)), Err(Excess::Fields));
    }
}
