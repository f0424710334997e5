//! Memory that requests of one worker take in turns.

use std::cell::RefCell;

/// Vectors kept, and the most bytes one of them may hold: a burst of large bodies is given back to the system.
const VECTORS: usize = 16;
const VECTOR_BYTES: usize = 32 * 1024;

/// Vectors between two uses; the one given last is taken first.
#[derive(Debug, Default)]
pub struct Spare(RefCell<Vec<Vec<u8>>>);

impl Spare {
    /// A vector with anything in it; a new one when none is left.
    pub fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps a vector for the next request, within bounds.
    pub fn give(&self, memory: Vec<u8>) {
        let mut kept = self.0.borrow_mut();
        if (1..=VECTOR_BYTES).contains(&memory.capacity()) && kept.len() < VECTORS {
            kept.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_taken_again_within_bounds() {
        let spare = Spare::default();
        spare.give(Vec::with_capacity(VECTOR_BYTES + 1));
        spare.give(Vec::new());
        assert_eq!(spare.take().capacity(), 0, "neither is worth keeping");
        (0..VECTORS + 1).for_each(|_| spare.give(Vec::with_capacity(VECTOR_BYTES)));
        let taken = (0..VECTORS + 1).filter(|_| spare.take().capacity() == VECTOR_BYTES).count();
        assert_eq!(taken, VECTORS);
    }
}
