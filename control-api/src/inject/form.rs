//! Purpose: what an annotation's value may look like, and its one normal spelling.
//! Shape: a [`Form`] describes itself for the documentation and reads a value; what it gives back is put into
//! arguments and fields of the pod as it is, so nothing that passed can mean something else to a shell or to YAML.
//! Errors: a sentence that says what is allowed, and the word that was probably meant.
//! Limits: a list has at most 64 entries, a value at most 1,024 bytes.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::model::duration::{format_duration, parse_duration};
use crate::model::problem::nearest;

const ENTRIES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 1_024;
/// One thousandth of a CPU to 1,024 CPUs, as the proxy takes it.
const CPU_MILLI: RangeInclusive<u64> = 1..=1_024_000;
/// 1 MiB to 1 TiB.
const MEMORY_BYTES: RangeInclusive<u128> = (1 << 20)..=(1 << 40);
/// The bytes of one unit of memory.
const MEMORY_UNITS: &[(&str, u128)] = &[
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Host and port.
    Address,
    /// Networks; with `true`, `*` stands for all.
    Cidrs(bool),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An amount of CPU, or `none`.
    Cpu,
    /// User or group ids.
    Ids,
    /// The name of a container image.
    Image,
    /// A log level, or a filter by module.
    LogFilter,
    /// An amount of memory, or `none`.
    Memory,
    /// TCP ports; with `true`, `*` stands for all.
    Ports(bool),
    /// Whole seconds between these two; the word, where there is one, leaves it to the injector.
    Span(u64, u64, Option<&'static str>),
    /// A number of threads, or `auto`.
    Workers,
    /// The injector writes it; what anybody else wrote is replaced.
    Written,
}

impl Form {
    /// The form in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "host:port",
            Self::Choice(_) => "word",
            Self::Cidrs(_) => "list of networks",
            Self::Cpu | Self::Memory => "quantity",
            Self::Ids => "list of ids",
            Self::Image => "image",
            Self::LogFilter => "level or filter",
            Self::Ports(_) => "list of ports",
            Self::Span(..) => "duration",
            Self::Workers => "number",
            Self::Written => "JSON or YAML, written by the injector",
        }
    }

    /// The allowed values in words.
    #[must_use]
    pub fn range(self) -> String {
        match self {
            Self::Address => "a DNS name or IP address, a colon, a port in 1..=65535".into(),
            Self::Choice(words) => words.join(", "),
            Self::Cidrs(all) => format!("{}up to 64 of 10.0.0.0/8 or fd00::/8, separated by commas", star(all)),
            Self::Cpu => "1m to 1024 (500m is half a CPU), or none".into(),
            Self::Ids => "up to 64 numbers in 0..=4294967294, separated by commas".into(),
            Self::Image => "an image's name with tag or digest".into(),
            Self::LogFilter => "off, error, warn, info, debug, trace, or info,module=debug".into(),
            Self::Memory => "1Mi to 1Ti (Ki, Mi, Gi, Ti, k, M, G, T or bytes), or none".into(),
            Self::Ports(all) => format!("{}up to 64 of 1..=65535, separated by commas", star(all)),
            Self::Span(low, high, word) => {
                let span = |seconds| format_duration(Duration::from_secs(seconds));
                let word = word.map(|word| format!("{word}, or ")).unwrap_or_default();
                format!("{word}{} to {} in whole seconds", span(low), span(high))
            }
            Self::Workers => "auto, or 1..=1024".into(),
            Self::Written => "nothing: the injector writes it".into(),
        }
    }

    /// The value in its normal spelling, or what is wrong with it.
    pub fn read(self, value: &str) -> Result<String, Refusal> {
        let value = value.trim();
        if value.len() > VALUE_BYTES_MAX && self != Self::Written {
            return Err(format!("is {} bytes long; at most {VALUE_BYTES_MAX} are allowed", value.len()).into());
        }
        let read = match self {
            Self::Address => is_address(value).then(|| value.to_owned()),
            Self::Choice(words) => return read_choice(value, words),
            Self::Cidrs(all) => return read_list(value, all, read_cidr),
            Self::Cpu => (value == "none" || cpu_milli(value).is_some()).then(|| value.to_owned()),
            Self::Ids => return read_list(value, false, |one| read_number(one, 0..=u64::from(u32::MAX) - 1)),
            Self::Image => is_image(value).then(|| value.to_owned()),
            Self::LogFilter => crate::settings::is_log_filter(value).then(|| value.to_owned()),
            Self::Memory => (value == "none" || memory_bytes(value).is_some()).then(|| value.to_owned()),
            Self::Ports(all) => return read_list(value, all, |one| read_number(one, 1..=65_535)),
            Self::Span(low, high, word) if word != Some(value) => read_span(value, low..=high),
            Self::Span(..) | Self::Written => Some(value.to_owned()),
            Self::Workers if value == "auto" => Some(value.to_owned()),
            Self::Workers => read_number(value, 1..=1_024),
        };
        read.ok_or_else(|| format!("must be {}", self.range()).into())
    }
}

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is allowed.
    pub message: String,
    /// The word that was probably meant.
    pub near: Option<&'static str>,
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self { message, near: None }
    }
}

fn star(all: bool) -> &'static str {
    if all { "*, or " } else { "" }
}

fn read_choice(value: &str, words: &'static [&'static str]) -> Result<String, Refusal> {
    if words.contains(&value) {
        return Ok(value.to_owned());
    }
    Err(Refusal { message: format!("must be one of {}", words.join(", ")), near: nearest(value, words) })
}

/// Entries between commas; no entry at all is an empty list.
fn read_list(value: &str, all: bool, one: impl Fn(&str) -> Option<String>) -> Result<String, Refusal> {
    if value.is_empty() || (all && value == "*") {
        return Ok(value.to_owned());
    }
    let entries: Vec<&str> = value.split(',').map(str::trim).collect();
    if entries.len() > ENTRIES_MAX {
        return Err(format!("has {} entries; at most {ENTRIES_MAX} are allowed", entries.len()).into());
    }
    let mut list = Vec::with_capacity(entries.len());
    for entry in entries {
        match one(entry) {
            Some(entry) => list.push(entry),
            None => return Err(format!("has the entry {entry:?}").into()),
        }
    }
    Ok(list.join(","))
}

fn read_number(text: &str, range: RangeInclusive<u64>) -> Option<String> {
    let digits = !text.is_empty() && text.len() <= 10 && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = if digits { text.parse().ok()? } else { return None };
    range.contains(&number).then(|| number.to_string())
}

fn read_cidr(text: &str) -> Option<String> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = read_number(length, 0..=longest)?;
    Some(format!("{address}/{length}"))
}

fn read_span(text: &str, range: RangeInclusive<u64>) -> Option<String> {
    let span = parse_duration(text).ok().filter(|span| span.subsec_nanos() == 0)?;
    range.contains(&span.as_secs()).then(|| format!("{}s", span.as_secs()))
}

/// A quantity of CPU in thousandths.
#[must_use]
pub fn cpu_milli(text: &str) -> Option<u64> {
    let milli = match text.strip_suffix('m') {
        Some(milli) => read_number(milli, CPU_MILLI)?.parse().ok()?,
        None => {
            let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
            let whole: u64 = read_number(whole, 0..=1_024)?.parse().ok()?;
            let digits = (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
            let part: u64 = if digits { format!("{part:0<3}").parse().ok()? } else { return None };
            whole * 1_000 + part
        }
    };
    CPU_MILLI.contains(&milli).then_some(milli)
}

/// A quantity of memory in bytes.
#[must_use]
pub fn memory_bytes(text: &str) -> Option<u128> {
    let (unit, factor) = MEMORY_UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
    let number = text.strip_suffix(unit)?;
    let digits = (1..=13).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u128 = if digits { number.parse().ok()? } else { return None };
    Some(number * factor).filter(|bytes| MEMORY_BYTES.contains(bytes))
}

fn is_image(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@-[]".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'[');
    first && text.len() <= 512 && text.bytes().all(allowed)
}

fn is_address(text: &str) -> bool {
    split_address(text).is_some()
}

/// Host (without brackets) and port.
#[must_use]
pub fn split_address(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = read_number(port, 1..=65_535)?.parse().ok()?;
    if let Some(inside) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inside.parse::<std::net::Ipv6Addr>().ok().map(|ip| (ip.to_string(), port));
    }
    let label = |label: &str| {
        let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let inside = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        edge(label.bytes().next()) && edge(label.bytes().last()) && inside && label.len() <= 63
    };
    (host.len() <= 253 && host.trim_end_matches('.').split('.').all(label)).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelling(form: Form, value: &str) -> Option<String> {
        form.read(value).ok()
    }

    #[test]
    fn quantities_at_their_edges() {
        for (text, milli) in
            [("1m", 1), ("100m", 100), ("0.5", 500), ("1.25", 1_250), ("2", 2_000), ("1024", 1_024_000)]
        {
            assert_eq!(cpu_milli(text), Some(milli), "{text}");
        }
        for text in ["0", "0m", "0.0", "1024001m", "1024.001", "-1", "1.2345", "1.", "", "m", "NaN", "1e3", "1k"] {
            assert_eq!(cpu_milli(text), None, "{text}");
        }
        for (text, bytes) in
            [("1Mi", 1 << 20), ("1048576", 1 << 20), ("1Ti", 1 << 40), ("64Mi", 64 << 20), ("2M", 2_000_000)]
        {
            assert_eq!(memory_bytes(text), Some(bytes), "{text}");
        }
        for text in ["1048575", "1025Gi", "2Ti", "1Xi", "Mi", "", "1.5Gi", "99999999999999Ti", "64 Mi", "-1Mi"] {
            assert_eq!(memory_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn lists_get_one_spelling() {
        assert_eq!(spelling(Form::Ports(true), " 80, 443 "), Some("80,443".into()));
        assert_eq!(spelling(Form::Ports(true), "*"), Some("*".into()));
        assert_eq!(spelling(Form::Ports(false), "*"), None);
        assert_eq!(spelling(Form::Ports(false), ""), Some(String::new()));
        assert_eq!(spelling(Form::Ports(false), "080"), Some("80".into()));
        for bad in ["0", "65536", "80,,443", "80;443", "http", "1-2", "+80", "8 0"] {
            assert_eq!(spelling(Form::Ports(false), bad), None, "{bad}");
        }
        let many: Vec<String> = (1..=65).map(|port| port.to_string()).collect();
        assert!(spelling(Form::Ports(false), &many[..64].join(",")).is_some());
        assert_eq!(spelling(Form::Ports(false), &many.join(",")), None);
        assert_eq!(spelling(Form::Cidrs(false), "10.0.0.0/8, FD00::/8"), Some("10.0.0.0/8,fd00::/8".into()));
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "10.0.0/8", "*", "10.0.0.0/-1"] {
            assert_eq!(spelling(Form::Cidrs(false), bad), None, "{bad}");
        }
        assert_eq!(spelling(Form::Ids, "0,4294967294"), Some("0,4294967294".into()));
        assert_eq!(spelling(Form::Ids, "4294967295"), None);
    }

    #[test]
    fn addresses_and_images_cannot_carry_anything_else() {
        assert_eq!(split_address("control.mesh.svc:15010"), Some(("control.mesh.svc".into(), 15_010)));
        assert_eq!(split_address("[FD00::1]:15010"), Some(("fd00::1".into(), 15_010)));
        for bad in ["control", "control:0", "control:65536", ":15010", "a b:1", "a\":1", "$(X):1", "fd00::1:1", "-a:1"]
        {
            assert_eq!(split_address(bad), None, "{bad}");
        }
        let digest = format!("registry.example:5000/mesh/outrigger-proxy@sha256:{}", "0".repeat(64));
        assert_eq!(spelling(Form::Image, &digest), Some(digest.clone()));
        for bad in ["", "a b", "$(X)", "-x", "a\nb", &"a".repeat(513)] {
            assert_eq!(spelling(Form::Image, bad), None, "{bad}");
        }
    }

    #[test]
    fn spans_and_words() {
        let drain = Form::Span(0, 3_600, Some("auto"));
        assert_eq!(spelling(drain, "auto"), Some("auto".into()));
        assert_eq!(spelling(drain, "1m30s"), Some("90s".into()));
        for bad in ["1.5s", "500ms", "61m", "-1s", "90", ""] {
            assert_eq!(spelling(drain, bad), None, "{bad}");
        }
        let refusal = Form::Choice(&["enabled", "disabled"]).read("disable").expect_err("not a word of it");
        assert_eq!(refusal.near, Some("disabled"));
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        assert!(Form::Image.read(&long).expect_err("too long").message.contains("at most"));
        assert_eq!(Form::Written.read(&long), Ok(long));
    }
}
