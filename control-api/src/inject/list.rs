//! Purpose: the table of annotations for people: a page of the documentation, rows for a terminal, a value for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::annotations::{Annotation, PREFIX, TABLE};
use super::form::Form;

const HEAD: &str = "\
# Annotations
What a pod's annotations tell the injector. They stand in the metadata of the pod, in a workload that of its template; each name
begins with `outrigger.dev/`. `outriggerctl inject --list-annotations` prints the same table. An unknown name under that prefix or a value
out of its range is refused, with the nearest name and the allowed values: by the webhook when a pod is made, by `outriggerctl inject`
before. `defaults` in the injector's configuration gives any of them another default, by its name without the prefix.

| annotation | value | allowed | default | meaning |
|---|---|---|---|---|
";

const FOOT: &str = "
## Labels
`outrigger.dev/inject: enabled` on a namespace has every new pod there injected, on a pod that pod alone; `disabled` on a pod leaves it
out. A label decides whether the webhook is asked at all; an annotation is read when it is.

## What is left alone, and why
The injector writes `outrigger.dev/status`: `{\"state\":\"injected\", ...}`, or `{\"state\":\"skipped\",\"reason\":...}` with one of `disabled`,
`host-network`, `system-namespace` and `windows`. A pod that was to be in the mesh and would break or go around it is refused: one that
uses the ports 15000, 15001, 15006, 15009 or 15020, a container named `outrigger-proxy` or `outrigger-intercept`, or the user or group 1337.
The init container needs NET_ADMIN, so the Pod Security levels `baseline` and `restricted` refuse injected pods.
";

fn default_of(row: &Annotation) -> &'static str {
    if row.default.is_empty() { "-" } else { row.default }
}

/// The page of the documentation.
#[must_use]
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    for row in TABLE {
        let default = if row.default.is_empty() { String::new() } else { format!("`{}`", row.default) };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {default} | {} |",
            row.name,
            row.form.name(),
            row.form.range().replace('*', "`*`"),
            row.meaning
        );
    }
    text + FOOT
}

/// Name, allowed values, default and meaning.
#[must_use]
pub fn rows() -> Vec<Vec<String>> {
    let row = |row: &Annotation| {
        vec![format!("{PREFIX}{}", row.name), row.form.range(), default_of(row).to_owned(), row.meaning.to_owned()]
    };
    TABLE.iter().map(row).collect()
}

/// The table as a value.
#[must_use]
pub fn value() -> Value {
    let row = |row: &Annotation| {
        let words = match row.form {
            Form::Choice(words) => json!(words),
            _ => Value::Null,
        };
        json!({
            "name": format!("{PREFIX}{}", row.name),
            "form": row.form.name(),
            "allowed": row.form.range(),
            "words": words,
            "default": row.default,
            "writtenBy": if row.form == Form::Written { "injector" } else { "user" },
            "meaning": row.meaning,
        })
    };
    TABLE.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/annotations.md");
        if std::env::var_os("OUTRIGGER_BLESS").is_some() {
            std::fs::write(path, page()).expect("the page can be written");
        }
        let written = std::fs::read_to_string(path).expect("docs/annotations.md is there");
        assert_eq!(written, page(), "docs/annotations.md is old: OUTRIGGER_BLESS=1 writes it anew");
    }

    #[test]
    fn every_row_is_in_all_three() {
        assert_eq!(rows().len(), TABLE.len());
        assert_eq!(value().as_array().map(Vec::len), Some(TABLE.len()));
    }
}
