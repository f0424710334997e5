//! Purpose: spans as the Gateway API writes them.
//! Units: `h`, `m`, `s`, `ms`; up to four parts, whole numbers of at most five digits.
//! Source: Gateway API GEP-2257, a subset of Go's `ParseDuration` (no sign, fraction, `us` or `ns`).

use std::time::Duration;

const PARTS_MAX: usize = 4;
const DIGITS_MAX: usize = 5;

/// Reads a span such as `1h30m` or `250ms`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, tail) = tail.split_at(letters);
        let amount: u64 = match number.len() {
            1..=DIGITS_MAX => number.parse().map_err(|_| "not a duration".to_owned())?,
            0 => return Err("not a duration: a number must come first, without a sign".to_owned()),
            _ => return Err(format!("not a duration: more than {DIGITS_MAX} digits in a row")),
        };
        total += match unit {
            "h" => Duration::from_secs(amount * 3_600),
            "m" => Duration::from_secs(amount * 60),
            "s" => Duration::from_secs(amount),
            "ms" => Duration::from_millis(amount),
            "" => return Err("not a duration: the unit is missing (h, m, s, ms)".to_owned()),
            _ => return Err(format!("not a duration: unit {unit:?} is not one of h, m, s, ms")),
        };
        rest = tail;
        parts += 1;
        if parts > PARTS_MAX {
            return Err(format!("not a duration: more than {PARTS_MAX} parts"));
        }
    }
    if parts == 0 { Err("not a duration: it is empty".to_owned()) } else { Ok(total) }
}

/// Writes a span back in the same form.
#[must_use]
pub fn format_duration(span: Duration) -> String {
    let (seconds, millis) = (span.as_secs(), span.subsec_millis());
    let parts = [(seconds / 3_600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let mut text: String =
        parts.iter().filter(|(amount, _)| *amount > 0).map(|(amount, unit)| format!("{amount}{unit}")).collect();
    if millis > 0 {
        text.push_str(&format!("{millis}ms"));
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_forms_of_the_gateway_api() {
        for (text, millis) in
            [("0s", 0), ("250ms", 250), ("1s", 1_000), ("1m30s", 90_000), ("1h", 3_600_000), ("1s500ms", 1_500)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_would_read_and_the_gateway_api_would_not() {
        for text in ["", "1", "-1s", "+1s", "1.5s", "s", "1us", "NaN", "1 s", "100000s", "1s1s1s1s1s", "1é", "∞"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse_duration(&text);
        }

        #[test]
        fn what_is_written_is_read_back(millis in 0_u64..86_400_000) {
            let span = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(span)), Ok(span));
        }
    }
}
