//! Purpose: values, their schema and the README's table are one: every value is described, bounded and has its default.

use serde_json::Value;

use super::rendered::parse;
use super::{compare, read};

const README: &str = "charts/outrigger/README.md";
const BEGIN: &str = "<!-- values: written by `OUTRIGGER_BLESS=1 cargo test -p outrigger-tests --test chart` -->\n";
const END: &str = "<!-- /values -->\n";

/// A value that can be set, with its schema.
struct Setting<'a> {
    path: String,
    schema: &'a Value,
}

fn schema() -> Value {
    serde_json::from_str(&read("charts/outrigger/values.schema.json")).unwrap()
}

/// Down to what has a default.
fn walk<'a>(path: &str, schema: &'a Value, found: &mut Vec<Setting<'a>>) {
    let description = schema["description"].as_str().unwrap_or_else(|| panic!("{path} is not described"));
    assert!(description.ends_with('.') && !description.contains('\n'), "{path}: {description:?}");
    if schema.get("default").is_some() {
        return found.push(Setting { path: path.to_owned(), schema });
    }
    assert_eq!(schema["additionalProperties"], false, "{path} takes any key, and has no default");
    for (name, property) in schema["properties"].as_object().unwrap() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(&path, property, found);
    }
}

/// What a value may be, in words.
fn form(schema: &Value) -> String {
    let number = |key: &str| schema.get(key).map(ToString::to_string);
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().map(|word| format!("`{}`", word.as_str().unwrap())).collect::<Vec<_>>().join(", ");
    }
    match schema["type"].as_str().unwrap() {
        "integer" => format!("{} to {}", number("minimum").unwrap(), number("maximum").unwrap()),
        "boolean" => "true, false".to_owned(),
        "array" => "list".to_owned(),
        "object" if schema.get("properties").is_none() && schema["additionalProperties"]["type"] == "string" => {
            "map of texts".to_owned()
        }
        "object" => "map".to_owned(),
        _ if schema["pattern"].as_str().is_some_and(|pattern| pattern.starts_with("^([0-9]+h)?")) => {
            "such as 1h30m".to_owned()
        }
        other => match other {
            "string" => "text".to_owned(),
            other => other.to_owned(),
        },
    }
}

fn table() -> String {
    let schema = schema();
    let mut settings = Vec::new();
    walk("", &schema, &mut settings);
    let mut rows = "| value | default | may be | meaning |\n|---|---|---|---|\n".to_owned();
    for Setting { path, schema } in settings {
        let default = match &schema["default"] {
            Value::String(text) if text.is_empty() => String::new(),
            Value::String(text) => format!("`{text}`"),
            other => format!("`{other}`"),
        };
        let description = schema["description"].as_str().unwrap();
        rows += &format!("| `{path}` | {default} | {} | {description} |\n", form(schema));
    }
    rows
}

#[test]
fn values_are_the_schema_s_defaults() {
    let schema = schema();
    let values = parse(&read("charts/outrigger/values.yaml")).remove(0);
    let mut settings = Vec::new();
    walk("", &schema, &mut settings);
    assert!(settings.len() > 60, "{}", settings.len());
    for Setting { path, schema } in &settings {
        let pointer = format!("/{}", path.replace('.', "/"));
        if path == "global" {
            continue;
        }
        let value = values.pointer(&pointer).unwrap_or_else(|| panic!("values.yaml has no {path}"));
        assert_eq!(*value, schema["default"], "{path}");
    }
    // Whatever values.yaml has beyond the schema, the schema refuses: nothing is let through without being named.
    fn keys(value: &Value, schema: &Value, path: &str) {
        if schema.get("default").is_some() {
            return;
        }
        for (name, value) in value.as_object().unwrap() {
            let property = schema["properties"].get(name).unwrap_or_else(|| panic!("the schema has no {path}.{name}"));
            keys(value, property, &format!("{path}.{name}"));
        }
    }
    keys(&values, &schema, "");
}

/// Every value, by one of the sets of values that are rendered, has been other than it comes.
#[test]
fn the_readme_lists_every_value() {
    let text = read(README);
    let (before, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("{README} has no line {BEGIN}"));
    let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{README} has no line {END}"));
    compare(README, &format!("{before}{BEGIN}{}{END}{after}", table()));
}

/// The set `everything` sets whatever can be set.
#[test]
fn the_set_everything_changes_every_value() {
    let schema = schema();
    let mut settings = Vec::new();
    walk("", &schema, &mut settings);
    let sets = ["certificate", "everything", "minimal", "redb"];
    let sets = sets.map(|set| parse(&read(&format!("tests/chart/values/{set}.yaml"))).remove(0));
    for Setting { path, schema } in settings.iter().filter(|setting| setting.path != "global") {
        let pointer = format!("/{}", path.replace('.', "/"));
        let is_changed = |set: &Value| set.pointer(&pointer).is_some_and(|value| *value != schema["default"]);
        assert!(sets.iter().any(is_changed), "no set of values below tests/chart/values has another {path}");
    }
}
