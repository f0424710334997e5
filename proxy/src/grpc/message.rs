//! Counts the messages of a body as its bytes go by. Source: gRPC over HTTP/2, Length-Prefixed-Message: a flag, the length
//! in four bytes, as many bytes.

/// Flag and length.
const PREFIX: usize = 5;

/// Counts messages by their prefixes; what is in them is skipped.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageCounter {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that came.
    came: usize,
    /// Bytes of the message still to come.
    left: u32,
    count: u64,
}

impl MessageCounter {
    /// Messages whose prefix has come whole.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The next bytes of the body.
    pub fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= u32::try_from(skipped).unwrap_or(self.left);
            let (taken, rest) = bytes[skipped..].split_at((bytes.len() - skipped).min(PREFIX - self.came));
            self.prefix[self.came..self.came + taken.len()].copy_from_slice(taken);
            self.came += taken.len();
            bytes = rest;
            if self.came == PREFIX {
                let [_flag, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length);
                self.came = 0;
                self.count += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_are_counted_however_they_are_cut(
            sizes in prop::collection::vec(prop_oneof![0_usize..4, 0_usize..600], 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut body = Vec::new();
            for size in &sizes {
                body.push(0);
                body.extend(u32::try_from(*size).unwrap().to_be_bytes());
                body.extend(vec![0xff; *size]);
            }
            let mut places: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            places.extend([0, body.len()]);
            places.sort_unstable();
            let mut counter = MessageCounter::default();
            places.windows(2).for_each(|pair| counter.see(&body[pair[0]..pair[1]]));
            prop_assert_eq!(counter.count(), u64::try_from(sizes.len()).unwrap());
        }
    }

    #[test]
    fn a_length_of_four_gigabytes_is_skipped_not_believed() {
        let mut counter = MessageCounter::default();
        counter.see(&[1, 0xff, 0xff, 0xff, 0xff]);
        counter.see(&[0; 4096]);
        assert_eq!(counter.count(), 1);
    }
}
