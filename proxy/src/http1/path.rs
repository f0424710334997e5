//! **Purpose.** One spelling for one path, before a route is chosen by it.
//!
//! **Shape.** [`normalize`] looks first; most paths are left as they are and cost one scan. The others are rewritten in a
//! buffer that the caller keeps, and are to be matched *and forwarded* in the new spelling.
//!
//! **Errors.** [`Kind::BadPath`]: a path that leaves the root by `..`, a `%` without two digits, an escaped slash where
//! those are refused.
//!
//! **Source.** RFC 3986 §5.2.4 and §6.2.2; order of steps as in Envoy: escaped slashes, then dots, then repeated slashes.
//! Stricter: `/..` is refused and not taken for `/`; a broken escape is refused, since decoding beside it could make one.

use memchr::memchr;

use crate::config::{EscapedSlashes, HttpConnectionConfig};
use crate::fault::Kind;

/// Which spellings are changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct PathRules {
    /// Resolve `.` and `..`, turn `\` into `/`, decode unreserved characters.
    pub normalize: bool,
    /// `//` becomes `/`.
    pub merge_slashes: bool,
    /// What `%2F` and `%5C` get.
    pub escaped_slashes: EscapedSlashes,
}

impl From<&HttpConnectionConfig> for PathRules {
    fn from(config: &HttpConnectionConfig) -> Self {
        Self {
            normalize: config.normalize_path,
            merge_slashes: config.merge_slashes,
            escaped_slashes: config.escaped_slashes,
        }
    }
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normal<'a> {
    /// It is matched and forwarded in this spelling.
    Changed(&'a [u8]),
    /// The client is sent to this path (307).
    RedirectTo(&'a [u8]),
    /// It is as it was.
    Unchanged,
}

/// Spells `path` (without its query) by `rules`. Targets that are no path (`*`) are left alone.
pub fn normalize<'a>(path: &[u8], rules: PathRules, scratch: &'a mut Vec<u8>) -> Result<Normal<'a>, Kind> {
    if path.first() != Some(&b'/') || is_plain(path, rules) {
        return Ok(Normal::Unchanged);
    }
    scratch.clear();
    let unescaped = copy_unescaping_slashes(path, rules.escaped_slashes, scratch)?;
    if rules.normalize {
        decode_unreserved(scratch)?;
        remove_dot_segments(scratch)?;
    }
    if rules.merge_slashes {
        scratch.dedup_by(|b, a| *a == b'/' && *b == b'/');
    }
    if unescaped && rules.escaped_slashes == EscapedSlashes::UnescapeAndRedirect {
        Ok(Normal::RedirectTo(scratch))
    } else if scratch == path {
        Ok(Normal::Unchanged)
    } else {
        Ok(Normal::Changed(scratch))
    }
}

/// Nothing in `path` could be changed by `rules`; may say no for a path that then stays as it is.
fn is_plain(path: &[u8], rules: PathRules) -> bool {
    let mut after_slash = false;
    for &b in path {
        match b {
            b'%' if rules.normalize || rules.escaped_slashes != EscapedSlashes::KeepUnchanged => return false,
            b'\\' if rules.normalize => return false,
            b'.' if after_slash && rules.normalize => return false,
            b'/' if after_slash && rules.merge_slashes => return false,
            _ => after_slash = b == b'/',
        }
    }
    true
}

/// Copies `path` to `out`. True: a slash was unescaped on the way.
fn copy_unescaping_slashes(path: &[u8], action: EscapedSlashes, out: &mut Vec<u8>) -> Result<bool, Kind> {
    if action == EscapedSlashes::KeepUnchanged {
        out.extend_from_slice(path);
        return Ok(false);
    }
    let mut rest = path;
    let mut unescaped = false;
    while let Some(at) = memchr(b'%', rest) {
        let (before, escape) = rest.split_at(at);
        out.extend_from_slice(before);
        let slash = match escape {
            [_, b'2', b'f' | b'F', ..] => Some(b'/'),
            [_, b'5', b'c' | b'C', ..] => Some(b'\\'),
            _ => None,
        };
        match slash {
            Some(_) if action == EscapedSlashes::RejectRequest => return Err(Kind::BadPath),
            Some(slash) => {
                out.push(slash);
                unescaped = true;
                rest = &escape[3..];
            }
            None => {
                out.push(b'%');
                rest = &escape[1..];
            }
        }
    }
    out.extend_from_slice(rest);
    Ok(unescaped)
}

/// Decodes unreserved characters and turns `\` into `/`, in place.
fn decode_unreserved(path: &mut Vec<u8>) -> Result<(), Kind> {
    let (mut read, mut write) = (0, 0);
    while read < path.len() {
        let mut used = 1;
        let mut b = path[read];
        if b == b'\\' {
            b = b'/';
        } else if b == b'%' {
            let decoded = decode(path.get(read + 1..read + 3)).ok_or(Kind::BadPath)?;
            if decoded.is_ascii_alphanumeric() || matches!(decoded, b'-' | b'.' | b'_' | b'~') {
                b = decoded;
                used = 3;
            }
        }
        path[write] = b;
        write += 1;
        read += used;
    }
    path.truncate(write);
    Ok(())
}

/// The byte that two hexadecimal digits stand for.
fn decode(digits: Option<&[u8]>) -> Option<u8> {
    let &[high, low] = digits? else { return None };
    let (high, low) = (char::from(high).to_digit(16)?, char::from(low).to_digit(16)?);
    u8::try_from(high * 16 + low).ok()
}

/// Resolves `.` and `..` in place; `path` begins with `/`.
fn remove_dot_segments(path: &mut Vec<u8>) -> Result<(), Kind> {
    let (mut read, mut write) = (0, 0);
    while read < path.len() {
        // `read` is at the slash before a segment; the result so far is `path[..write]`, without a slash at its end
        // unless the last segment kept was empty.
        let start = read + 1;
        let end = memchr(b'/', &path[start..]).map_or(path.len(), |at| start + at);
        let is_last = end == path.len();
        match &path[start..end] {
            b"." if is_last => write = put_slash(path, write),
            b"." => {}
            b".." => {
                write = path[..write].iter().rposition(|b| *b == b'/').ok_or(Kind::BadPath)?;
                if is_last {
                    write = put_slash(path, write);
                }
            }
            _ => {
                path.copy_within(read..end, write);
                write += end - read;
            }
        }
        read = end;
    }
    path.truncate(write);
    if path.is_empty() {
        path.push(b'/');
    }
    Ok(())
}

fn put_slash(path: &mut [u8], at: usize) -> usize {
    path[at] = b'/';
    at + 1
}
