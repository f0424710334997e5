//! A log-linear histogram: fixed memory, one add per value, quantiles within 1/16.

use super::Counter;

/// Buckets per power of two.
const SUB: usize = 16;
const SUB_BITS: u32 = 4;
/// Values from 2^36 µs (19 h) up share the last bucket.
const MAX_BITS: u32 = 36;
const BUCKETS: usize = SUB * (MAX_BITS as usize - SUB_BITS as usize + 1);

/// Counts of values; written by one worker.
pub struct Histogram {
    buckets: Box<[Counter]>,
    sum: Counter,
}

/// A merge of histograms at one moment.
#[derive(Clone, Debug)]
pub struct HistogramReport {
    counts: Vec<u64>,
    /// Values counted.
    pub count: u64,
    /// Their sum.
    pub sum: u64,
}

/// The filled buckets of a report alone: what is kept of each second of a window.
#[derive(Clone, Debug, Default)]
pub struct SparseReport {
    counts: Vec<(usize, u64)>,
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| Counter::default()).collect(), sum: Counter::default() }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram").field("sum", &self.sum).finish_non_exhaustive()
    }
}

impl Histogram {
    /// Counts `value`. Only the owning worker may call it.
    #[inline]
    pub fn record(&self, value: u64) {
        self.buckets[bucket_of(value)].add_one();
        self.sum.add(value);
    }
}

impl HistogramReport {
    /// Adds up histograms.
    pub fn merge<'a>(parts: impl IntoIterator<Item = &'a Histogram>) -> Self {
        let mut merged = Self { counts: vec![0; BUCKETS], count: 0, sum: 0 };
        for part in parts {
            for (total, bucket) in merged.counts.iter_mut().zip(&part.buckets) {
                let count = bucket.value();
                *total += count;
                merged.count += count;
            }
            merged.sum = merged.sum.wrapping_add(part.sum.value());
        }
        merged
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let counts: Vec<u64> = self.counts.iter().zip(&earlier.counts).map(|(a, b)| a.saturating_sub(*b)).collect();
        Self { count: counts.iter().sum(), sum: self.sum.saturating_sub(earlier.sum), counts }
    }

    /// Only what is filled.
    pub fn sparse(&self) -> SparseReport {
        let filled = self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0);
        SparseReport { counts: filled.collect(), sum: self.sum }
    }

    /// Adds what `part` counted.
    pub fn add(&mut self, part: &SparseReport) {
        for &(bucket, count) in &part.counts {
            self.counts[bucket] += count;
            self.count += count;
        }
        self.sum = self.sum.wrapping_add(part.sum);
    }

    /// The value below which the share `q` (0.0..=1.0) of all lies, as its bucket's upper end; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among the counts"
        )]
        let rank = ((q.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(upper_bound(index));
            }
        }
        None
    }

    /// Values at or below `bound`, to bucket precision.
    pub fn count_at_most(&self, bound: u64) -> u64 {
        self.counts[..=bucket_of(bound)].iter().sum()
    }
}

fn bucket_of(value: u64) -> usize {
    if value < SUB as u64 {
        return usize::try_from(value).unwrap_or(0);
    }
    let exponent = 63 - value.leading_zeros();
    if exponent >= MAX_BITS {
        return BUCKETS - 1;
    }
    let within = usize::try_from((value >> (exponent - SUB_BITS)) & (SUB as u64 - 1)).unwrap_or(0);
    SUB * (exponent - SUB_BITS + 1) as usize + within
}

fn upper_bound(index: usize) -> u64 {
    if index < SUB {
        return index as u64;
    }
    let shift = index / SUB - 1;
    ((SUB + index % SUB + 1) as u64) << shift
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_lies_below_its_buckets_upper_end(value in 0u64..(1 << 36)) {
            let upper = upper_bound(bucket_of(value));
            prop_assert!(value <= upper);
            prop_assert!(upper - value <= value / 16 + 1);
        }
    }

    #[test]
    fn quantiles_of_a_known_set() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|value| histogram.record(value));
        let report = HistogramReport::merge([&histogram]);
        assert_eq!(report.count, 1000);
        assert_eq!(report.sum, 500_500);
        let p50 = report.quantile(0.5).unwrap();
        assert!((500..=532).contains(&p50), "{p50}");
        assert!(report.quantile(1.0).unwrap() >= 1000);
        assert_eq!(HistogramReport::merge([]).quantile(0.5), None);
    }

    #[test]
    fn a_window_of_sparse_seconds_adds_up_to_what_was_counted() {
        let histogram = Histogram::default();
        let mut before = HistogramReport::merge([&histogram]);
        let mut window = HistogramReport::merge([]);
        for second in 1..=3u64 {
            (0..second * 100).for_each(|value| histogram.record(value * value));
            let now = HistogramReport::merge([&histogram]);
            window.add(&now.since(&before).sparse());
            before = now;
        }
        assert_eq!((window.count, window.sum), (before.count, before.sum));
        for q in [0.0, 0.5, 0.99, 1.0] {
            assert_eq!(window.quantile(q), before.quantile(q));
        }
    }

    #[test]
    fn the_largest_value_has_a_bucket() {
        let histogram = Histogram::default();
        histogram.record(u64::MAX);
        assert_eq!(HistogramReport::merge([&histogram]).count, 1);
    }
}
