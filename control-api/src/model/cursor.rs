//! Purpose: walk an untyped document and remember where we are, so that every refusal has a path.
//! Shape: a [`Cursor`] is one value and its path; [`Fields`] is an object whose keys were compared
//! with the allowed list. Both write into one [`Report`]. A reader returns `None` after it has
//! reported, so the walk goes on and finds the other problems too.
//! Limits: a value is quoted up to 80 characters; a report holds at most 200 problems.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use super::duration::{format_duration, parse_duration};
use super::problem::{Problem, nearest};

const PROBLEMS_MAX: usize = 200;

/// The problems found so far in one document.
#[derive(Debug, Default)]
pub struct Report {
    document: Option<usize>,
    object: RefCell<Option<String>>,
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    /// An empty report for one document.
    #[must_use]
    pub fn new(document: Option<usize>) -> Self {
        Self { document, ..Self::default() }
    }

    /// Names the object that later problems belong to.
    pub fn name_object(&self, object: String) {
        for problem in self.problems.borrow_mut().iter_mut() {
            problem.object.get_or_insert_with(|| object.clone());
        }
        *self.object.borrow_mut() = Some(object);
    }

    /// All problems, in the order found.
    #[must_use]
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// Whether nothing was refused.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    fn add(&self, path: &str, value: Option<String>, message: String, remedy: Option<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < PROBLEMS_MAX {
            problems.push(Problem {
                document: self.document,
                object: self.object.borrow().clone(),
                path: path.to_owned(),
                value,
                message,
                remedy,
            });
        }
    }
}

/// One value of a document, with its path.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    value: &'a Value,
    path: String,
    report: &'a Report,
}

impl<'a> Cursor<'a> {
    /// The root of a document.
    #[must_use]
    pub fn root(value: &'a Value, report: &'a Report) -> Self {
        Self { value, path: String::new(), report }
    }

    /// A value inside something that is not a document.
    #[must_use]
    pub fn at(value: &'a Value, path: &str, report: &'a Report) -> Self {
        Self { value, path: path.to_owned(), report }
    }

    /// The value as written.
    #[must_use]
    pub fn raw(&self) -> &'a Value {
        self.value
    }

    /// Where problems of this document are written.
    #[must_use]
    pub fn report(&self) -> &'a Report {
        self.report
    }

    /// Reports this value as refused.
    pub fn refuse(&self, message: impl Into<String>) {
        self.report.add(&self.path, Some(quote(self.value)), message.into(), None);
    }

    /// Reports this value as refused, with what to do.
    pub fn refuse_with(&self, message: impl Into<String>, remedy: impl Into<String>) {
        self.report.add(&self.path, Some(quote(self.value)), message.into(), Some(remedy.into()));
    }

    /// The fields of an object; keys outside `allowed` are reported with the nearest allowed one.
    #[must_use]
    pub fn fields(&self, allowed: &[&str]) -> Option<Fields<'a>> {
        let Value::Object(map) = self.value else {
            self.refuse(format!("must be an object with {}", allowed.join(", ")));
            return None;
        };
        let unknown = map.iter().filter(|(key, _)| !allowed.contains(&key.as_str()));
        for (key, value) in unknown.take(PROBLEMS_MAX) {
            let remedy = match nearest(key, allowed) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("allowed here: {}", allowed.join(", ")),
            };
            let path = join(&self.path, key);
            self.report.add(&path, Some(quote(value)), "unknown field".into(), Some(remedy));
        }
        Some(Fields { map, path: self.path.clone(), report: self.report })
    }

    /// A string-to-string map (labels, annotations).
    pub fn string_map(&self) {
        match self.value {
            Value::Object(map) => {
                for (key, value) in map.iter().filter(|(_, value)| !value.is_string()) {
                    let path = join(&self.path, key);
                    self.report.add(
                        &path,
                        Some(quote(value)),
                        "must be a string".into(),
                        Some(format!("put it in quotes: \"{value}\"")),
                    );
                }
            }
            _ => self.refuse("must be a map of strings"),
        }
    }

    /// The items of a list whose length must be in `length`.
    #[must_use]
    pub fn items(&self, length: RangeInclusive<usize>) -> Vec<Cursor<'a>> {
        let Value::Array(items) = self.value else {
            self.refuse("must be a list");
            return Vec::new();
        };
        if !length.contains(&items.len()) {
            self.report.add(
                &self.path,
                Some(format!("{} items", items.len())),
                format!("must have {} to {} items", length.start(), length.end()),
                None,
            );
        }
        items
            .iter()
            .take(*length.end())
            .enumerate()
            .map(|(index, value)| Cursor { value, path: format!("{}[{index}]", self.path), report: self.report })
            .collect()
    }

    /// A string.
    #[must_use]
    pub fn string(&self) -> Option<&'a str> {
        let text = self.value.as_str();
        if text.is_none() {
            self.refuse_with("must be a string", "put it in quotes");
        }
        text
    }

    /// A string that `accept` agrees with; `rule` says what it wants.
    #[must_use]
    pub fn text(&self, accept: impl Fn(&str) -> bool, rule: &str) -> Option<String> {
        let text = self.string()?;
        if accept(text) {
            return Some(text.to_owned());
        }
        self.refuse(rule);
        None
    }

    /// A whole number in `range`.
    #[must_use]
    pub fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let number = self.value.as_u64().filter(|number| range.contains(number));
        if number.is_none() {
            self.refuse(format!("must be a whole number in {}..={}", range.start(), range.end()));
        }
        number
    }

    /// A whole number in `range` that fits 32 bits.
    #[must_use]
    pub fn integer32(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let wide = u64::from(*range.start())..=u64::from(*range.end());
        self.integer(wide).and_then(|number| u32::try_from(number).ok())
    }

    /// A TCP port.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.integer(1..=65_535).and_then(|number| u16::try_from(number).ok())
    }

    /// `true` or `false`.
    #[must_use]
    pub fn boolean(&self) -> Option<bool> {
        let claim = self.value.as_bool();
        if claim.is_none() {
            self.refuse("must be true or false");
        }
        claim
    }

    /// A span such as `250ms` in `range`.
    #[must_use]
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        const REMEDY: &str = "write it like 250ms, 1s, 1m30s or 1h";
        let Some(text) = self.value.as_str() else {
            self.refuse_with("must be a duration in quotes", REMEDY);
            return None;
        };
        match parse_duration(text) {
            Err(reason) => {
                self.refuse_with(reason, REMEDY);
                None
            }
            Ok(span) if !range.contains(&span) => {
                let (low, high) = (format_duration(*range.start()), format_duration(*range.end()));
                self.refuse(format!("must be in {low}..={high}"));
                None
            }
            Ok(span) => Some(span),
        }
    }

    /// One of a fixed list of words.
    #[must_use]
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let given = self.string()?;
        if let Some((_, choice)) = choices.iter().find(|(word, _)| *word == given) {
            return Some(*choice);
        }
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let message = match words.as_slice() {
            [only] => format!("must be {only}"),
            _ => format!("must be one of {}", words.join(", ")),
        };
        match nearest(given, &words) {
            Some(near) if words.len() > 1 => {
                self.refuse_with(message, format!("did you mean {near}?"));
            }
            _ => self.refuse(message),
        }
        None
    }
}

/// The fields of one object.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
    report: &'a Report,
}

impl<'a> Fields<'a> {
    /// A field that may be absent; `null` counts as absent.
    #[must_use]
    pub fn optional(&self, name: &str) -> Option<Cursor<'a>> {
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        Some(Cursor { value, path: join(&self.path, name), report: self.report })
    }

    /// A field that must be there.
    #[must_use]
    pub fn required(&self, name: &str) -> Option<Cursor<'a>> {
        let found = self.optional(name);
        if found.is_none() {
            self.refuse_field(name, "is required and missing");
        }
        found
    }

    /// The items of an optional list.
    #[must_use]
    pub fn list(&self, name: &str, length: RangeInclusive<usize>) -> Vec<Cursor<'a>> {
        self.optional(name).map(|cursor| cursor.items(length)).unwrap_or_default()
    }

    /// Whether the field is written at all.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.optional(name).is_some()
    }

    /// Reports a field that is absent or that contradicts another.
    pub fn refuse_field(&self, name: &str, message: impl Into<String>) {
        let value = self.map.get(name).map(quote);
        self.report.add(&join(&self.path, name), value, message.into(), None);
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn quote(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 {
        return text;
    }
    text.chars().take(77).chain("...".chars()).collect()
}
