//! **Purpose.** Bodies of gRPC-Web: base64 that comes in pieces, and trailers inside the body.
//!
//! **Shape.** A binary body is gRPC's own. A text body is decoded by a [`TextDecoder`] and written by [`encode_text`],
//! piece by piece as they come. An answer ends in one more frame, made of its trailers by [`put_trailers`].
//!
//! **Errors.** What is no base64 is [`BadText`]; what was decoded before it stands.
//!
//! **Source.** `doc/PROTOCOL-WEB.md`. Padding may end any piece, not only the last: a sender that flushes has to pad.
//! Strict as Envoy: no blanks, no letters of base64url, and the bits that padding leaves over are zero.

/// The flag of a frame that holds trailers.
const TRAILERS: u8 = 0x80;
/// No digit of base64.
const NONE: u8 = 0xff;
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const VALUES: [u8; 256] = values();

/// A text body that is not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not base64")]
pub struct BadText;

/// Reads base64 that comes in pieces of any size.
#[derive(Clone, Copy, Debug, Default)]
pub struct TextDecoder {
    held: [u8; 4],
    count: usize,
}

impl TextDecoder {
    /// Appends to `out` what `piece` completes.
    pub fn decode(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), BadText> {
        let mut rest = piece;
        if self.count > 0 {
            let (taken, after) = rest.split_at(rest.len().min(4 - self.count));
            self.held[self.count..self.count + taken.len()].copy_from_slice(taken);
            self.count += taken.len();
            rest = after;
            if self.count < 4 {
                return Ok(());
            }
            decode_four(self.held, out)?;
        }
        let (fours, rest) = rest.as_chunks();
        out.reserve(fours.len() * 3);
        for four in fours {
            decode_four(*four, out)?;
        }
        self.held[..rest.len()].copy_from_slice(rest);
        self.count = rest.len();
        Ok(())
    }

    /// The body has ended: nothing may be left over.
    pub fn finish(&self) -> Result<(), BadText> {
        if self.count == 0 { Ok(()) } else { Err(BadText) }
    }
}

fn decode_four(four: [u8; 4], out: &mut Vec<u8>) -> Result<(), BadText> {
    let [a, b, c, d] = four.map(|digit| VALUES[usize::from(digit)]);
    // Shifts drop what the byte has no place for.
    let bytes = [a << 2 | b >> 4, b << 4 | c >> 2, c << 6 | d];
    match four {
        [_, _, b'=', b'='] if a | b != NONE && b & 0x0f == 0 => out.push(bytes[0]),
        [_, _, _, b'='] if a | b | c != NONE && c & 0x03 == 0 => out.extend([bytes[0], b << 4 | c >> 2]),
        _ if a | b | c | d != NONE => out.extend(bytes),
        _ => return Err(BadText),
    }
    Ok(())
}

/// Appends `piece` as base64 that stands by itself: padded, so that the other end can read it at once.
pub fn encode_text(piece: &[u8], out: &mut Vec<u8>) {
    out.reserve(piece.len().div_ceil(3) * 4);
    for three in piece.chunks(3) {
        let byte = |at: usize| three.get(at).copied().unwrap_or(0);
        let bits = u32::from(byte(0)) << 16 | u32::from(byte(1)) << 8 | u32::from(byte(2));
        for at in 0..4 {
            let digit = DIGITS[usize::from((bits >> (18 - 6 * at)) as u8 & 0x3f)];
            out.push(if at > three.len() as u32 { b'=' } else { digit });
        }
    }
}

/// Appends the frame that tells an answer's trailers: a flag, a length, and `name:value` lines.
pub fn put_trailers<'a>(trailers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend([TRAILERS, 0, 0, 0, 0]);
    for (name, value) in trailers {
        out.extend(name.iter().map(u8::to_ascii_lowercase));
        out.push(b':');
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    let length = u32::try_from(out.len() - begin - 5).expect("a head is at most 8 MiB");
    out[begin + 1..begin + 5].copy_from_slice(&length.to_be_bytes());
}

const fn values() -> [u8; 256] {
    let mut values = [NONE; 256];
    let mut at = 0;
    while at < DIGITS.len() {
        values[DIGITS[at] as usize] = at as u8;
        at += 1;
    }
    values
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> Result<Vec<u8>, BadText> {
        let (mut decoder, mut out) = (TextDecoder::default(), Vec::new());
        pieces.iter().try_for_each(|piece| decoder.decode(piece, &mut out))?;
        decoder.finish().map(|()| out)
    }

    /// RFC 4648 §10.
    #[test]
    fn vectors_of_the_standard() {
        for (plain, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            let mut out = Vec::new();
            encode_text(plain.as_bytes(), &mut out);
            assert_eq!(out, text.as_bytes());
            assert_eq!(decode(&[text.as_bytes()]).unwrap(), plain.as_bytes());
        }
        assert_eq!(decode(&[b"Zg==Zm8=Zm9v"]).unwrap(), b"ffofoo", "padding inside the stream");
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for bad in
            ["Z", "Zg", "Zg=", "Zh==", "Zm9=", "=Zg=", "Zg=g", "====", "Z===", "Zm9v\n", "Zm 9", "_-__", "Zm9\u{e9}"]
        {
            assert_eq!(decode(&[bad.as_bytes()]), Err(BadText), "{bad:?}");
        }
    }

    #[test]
    fn trailers_are_a_frame() {
        let mut out = b"before".to_vec();
        put_trailers([(&b"grpc-status"[..], &b"0"[..]), (b"Grpc-Message", b"")], &mut out);
        assert_eq!(out, b"before\x80\0\0\0\x1egrpc-status:0\r\ngrpc-message:\r\n");
    }

    proptest! {
        #[test]
        fn pieces_come_back_whole_however_they_are_cut(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let mut text = Vec::new();
            pieces.iter().for_each(|piece| encode_text(piece, &mut text));
            let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let cut: Vec<_> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            prop_assert_eq!(decode(&cut), Ok(pieces.concat()));
        }

        #[test]
        fn the_cut_does_not_decide_what_is_refused(
            text in prop::collection::vec(prop::sample::select(b"AZ+/=g0\n".to_vec()), 0..24),
            at in any::<prop::sample::Index>(),
        ) {
            let (one, two) = text.split_at(at.index(text.len() + 1));
            prop_assert_eq!(decode(&[one, two]), decode(&[&text]));
        }
    }
}
