//! Which messages are gRPC: by their content type alone.

const GRPC: &[u8] = b"application/grpc";

/// The content type of a gRPC call or answer: `application/grpc`, alone or with `+` and a format. Letter case does not
/// count (RFC 9110 §8.3.1), and parameters after `;` are let be.
pub fn is_grpc(content_type: &[u8]) -> bool {
    let Some((kind, rest)) = content_type.split_at_checked(GRPC.len()) else { return false };
    kind.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for yes in ["application/grpc", "application/grpc+proto", "Application/GRPC+json", "application/grpc; a=b"] {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in ["", "application/grp", "application/grpc-web", "application/grpcx", "text/plain", "application/json"]
        {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }
}
