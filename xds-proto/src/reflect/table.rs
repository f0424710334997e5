//! The embedded tables, and how they are laid out.
//!
//! **Shape.** Little-endian words of four bytes, written by `build/tables.rs`:
//! ```text
//! head      messages, fields, enums         how many records of each
//! message   name, first field, fields << 1 | is map entry          sorted by name
//! field     name, JSON name, number, shape                         those of a message together, sorted by number
//! enum      name, first value, values                              sorted by name
//! value     name, number                                           those of an enum together, sorted by number
//! ```
//! A name is an offset into the text of all names, shifted by 8, and its length. A shape is, from its low bits, the
//! number of the type as in `descriptor.proto` (5 bits), is list, is packed, has presence (1 each), the oneof counted from 1
//! (8), and the index of the message or enum (16).
//!
//! Read in place: nothing is decoded or allocated, and a page that nobody asks for is not in memory. The words hold
//! no addresses, so the loader has nothing to relocate.

static WORDS: &[[u8; 4]] = include_bytes!(concat!(env!("OUT_DIR"), "/tables.bin")).as_chunks().0;
static NAMES: &str = include_str!(concat!(env!("OUT_DIR"), "/names.txt"));

const HEAD: usize = 3;
const MESSAGE: usize = 3;
const FIELD: usize = 4;
const ENUM: usize = 3;
const VALUE: usize = 2;

fn word(at: usize) -> u32 {
    u32::from_le_bytes(WORDS[at])
}

fn size(at: usize) -> usize {
    word(at) as usize
}

fn name(at: usize) -> &'static str {
    let place = size(at);
    let start = place >> 8;
    &NAMES[start..start + (place & 0xff)]
}

pub(super) fn message_count() -> usize {
    size(0)
}

fn message_at(index: usize) -> usize {
    HEAD + index * MESSAGE
}

fn field_at(index: usize) -> usize {
    HEAD + message_count() * MESSAGE + index * FIELD
}

fn enum_at(index: usize) -> usize {
    field_at(size(1)) + index * ENUM
}

fn value_at(index: usize) -> usize {
    enum_at(size(2)) + index * VALUE
}

/// The message of this full name.
pub(super) fn find_message(full_name: &str) -> Option<usize> {
    let (mut low, mut high) = (0, message_count());
    while low < high {
        let middle = low.midpoint(high);
        match message_name(middle).cmp(full_name) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Equal => return Some(middle),
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}

pub(super) fn message_name(index: usize) -> &'static str {
    name(message_at(index))
}

pub(super) fn is_map_entry(index: usize) -> bool {
    word(message_at(index) + 2) & 1 == 1
}

/// The fields of a message, by number.
pub(super) fn fields(message: usize) -> std::ops::Range<usize> {
    let at = message_at(message);
    let first = size(at + 1);
    first..first + (size(at + 2) >> 1)
}

pub(super) fn field_name(index: usize) -> &'static str {
    name(field_at(index))
}

pub(super) fn field_json_name(index: usize) -> &'static str {
    name(field_at(index) + 1)
}

pub(super) fn field_number(index: usize) -> u32 {
    word(field_at(index) + 2)
}

pub(super) fn field_shape(index: usize) -> Shape {
    Shape(word(field_at(index) + 3))
}

pub(super) fn enum_name(index: usize) -> &'static str {
    name(enum_at(index))
}

/// The values of an enum, by number.
pub(super) fn values(index: usize) -> std::ops::Range<usize> {
    let at = enum_at(index);
    let first = size(at + 1);
    first..first + size(at + 2)
}

pub(super) fn value_name(index: usize) -> &'static str {
    name(value_at(index))
}

pub(super) fn value_number(index: usize) -> i32 {
    word(value_at(index) + 1).cast_signed()
}

/// What a field holds.
#[derive(Clone, Copy)]
pub(super) struct Shape(u32);

impl Shape {
    /// The type, as `descriptor.proto` numbers it.
    pub(super) fn type_number(self) -> u32 {
        self.0 & 0x1f
    }

    pub(super) fn is_list(self) -> bool {
        self.0 >> 5 & 1 == 1
    }

    pub(super) fn is_packed(self) -> bool {
        self.0 >> 6 & 1 == 1
    }

    pub(super) fn has_presence(self) -> bool {
        self.0 >> 7 & 1 == 1
    }

    /// Counted from 1 within its message; 0 for none.
    pub(super) fn oneof(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    /// The message or enum it is of.
    pub(super) fn type_index(self) -> usize {
        (self.0 >> 16) as usize
    }
}
