//! **Purpose.** A cursor over a message that knows its path, so that a rejection cannot name the wrong place.
//!
//! **Shape.** [`At`] is a borrowed value and a linked list of steps on the stack; a path becomes text only when something
//! is refused or ignored. `at!(cluster.connect_timeout)` steps into a field and takes the name from the field itself.
//! A reader records what it refuses and returns `None`; the reader above goes on with the next field, so that one
//! pass finds everything.
//!
//! **Limits.** Messages nest at most 100 deep (prost), so paths are short and the recursion over them is bounded.

use std::fmt;
use std::time::Duration;

use envoy_types::pb::google::protobuf::{self as google, Any};
use outrigger_xds_proto::any;
use prost::{Message, Name};

use super::rejection::Findings;

/// Longest span accepted: the timers count nanoseconds in 64 bits.
const MAX_SECONDS: i64 = 9_223_372_035;

/// A value of a message and where it is.
pub(super) struct At<'a, T: ?Sized> {
    pub(super) value: &'a T,
    path: Path<'a>,
}

#[derive(Clone, Copy)]
struct Path<'a> {
    findings: &'a Findings,
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
    Root,
}

/// Steps into a field, named by itself.
macro_rules! at {
    ($at:ident . $field:ident) => {
        $at.field(stringify!($field), &$at.value.$field)
    };
}
pub(super) use at;

impl<T: ?Sized> Clone for At<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for At<'_, T> {}

impl<'a, T: ?Sized> At<'a, T> {
    /// The whole resource.
    pub(super) fn root(findings: &'a Findings, value: &'a T) -> Self {
        Self { value, path: Path { findings, parent: None, step: Step::Root } }
    }

    /// A field of this message. Prefer `at!`; by hand only for the variants of a oneof.
    pub(super) fn field<'b, U: ?Sized>(&'b self, name: &'static str, value: &'b U) -> At<'b, U> {
        let name = name.strip_prefix("r#").unwrap_or(name);
        At { value, path: Path { findings: self.path.findings, parent: Some(&self.path), step: Step::Field(name) } }
    }

    /// Another value that stands for the one here: an unpacked `Any`, the content of an option.
    pub(super) fn with<'b, U: ?Sized>(&self, value: &'b U) -> At<'b, U>
    where
        'a: 'b,
    {
        At { value, path: self.path }
    }

    /// Records why this value is refused.
    pub(super) fn refuse(&self, problem: impl fmt::Display) {
        self.path.findings.refuse(self.path.to_string(), &problem.to_string());
    }

    /// Records that this value was set and is not used.
    pub(super) fn ignore(&self) {
        self.path.findings.ignore(self.path.without_indexes());
    }
}

impl<T> At<'_, Vec<T>> {
    /// Every item with its index.
    pub(super) fn each(&self) -> impl Iterator<Item = At<'_, T>> {
        self.value.iter().enumerate().map(|(index, value)| At {
            value,
            path: Path { findings: self.path.findings, parent: Some(&self.path), step: Step::Index(index) },
        })
    }
}

impl<T> At<'_, std::collections::HashMap<String, T>> {
    /// The value under `key`.
    pub(super) fn entry<'b>(&'b self, key: &'b str) -> Option<At<'b, T>> {
        let value = self.value.get(key)?;
        let path = Path { findings: self.path.findings, parent: Some(&self.path), step: Step::Key(key) };
        Some(At { value, path })
    }

    /// Every entry, sorted by key.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, At<'_, T>)> {
        let mut keys: Vec<&str> = self.value.keys().map(String::as_str).collect();
        keys.sort_unstable();
        keys.into_iter().filter_map(|key| Some((key, self.entry(key)?)))
    }
}

impl<'a, T> At<'a, Option<T>> {
    /// What is there, if anything.
    pub(super) fn set(self) -> Option<At<'a, T>> {
        self.value.as_ref().map(|value| At { value, path: self.path })
    }

    /// What must be there.
    pub(super) fn required(self) -> Option<At<'a, T>> {
        if self.value.is_none() {
            self.refuse("is not set; it is required");
        }
        self.set()
    }
}

impl At<'_, i32> {
    /// A known value of an enumeration.
    pub(super) fn one_of<E: TryFrom<i32>>(self) -> Option<E> {
        let known = E::try_from(*self.value).ok();
        if known.is_none() {
            self.refuse(format_args!("{} is not a known value", self.value));
        }
        known
    }
}

impl At<'_, String> {
    /// A text with at least one byte and no control characters.
    pub(super) fn named(self) -> Option<String> {
        if self.value.is_empty() {
            self.refuse("is empty; a name is required");
            return None;
        }
        if self.value.chars().any(char::is_control) {
            self.refuse(format_args!("{:?} has control characters", self.value));
            return None;
        }
        Some(self.value.clone())
    }
}

impl At<'_, Option<google::UInt32Value>> {
    /// A number within `range`.
    pub(super) fn within(self, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let value = self.value.as_ref()?.value;
        if range.contains(&value) {
            return Some(value);
        }
        self.refuse(format_args!("{value} is not in {}..={}", range.start(), range.end()));
        None
    }

    /// Any number.
    pub(super) fn number(self) -> Option<u32> {
        self.value.as_ref().map(|value| value.value)
    }

    /// A count of which 0 means "no bound".
    pub(super) fn bound(self) -> Option<u32> {
        self.number().filter(|value| *value > 0)
    }
}

impl At<'_, Option<google::BoolValue>> {
    /// The flag, or its default.
    pub(super) fn flag(self, default: bool) -> bool {
        self.value.as_ref().map_or(default, |value| value.value)
    }
}

impl At<'_, Option<google::Duration>> {
    /// A span from zero up; what is wrong is refused and reads as unset.
    pub(super) fn span(self) -> Option<Duration> {
        let value = self.value.as_ref()?;
        let span = match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
            (Ok(seconds), Ok(nanos)) if value.seconds <= MAX_SECONDS && nanos < 1_000_000_000 => {
                Some(Duration::new(seconds, nanos))
            }
            _ => None,
        };
        if span.is_none() {
            self.refuse(format_args!("{} is not in 0s..={MAX_SECONDS}s", SpanText(value)));
        }
        span
    }

    /// A span above zero.
    pub(super) fn positive(self) -> Option<Duration> {
        let span = self.span()?;
        if span.is_zero() {
            self.refuse("0s is not above 0s");
            return None;
        }
        Some(span)
    }

    /// A time limit: unset is `default`, zero is none.
    pub(super) fn limit(self, default: Option<Duration>) -> Option<Duration> {
        match self.value {
            None => default,
            Some(_) => self.span().filter(|span| !span.is_zero()),
        }
    }
}

impl At<'_, Any> {
    /// The message inside, when it is an `M`; whoever calls has looked at the type URL.
    pub(super) fn unpack<M: Message + Default + Name>(&self) -> Option<M> {
        match any::unpack::<M>(self.value) {
            Ok(message) => Some(message),
            Err(error) => {
                self.refuse(error);
                None
            }
        }
    }

    /// Whether the message inside says that it is an `M`.
    pub(super) fn is<M: Name>(&self) -> bool {
        self.type_name() == M::full_name()
    }

    /// The full name of the message inside, also of one that a `TypedStruct` stands for.
    pub(super) fn type_name(&self) -> String {
        any::content_type(self.value).unwrap_or_else(|_| self.value.type_url.chars().take(200).collect())
    }
}

impl Path<'_> {
    fn without_indexes(&self) -> String {
        let mut text = self.parent.map(Path::without_indexes).unwrap_or_default();
        if let Step::Field(name) = self.step {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(name);
        }
        text
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_none_or(|parent| matches!(parent.step, Step::Root)) => {
                f.write_str(name)
            }
            Step::Field(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key:?}]"),
            Step::Root => Ok(()),
        }
    }
}

/// A span as proto JSON writes it, whatever its sign.
struct SpanText<'a>(&'a google::Duration);

impl fmt::Display for SpanText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0.seconds) * 1_000_000_000 + i128::from(self.0.nanos);
        let sign = if nanos < 0 { "-" } else { "" };
        let (seconds, rest) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
        if rest == 0 { write!(f, "{sign}{seconds}s") } else { write!(f, "{sign}{seconds}.{rest:09}s") }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ResourceKind;
    use super::*;
    use envoy_types::pb::envoy::config::cluster::v3::Cluster;

    fn problem(read: impl FnOnce(At<'_, Cluster>), cluster: &Cluster) -> String {
        let findings = Findings::default();
        read(At::root(&findings, cluster));
        findings.finish::<()>(ResourceKind::Cluster, "c", None).result.unwrap_err().to_string()
    }

    #[test]
    fn a_path_is_written_from_the_fields_stepped_through() {
        let cluster = Cluster {
            filters: vec![Default::default(), Default::default()],
            typed_extension_protocol_options: [("a b".to_owned(), Any::default())].into(),
            ..Default::default()
        };
        let text = problem(
            |at| {
                let filters = at!(at.filters);
                let filter = filters.each().nth(1).unwrap();
                at!(filter.name).named();
                at!(at.typed_extension_protocol_options).entry("a b").unwrap().refuse("no");
            },
            &cluster,
        );
        assert_eq!(
            text,
            "cluster \"c\": filters[1].name: is empty; a name is required; \
             cluster \"c\": typed_extension_protocol_options[\"a b\"]: no"
        );
    }

    #[test]
    fn spans_keep_to_their_bounds() {
        let span = |seconds, nanos| Some(google::Duration { seconds, nanos });
        for (value, ok) in [
            (span(0, 0), true),
            (span(0, 999_999_999), true),
            (span(MAX_SECONDS, 0), true),
            (span(0, 1_000_000_000), false),
            (span(MAX_SECONDS + 1, 0), false),
            (span(-1, 0), false),
            (span(0, -1), false),
            (span(i64::MIN, i32::MIN), false),
            (span(1, -1), false),
        ] {
            let findings = Findings::default();
            assert_eq!(At::root(&findings, &value).span().is_some(), ok, "{value:?}");
        }
        let cluster = Cluster { connect_timeout: span(-1, -500_000_000), ..Default::default() };
        assert!(problem(|at| _ = at!(at.connect_timeout).span(), &cluster).contains("-1.500000000s is not in"));
    }
}
