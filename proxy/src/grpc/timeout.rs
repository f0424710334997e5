//! The `grpc-timeout` header: how long the caller waits, as a number and a unit.
//!
//! Source: gRPC over HTTP/2, `TimeoutValue TimeoutUnit`: one to eight digits and one of `H M S m u n`. Anything else is as
//! if it was not there, as in Envoy: it is neither honoured nor changed.

use std::time::Duration;

/// Most digits of a value.
const DIGITS: usize = 8;
const MOST: u128 = 99_999_999;

/// Nanoseconds of each unit, the finest first.
const UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The span that a header value asks for.
pub fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let (_, unit_ns) = UNITS.iter().find(|(letter, _)| letter == unit)?;
    let count = digits.iter().fold(0_u64, |count, digit| count * 10 + u64::from(digit - b'0'));
    Some(duration(u128::from(count) * unit_ns))
}

/// What is left of a call's time `elapsed` after it came: never more than `max`, which the route may set.
pub fn left(asked: Duration, max: Option<Duration>, elapsed: Duration) -> Duration {
    max.map_or(asked, |max| asked.min(max)).saturating_sub(elapsed)
}

/// A header value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutValue {
    bytes: [u8; DIGITS + 1],
    begin: usize,
}

impl TimeoutValue {
    /// `left` in the finest unit that holds it. Never more than `left`, so that no hop grants time that its caller did not:
    /// what does not fit the digits is cut.
    pub fn new(left: Duration) -> Self {
        let ns = left.as_nanos();
        let fits = UNITS.iter().find(|(_, unit)| ns / unit <= MOST);
        let (letter, unit) = fits.copied().unwrap_or(UNITS[UNITS.len() - 1]);
        let mut count = (ns / unit).min(MOST);
        let mut value = Self { bytes: [b'0'; DIGITS + 1], begin: DIGITS - 1 };
        value.bytes[DIGITS] = letter;
        for at in (0..DIGITS).rev() {
            value.begin = at;
            value.bytes[at] = b'0' + u8::try_from(count % 10).unwrap_or(0);
            count /= 10;
            if count == 0 {
                break;
            }
        }
        value
    }

    /// Its text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[self.begin..]
    }
}

fn duration(ns: u128) -> Duration {
    let seconds = u64::try_from(ns / 1_000_000_000).unwrap_or(u64::MAX);
    Duration::new(seconds, u32::try_from(ns % 1_000_000_000).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_exactly() {
        for (text, expected) in [
            ("0n", Duration::ZERO),
            ("1n", Duration::from_nanos(1)),
            ("250u", Duration::from_micros(250)),
            ("00000100m", Duration::from_millis(100)),
            ("7S", Duration::from_secs(7)),
            ("2M", Duration::from_secs(120)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(expected), "{text}");
        }
        for bad in
            ["", "S", "1", "1s", "1h", "123456789S", "-1S", "+1S", "1.5S", " 1S", "1S ", "1 S", "1SS", "0x1S", "١S"]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn values_are_written_in_the_finest_unit_that_holds_them() {
        for (left, text) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_000), "100000u"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(TimeoutValue::new(left).as_bytes(), text.as_bytes(), "{left:?}");
        }
    }

    #[test]
    fn each_hop_has_less() {
        let secs = Duration::from_secs;
        assert_eq!(left(secs(5), None, secs(2)), secs(3));
        assert_eq!(left(secs(5), Some(secs(3)), secs(2)), secs(1));
        assert_eq!(left(secs(1), Some(secs(3)), secs(2)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn a_value_is_never_more_and_hardly_less(seconds in 0_u64..1 << 40, nanos in 0_u32..1_000_000_000) {
            let left = Duration::new(seconds, nanos);
            let written = TimeoutValue::new(left);
            let read = parse(written.as_bytes()).unwrap();
            prop_assert!(read <= left);
            // Eight digits of which the first is not zero, but for the step between units: within a thousandth.
            if left < Duration::from_secs(99_999_999 * 3600) {
                prop_assert!(left - read <= left / 1000, "{left:?} as {written:?}");
            }
        }
    }
}
