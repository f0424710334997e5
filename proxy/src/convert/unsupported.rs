//! Finds fields that are set and not served, by name, also those that a newer sender knows and we do not.

use outrigger_xds_proto::support::{self, Verdict};
use prost::Name;

use super::rejection::Findings;

/// Records what of `encoded`, an `M`, is refused or ignored. What conversion refused at the same place is told once.
pub(super) fn find<M: Name>(encoded: &[u8], findings: &Findings) {
    match support::walk_bytes(&M::full_name(), encoded, "") {
        Ok(found) => {
            for finding in found {
                match finding.verdict {
                    Verdict::Ignore => findings.ignore(without_indexes(&finding.path)),
                    Verdict::Refuse => findings.refuse_unless_told(finding.path, &finding.reason),
                }
            }
        }
        Err(error) => findings.refuse(String::new(), &error.to_string()),
    }
}

/// `a[0].b["x.y"].c` becomes `a.b.c`: one counter for all places of a field.
fn without_indexes(path: &str) -> String {
    let mut kept = String::with_capacity(path.len());
    let (mut depth, mut is_quoted, mut is_escaped) = (0_u32, false, false);
    for c in path.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' if is_quoted => is_escaped = true,
            '"' if depth > 0 => is_quoted = !is_quoted,
            '[' if !is_quoted => depth += 1,
            ']' if !is_quoted => depth = depth.saturating_sub(1),
            _ if depth == 0 => kept.push(c),
            _ => {}
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_and_keys_are_cut() {
        for (path, kept) in
            [("a", "a"), ("a[0].b[12].c", "a.b.c"), (r#"a["x.y"].c"#, "a.c"), (r#"a["]\"]["].c"#, "a.c")]
        {
            assert_eq!(without_indexes(path), kept);
        }
    }
}
