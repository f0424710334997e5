//! Purpose: one refused value, said so that the reader can mend it without a second look.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One reason why a document was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which document of the input, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<usize>,
    /// `Kind namespace/name`, as far as it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Path inside the document, such as `spec.rules[0].backendRefs[1].weight`.
    #[serde(default)]
    pub path: String,
    /// The refused value, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What is wrong, with the allowed values or range.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.document, &self.object) {
            (Some(document), Some(object)) => write!(out, "document {document} ({object}): ")?,
            (Some(document), None) => write!(out, "document {document}: ")?,
            (None, Some(object)) => write!(out, "{object}: ")?,
            (None, None) => {}
        }
        if !self.path.is_empty() {
            write!(out, "{}: ", self.path)?;
        }
        if let Some(value) = &self.value {
            write!(out, "{value}: ")?;
        }
        out.write_str(&self.message)?;
        if let Some(remedy) = &self.remedy {
            write!(out, "; {remedy}")?;
        }
        Ok(())
    }
}

/// The entry of `allowed` that `given` most likely meant, if one is near.
#[must_use]
pub fn nearest<'a>(given: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let lower = given.to_ascii_lowercase();
    allowed
        .iter()
        .map(|word| (edit_distance(&lower, &word.to_ascii_lowercase()), *word))
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

fn edit_distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(64).collect();
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, from) in left.iter().enumerate() {
        let mut diagonal = line;
        let mut before = line + 1;
        for (column, to) in right.iter().enumerate() {
            let above = row.get(column + 1).copied().unwrap_or(usize::MAX);
            let best = (diagonal + usize::from(from != to)).min(above + 1).min(before + 1);
            if let Some(cell) = row.get_mut(column) {
                *cell = before;
            }
            diagonal = above;
            before = best;
        }
        if let Some(last) = row.last_mut() {
            *last = before;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        assert_eq!(nearest("Prefix", &["Exact", "PathPrefix"]), None);
        assert_eq!(nearest("hostname", &["hostnames", "rules"]), Some("hostnames"));
        assert_eq!(nearest("endpionts", &["endpoints", "limits"]), Some("endpoints"));
        assert_eq!(nearest("roundrobin", &["RoundRobin", "Random"]), Some("RoundRobin"));
    }

    #[test]
    fn the_line_names_document_object_path_and_remedy() {
        let problem = Problem {
            document: Some(2),
            object: Some("Upstream default/pay".into()),
            path: "spec.endpoints[0].weight".into(),
            value: Some("-1".into()),
            message: "not in 0..=1000000".into(),
            remedy: Some("use 1 for an even share".into()),
        };
        assert_eq!(
            problem.to_string(),
            "document 2 (Upstream default/pay): spec.endpoints[0].weight: -1: \
             not in 0..=1000000; use 1 for an even share"
        );
    }
}
