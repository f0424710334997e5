//! Which messages are gRPC, and which gRPC-Web: by their content type alone. Letter case does not count (RFC 9110
//! §8.3.1), and parameters after `;` are let be. Source: gRPC over HTTP/2; `doc/PROTOCOL-WEB.md`.

const GRPC: &[u8] = b"application/grpc";
const WEB: &[u8] = b"application/grpc-web";
const WEB_TEXT: &[u8] = b"application/grpc-web-text";

/// How a body of gRPC-Web is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebForm {
    /// As in gRPC.
    Binary,
    /// The same in base64, for browsers that cannot read bytes as they come.
    Text,
}

/// The content type of a gRPC call or answer: `application/grpc`, alone or with `+` and a format.
pub fn is_grpc(content_type: &[u8]) -> bool {
    format(content_type, GRPC).is_some()
}

/// How a message of gRPC-Web with this content type is written; `None`: it is not gRPC-Web.
pub fn web_form(content_type: &[u8]) -> Option<WebForm> {
    if format(content_type, WEB_TEXT).is_some() {
        return Some(WebForm::Text);
    }
    format(content_type, WEB).map(|_| WebForm::Binary)
}

/// How the answer to a request of gRPC-Web is to be written: as the first of `accept` that is gRPC-Web, else as the request.
pub fn accepted_form(accept: Option<&[u8]>, request: WebForm) -> WebForm {
    let kinds = accept.unwrap_or_default().split(|b| *b == b',');
    kinds.filter_map(|kind| web_form(kind.trim_ascii())).next().unwrap_or(request)
}

/// Writes the gRPC content type of a request of gRPC-Web: its format stays.
pub fn put_grpc_type(web: &[u8], out: &mut Vec<u8>) {
    let kept = format(web, WEB_TEXT).or_else(|| format(web, WEB)).unwrap_or_default();
    out.extend_from_slice(GRPC);
    out.extend_from_slice(kept);
}

/// Writes the gRPC-Web content type of an answer of gRPC. A format that is not named is named, as Envoy does: gRPC means
/// protobuf by it.
pub fn put_web_type(grpc: &[u8], form: WebForm, out: &mut Vec<u8>) {
    out.extend_from_slice(match form {
        WebForm::Binary => WEB,
        WebForm::Text => WEB_TEXT,
    });
    let kept = format(grpc, GRPC).unwrap_or_default();
    out.extend_from_slice(if kept.is_empty() { b"+proto" } else { kept });
}

/// What follows `kind` in a content type up to its parameters: nothing, or `+` and a format.
fn format<'a>(content_type: &'a [u8], kind: &[u8]) -> Option<&'a [u8]> {
    let (found, rest) = content_type.split_at_checked(kind.len())?;
    if !found.eq_ignore_ascii_case(kind) || !matches!(rest.first(), None | Some(b'+' | b';' | b' ')) {
        return None;
    }
    rest.split(|b| matches!(b, b';' | b' ')).next()
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

    #[test]
    fn the_forms_of_grpc_web_are_told_apart() {
        for (kind, form) in [
            ("application/grpc-web", Some(WebForm::Binary)),
            ("application/grpc-web+proto", Some(WebForm::Binary)),
            ("application/grpc-web-text", Some(WebForm::Text)),
            ("application/gRPC-Web-Text+proto; charset=utf-8", Some(WebForm::Text)),
            ("application/grpc-web-texts", None),
            ("application/grpc", None),
            ("", None),
        ] {
            assert_eq!(web_form(kind.as_bytes()), form, "{kind}");
        }
        for (accept, form) in [
            (None, WebForm::Binary),
            (Some("*/*"), WebForm::Binary),
            (Some("application/json, application/grpc-web-text+proto"), WebForm::Text),
            (Some("application/grpc-web,application/grpc-web-text"), WebForm::Binary),
        ] {
            assert_eq!(accepted_form(accept.map(str::as_bytes), WebForm::Binary), form, "{accept:?}");
        }
    }

    #[test]
    fn formats_stay_over_the_change() {
        let put = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        for (web, grpc) in [
            ("application/grpc-web", "application/grpc"),
            ("application/grpc-web+json", "application/grpc+json"),
            ("application/grpc-web-text+thrift; a=b", "application/grpc+thrift"),
        ] {
            assert_eq!(put(&|out| put_grpc_type(web.as_bytes(), out)), grpc);
        }
        for (grpc, form, web) in [
            ("application/grpc", WebForm::Binary, "application/grpc-web+proto"),
            ("application/grpc+json", WebForm::Text, "application/grpc-web-text+json"),
        ] {
            assert_eq!(put(&|out| put_web_type(grpc.as_bytes(), form, out)), web);
        }
    }
}
