//! The room's tests: texts as they should be, and texts that decide as the rules do.

mod alike;
mod golden;
mod reader;
