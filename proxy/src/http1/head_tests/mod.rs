//! Tests of heads, chunks and paths. The attack rows are in `attacks`, named by their number in the threat table.

mod attacks;
mod chunks;
mod edits;
mod heads;
mod paths;

use crate::config::UnderscoreHeaders;
use crate::fault::Kind;

use super::*;

const LIMITS: HeadLimits = HeadLimits { max_bytes: 60 * 1024, max_headers: 100, underscores: UnderscoreHeaders::Allow };

/// The verdict on a whole request head.
fn verdict(bytes: &[u8]) -> Result<BodyLength, Kind> {
    let mut table = RequestTable::default();
    match table.parse(bytes, &LIMITS)? {
        Progress::Complete { .. } => Ok(table.view(bytes).body()),
        Progress::Partial => panic!("the head is not whole: {:?}", String::from_utf8_lossy(bytes)),
    }
}

/// The verdict on a POST with these header lines beside `Host`.
fn with_lines(lines: &str) -> Result<BodyLength, Kind> {
    verdict(format!("POST /p HTTP/1.1\r\nHost: shop\r\n{lines}\r\n").as_bytes())
}

/// The verdict on a GET of this target.
fn with_target(target: &str) -> Result<BodyLength, Kind> {
    verdict(format!("GET {target} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes())
}

/// Parses a whole request head and gives it to `look`.
fn request<T>(bytes: &[u8], look: impl FnOnce(RequestHead<'_>) -> T) -> T {
    let mut table = RequestTable::default();
    let progress = table.parse(bytes, &LIMITS);
    assert!(matches!(progress, Ok(Progress::Complete { .. })), "{progress:?}: {}", String::from_utf8_lossy(bytes));
    look(table.view(bytes))
}

/// Parses a whole response head and gives it to `look`.
fn response<T>(bytes: &[u8], look: impl FnOnce(ResponseHead<'_>) -> T) -> T {
    let mut table = ResponseTable::default();
    let progress = table.parse(bytes, &ResponseLimits::default());
    assert!(matches!(progress, Ok(Progress::Complete { .. })), "{progress:?}: {}", String::from_utf8_lossy(bytes));
    look(table.view(bytes))
}
