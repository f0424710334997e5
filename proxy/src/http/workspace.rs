//! What a request needs while it is served and an idle connection does not: tables and a scratch vector.
//!
//! **Shape.** A [`Lease`] is taken from a list of this thread with a request's first byte and given back with the last of
//! its answer, memory and all.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::http1::{RequestTable, ResponseTable};

/// Workspaces kept for the next requests.
const KEPT: usize = 64;

thread_local! {
    #[allow(clippy::vec_box, reason = "a workspace goes from the list to a lease and back by its pointer")]
    static KEPT_SPACES: RefCell<Vec<Box<Workspace>>> = const { RefCell::new(Vec::new()) };
}

/// Memory of one request.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    pub(super) request_table: RequestTable,
    pub(super) response_table: ResponseTable,
    pub(super) scratch: Vec<u8>,
}

/// A workspace in use.
#[derive(Debug)]
pub(super) struct Lease(Option<Box<Workspace>>);

impl Lease {
    /// The workspace given back last, or a new one.
    pub(super) fn take() -> Self {
        let kept = KEPT_SPACES.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
        Self(Some(kept.unwrap_or_default()))
    }
}

impl Deref for Lease {
    type Target = Workspace;

    fn deref(&self) -> &Workspace {
        self.0.as_ref().expect("it is there until the drop")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Workspace {
        self.0.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(mut space) = self.0.take() else { return };
        space.request_table.reset();
        space.response_table.reset();
        let _ = KEPT_SPACES.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if kept.len() < KEPT {
                kept.push(space);
            }
        });
    }
}
