//! Purpose: what the webhook counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was said about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was no new pod.
    Ignored,
    /// It got its sidecar.
    Injected,
    /// It was no review.
    Malformed,
    /// It had its sidecar.
    Present,
    /// It was not let in.
    Refused,
    /// It was left alone.
    Skipped,
}

impl Verdict {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 6] =
        [Self::Ignored, Self::Injected, Self::Malformed, Self::Present, Self::Refused, Self::Skipped];

    /// As a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::Injected => "injected",
            Self::Malformed => "malformed",
            Self::Present => "present",
            Self::Refused => "refused",
            Self::Skipped => "skipped",
        }
    }
}

/// Counters and gauges.
#[derive(Debug, Default)]
pub struct Figures {
    verdicts: [AtomicU64; 6],
    certificate_ends: AtomicU64,
    rotations: AtomicU64,
    failures: AtomicU64,
}

impl Figures {
    /// Counts an answer.
    pub fn count(&self, verdict: Verdict) {
        if let Some(counter) = self.verdicts.get(verdict as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many answers of each sort there were.
    pub fn verdicts(&self) -> impl Iterator<Item = (Verdict, u64)> + '_ {
        Verdict::ALL.into_iter().zip(&self.verdicts).map(|(verdict, count)| (verdict, count.load(Ordering::Relaxed)))
    }

    /// Notes a new certificate that ends at `seconds` since 1970; 0 where that is not known.
    pub fn rotated(&self, seconds: u64) {
        self.rotations.fetch_add(1, Ordering::Relaxed);
        self.certificate_ends.store(seconds, Ordering::Relaxed);
    }

    /// Notes that certificate or configuration could not be kept right.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// When the certificate ends, in seconds since 1970; 0 while there is none.
    #[must_use]
    pub fn certificate_ends(&self) -> u64 {
        self.certificate_ends.load(Ordering::Relaxed)
    }

    /// Certificates taken into use, and failures to keep things right.
    #[must_use]
    pub fn rotations(&self) -> (u64, u64) {
        (self.rotations.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }
}
