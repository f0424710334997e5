//! Chunked bodies: any split of the input reads the same, and agrees with a slow decoder of whole bodies.

use proptest::prelude::*;

use super::*;
use crate::http1::chunk::{CHUNK_END, LAST_CHUNK, write_chunk_header};

/// Body and length of the message, read in pieces of the sizes given (the last one repeats).
fn read(bytes: &[u8], pieces: &[usize]) -> Result<Option<(Vec<u8>, usize)>, ChunkFault> {
    let mut decoder = ChunkDecoder::new();
    let (mut body, mut at, mut piece) = (Vec::new(), 0, 0);
    while at < bytes.len() && !decoder.is_done() {
        let size = pieces[piece.min(pieces.len() - 1)].max(1);
        piece += 1;
        let end = bytes.len().min(at + size);
        while at < end && !decoder.is_done() {
            let step = decoder.step(&bytes[at..end])?;
            assert!(step.consumed > 0 || step.done);
            if let Some(data) = step.data {
                assert!(!data.is_empty());
                assert!(data.end <= step.consumed);
                body.extend_from_slice(&bytes[at..][data]);
            }
            at += step.consumed;
            assert_eq!(step.done, decoder.is_done());
        }
    }
    Ok(decoder.is_done().then_some((body, at)))
}

/// The same for a whole body, by splitting at line ends.
fn oracle(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line_end = |at: usize| bytes[at..].windows(2).position(|two| two == b"\r\n").map(|found| at + found);
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let end = line_end(at)?;
        let line = std::str::from_utf8(&bytes[at..end]).ok()?;
        let size = line.split(';').next()?;
        if size.is_empty() || size.len() > 16 || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let size = usize::from_str_radix(size, 16).ok()?;
        at = end + 2;
        if size == 0 {
            loop {
                let end = line_end(at)?;
                let is_last = end == at;
                at = end + 2;
                if is_last {
                    return Some((body, at));
                }
            }
        }
        body.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        at += size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
}

fn encoded(chunks: &[(Vec<u8>, String)], trailers: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for (chunk, extension) in chunks {
        write_chunk_header(chunk.len(), &mut out);
        if !extension.is_empty() {
            out.truncate(out.len() - 2);
            out.extend_from_slice(format!(";{extension}\r\n").as_bytes());
        }
        out.extend_from_slice(chunk);
        out.extend_from_slice(CHUNK_END);
    }
    out.extend_from_slice(b"0\r\n");
    for trailer in trailers {
        out.extend_from_slice(format!("{trailer}: x\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

proptest! {
    #[test]
    fn any_split_reads_the_same(
        chunks in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..40), "[a-z]{0,3}"), 0..6),
        trailers in prop::collection::vec("[a-z]{1,4}", 0..3),
        pieces in prop::collection::vec(1_usize..24, 1..30),
        rest in prop::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut bytes = encoded(&chunks, &trailers);
        let length = bytes.len();
        bytes.extend_from_slice(&rest);
        let whole: Vec<u8> = chunks.iter().flat_map(|(chunk, _)| chunk.clone()).collect();
        let whole = Some((whole, length));
        let expected = Ok(whole.clone());
        prop_assert_eq!(&read(&bytes, &pieces), &expected);
        prop_assert_eq!(&read(&bytes, &[1]), &expected);
        prop_assert_eq!(&read(&bytes, &[usize::MAX / 2]), &expected);
        prop_assert_eq!(oracle(&bytes), whole);
    }

    #[test]
    fn what_is_accepted_the_oracle_accepts(
        mut bytes in prop::collection::vec(prop::sample::select(&b"0123af;:x \r\n\r\n\r\n"[..]), 0..40),
        at in any::<prop::sample::Index>(),
    ) {
        bytes.extend_from_slice(b"\r\n\r\n");
        let one = read(&bytes, &[usize::MAX / 2]);
        prop_assert_eq!(&read(&bytes, &[at.index(8) + 1]), &one, "the verdict does not hang on the split");
        if let Ok(Some(body)) = one {
            prop_assert_eq!(oracle(&bytes), Some(body));
        }
    }
}

#[test]
fn headers_are_written_in_hexadecimal() {
    for (length, text) in [(1, "1\r\n"), (15, "f\r\n"), (16, "10\r\n"), (255, "ff\r\n"), (4096, "1000\r\n")] {
        let mut out = Vec::new();
        write_chunk_header(length, &mut out);
        assert_eq!(out, text.as_bytes());
    }
    let mut out = Vec::new();
    write_chunk_header(usize::MAX, &mut out);
    assert_eq!(out, format!("{:x}\r\n", usize::MAX).as_bytes());
    assert_eq!(read(LAST_CHUNK, &[1]), Ok(Some((Vec::new(), LAST_CHUNK.len()))));
}

#[test]
fn nothing_is_used_after_the_end() {
    let mut decoder = ChunkDecoder::new();
    let bytes = b"0\r\n\r\nGET";
    assert_eq!(decoder.step(bytes), Ok(Step { consumed: 5, data: None, done: true }));
    assert_eq!(decoder.step(&bytes[5..]), Ok(Step { consumed: 0, data: None, done: true }));
}
