//! What this proxy answers by itself, in the form that a caller of gRPC reads.
//!
//! The answer is one head and no body: status 200, the content type, `grpc-status` and `grpc-message`, and as always
//! `outrigger-fault`. Source: gRPC over HTTP/2, Trailers-Only.

use super::GrpcCode;

/// The status of every such answer.
pub const STATUS: u16 = 200;

/// Writes the value of `grpc-message`: what is no printable ASCII, and `%`, as `%XX`.
pub fn put_message(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Headers of a local answer besides those that every local answer has. `message` is written by [`put_message`].
pub fn headers<'a>(code: GrpcCode, content_type: &'a [u8], message: &'a [u8]) -> [(&'static str, &'a [u8]); 3] {
    [("content-type", content_type), ("grpc-status", code.number().as_bytes()), ("grpc-message", message)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_printable_whatever_it_says() {
        for (text, expected) in [
            ("", ""),
            ("no healthy upstream", "no healthy upstream"),
            ("50% of ~\t\r\n", "50%25 of ~%09%0D%0A"),
            ("é\u{7f}\0", "%C3%A9%7F%00"),
        ] {
            let mut out = Vec::new();
            put_message(text, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn an_answer_is_a_head_alone() {
        let headers = headers(GrpcCode::Unavailable, b"application/grpc", b"gone");
        assert_eq!(
            headers,
            [("content-type", &b"application/grpc"[..]), ("grpc-status", &b"14"[..]), ("grpc-message", &b"gone"[..]),]
        );
    }
}
