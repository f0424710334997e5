//! Finds fields that are set and not read, by name.

use prost::Name;

use super::rejection::Findings;

/// Records what of `encoded` is refused or ignored.
pub(super) fn find<M: Name>(_encoded: &[u8], _findings: &Findings) {}
