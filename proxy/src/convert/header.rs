//! Names, values and edits of headers.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction};

use super::at::{At, at};
use crate::config::{HeaderEdit, HeaderEdits};

/// Most edits of one kind at one level, as in Envoy.
const MAX_EDITS: usize = 1000;
/// Longest header name and value, as in Envoy.
const MAX_HEADER_BYTES: usize = 16_384;

/// A header name, in lower case.
pub(super) fn name(at: At<'_, String>) -> Option<Arc<str>> {
    let is_token = !at.value.is_empty()
        && at.value.len() <= MAX_HEADER_BYTES
        && at.value.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    if !is_token {
        at.refuse(format_args!("{:?} is not a header name", at.value));
        return None;
    }
    Some(at.value.to_ascii_lowercase().into())
}

/// A header name, or one of the pseudo headers that may be matched.
pub(super) fn matched_name(at: At<'_, String>) -> Option<Arc<str>> {
    match at.value.as_str() {
        ":authority" | ":method" | ":path" | ":scheme" => Some(at.value.as_str().into()),
        _ => name(at),
    }
}

/// A header value without CR, LF, NUL or other control characters.
pub(super) fn value(at: At<'_, String>) -> Option<Arc<str>> {
    if at.value.len() > MAX_HEADER_BYTES || at.value.bytes().any(|b| b != b'\t' && b.is_ascii_control()) {
        at.refuse("is not a header value: too long, or with control characters");
        return None;
    }
    Some(at.value.as_str().into())
}

/// A header value in Envoy's substitution format, of which only `%%` is served.
pub(super) fn format(at: At<'_, String>) -> Option<Arc<str>> {
    let given = value(at)?;
    if !given.contains('%') {
        return Some(given);
    }
    let mut plain = String::with_capacity(given.len());
    let mut rest: &str = &given;
    while let Some((before, after)) = rest.split_once('%') {
        plain.push_str(before);
        match after.split_once('%') {
            Some(("", after)) => {
                plain.push('%');
                rest = after;
            }
            Some((operator, _)) => {
                at.refuse(format_args!("operator %{operator}% is not served; write a percent sign as %%"));
                return None;
            }
            None => {
                at.refuse("has a lone percent sign; write it as %%");
                return None;
            }
        }
    }
    plain.push_str(rest);
    Some(plain.into())
}

/// Headers to add and to remove at one level.
pub(super) fn edits(add: At<'_, Vec<HeaderValueOption>>, remove: At<'_, Vec<String>>) -> HeaderEdits {
    for (at, count) in [(add.with(&()), add.value.len()), (remove.with(&()), remove.value.len())] {
        if count > MAX_EDITS {
            at.refuse(format_args!("{count} entries; at most {MAX_EDITS} are allowed"));
        }
    }
    HeaderEdits {
        remove: remove.each().filter_map(editable_name).collect(),
        add: add.each().filter_map(|option| edit(&option)).flatten().collect(),
    }
}

/// A name that may be edited: not a pseudo header, not the host, nothing that frames the message.
fn editable_name(at: At<'_, String>) -> Option<Arc<str>> {
    let name = name(at)?;
    if matches!(&*name, "host" | "content-length" | "transfer-encoding" | "connection") {
        at.refuse(format_args!("{name} must not be edited"));
        return None;
    }
    Some(name)
}

/// `Some(None)`: nothing to add, since the value is empty and may not be kept.
fn edit(option: &At<'_, HeaderValueOption>) -> Option<Option<HeaderEdit>> {
    let option = *option;
    let header = at!(option.header).required()?;
    let name = editable_name(at!(header.key));
    let value = if header.value.raw_value.is_empty() {
        format(at!(header.value))
    } else {
        let raw = at!(header.raw_value);
        match String::from_utf8(raw.value.clone()) {
            Ok(text) => self::value(raw.with(&text)),
            Err(_) => {
                raw.refuse("is not UTF-8");
                None
            }
        }
    };
    let action = at!(option.append_action).one_of::<HeaderAppendAction>();
    let (name, value, action) = (name?, value?, action?);
    if value.is_empty() && !option.value.keep_empty_value {
        return Some(None);
    }
    let append = option.value.append.as_ref().map(|flag| flag.value);
    Some(Some(match (append, action) {
        (Some(false), _) | (None, HeaderAppendAction::OverwriteIfExistsOrAdd) => HeaderEdit::Overwrite(name, value),
        (Some(true), _) | (None, HeaderAppendAction::AppendIfExistsOrAdd) => HeaderEdit::Append(name, value),
        (None, HeaderAppendAction::AddIfAbsent) => HeaderEdit::AddIfAbsent(name, value),
        (None, HeaderAppendAction::OverwriteIfExists) => HeaderEdit::OverwriteIfExists(name, value),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::rejection::{Findings, ResourceKind};
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::HeaderValue;

    fn read_format(text: &str) -> Result<Arc<str>, String> {
        let findings = Findings::default();
        let text = text.to_owned();
        let read = format(At::root(&findings, &text));
        findings.finish(ResourceKind::Listener, "", read).result.map_err(|r| r.to_string())
    }

    #[test]
    fn percent_signs_are_doubled_and_operators_named() {
        assert_eq!(read_format("100%% of %%").unwrap().as_ref(), "100% of %");
        assert!(read_format("a %REQ(x)% b").unwrap_err().contains("operator %REQ(x)% is not served"));
        assert!(read_format("50%").unwrap_err().contains("lone percent"));
        assert!(read_format("a\r\nb: c").unwrap_err().contains("control"));
    }

    #[test]
    fn names_are_tokens_and_framing_is_not_edited() {
        for (bad, text) in [
            ("", "is not a header name"),
            ("a b", "is not a header name"),
            ("a\r\nb", "is not a header name"),
            ("é", "is not a header name"),
            (":path", "is not a header name"),
            ("Host", "must not be edited"),
            ("Content-Length", "must not be edited"),
        ] {
            let findings = Findings::default();
            let remove = vec![bad.to_owned()];
            edits(At::root(&findings, &Vec::new()), At::root(&findings, &remove));
            let rejection = findings.finish(ResourceKind::Listener, "", Some(())).result.unwrap_err();
            assert!(rejection.to_string().contains(text), "{bad:?}: {rejection}");
        }
    }

    #[test]
    fn append_actions_and_the_flag_before_them() {
        let option = |append: Option<bool>, action: i32| HeaderValueOption {
            header: Some(HeaderValue { key: "X-A".into(), value: "1".into(), raw_value: Vec::new() }),
            append: append.map(|value| envoy_types::pb::google::protobuf::BoolValue { value }),
            append_action: action,
            keep_empty_value: false,
        };
        let (n, v): (Arc<str>, Arc<str>) = ("x-a".into(), "1".into());
        for (option, expected) in [
            (option(None, 0), HeaderEdit::Append(n.clone(), v.clone())),
            (option(None, 1), HeaderEdit::AddIfAbsent(n.clone(), v.clone())),
            (option(None, 2), HeaderEdit::Overwrite(n.clone(), v.clone())),
            (option(None, 3), HeaderEdit::OverwriteIfExists(n.clone(), v.clone())),
            (option(Some(false), 0), HeaderEdit::Overwrite(n.clone(), v.clone())),
            (option(Some(true), 0), HeaderEdit::Append(n.clone(), v.clone())),
        ] {
            let findings = Findings::default();
            let read = edits(At::root(&findings, &vec![option]), At::root(&findings, &Vec::new()));
            assert_eq!(read.add, vec![expected]);
        }
    }
}
