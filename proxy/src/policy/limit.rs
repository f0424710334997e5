//! **Purpose.** Local rate limits: token buckets without a lock.
//!
//! **Shape.** A bucket is one 64-bit word, `fills so far (32) | tokens (32)`, changed by compare-and-swap. Fills happen at
//! whole multiples of the interval after the bucket's start, so nothing drifts and nothing has to run in between. A worker
//! whose clock reading is a little older than another's sees no fill, and never takes one back.
//!
//! **Limits.** A bucket that nobody asks for 2^31 fill intervals (more than three years) may miss fills once.
//!
//! **Source.** Envoy `type.v3.TokenBucket` and the local rate limit filter: starts full; each `fill_interval` adds
//! `tokens_per_fill` up to `max_tokens`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::chance::Chance;
use crate::config::{LocalRateLimit, TokenBucketConfig};

/// Tokens shared by all workers.
#[derive(Debug)]
pub struct TokenBucket {
    config: TokenBucketConfig,
    interval_ns: u64,
    start_ns: u64,
    word: AtomicU64,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(config: TokenBucketConfig, now_ns: u64) -> Self {
        let interval_ns = u64::try_from(config.fill_interval.as_nanos()).unwrap_or(u64::MAX).max(1);
        Self { config, interval_ns, start_ns: now_ns, word: AtomicU64::new(pack(0, config.max_tokens)) }
    }

    /// Takes one token if there is one.
    pub fn take(&self, now_ns: u64) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let (fills, tokens) = self.filled(word, now_ns);
            let Some(left) = tokens.checked_sub(1) else { return false };
            // Relaxed: the word is all there is; no other memory hangs on it.
            match self.word.compare_exchange_weak(word, pack(fills, left), Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(current) => word = current,
            }
        }
    }

    /// Tokens there would be now.
    pub fn tokens(&self, now_ns: u64) -> u32 {
        self.filled(self.word.load(Ordering::Relaxed), now_ns).1
    }

    /// How it is set.
    pub fn config(&self) -> &TokenBucketConfig {
        &self.config
    }

    /// Fills and tokens of `word` brought forward to `now_ns`.
    fn filled(&self, word: u64, now_ns: u64) -> (u32, u32) {
        let (fills, tokens) = unpack(word);
        let due = low_half(now_ns.saturating_sub(self.start_ns) / self.interval_ns);
        let missed = due.wrapping_sub(fills);
        if missed == 0 || missed > u32::MAX / 2 {
            return (fills, tokens);
        }
        let added = u64::from(missed) * u64::from(self.config.tokens_per_fill);
        let sum = u64::from(tokens).saturating_add(added).min(u64::from(self.config.max_tokens));
        (due, low_half(sum))
    }
}

fn pack(fills: u32, tokens: u32) -> u64 {
    (u64::from(fills) << 32) | u64::from(tokens)
}

fn unpack(word: u64) -> (u32, u32) {
    (low_half(word >> 32), low_half(word))
}

fn low_half(word: u64) -> u32 {
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX)
}

/// What a limit says of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within the limit, or not counted.
    Admitted,
    /// Over the limit: refused.
    Limited,
    /// Over the limit, which is not enforced for this request.
    WouldLimit,
}

/// Asks `bucket` for one request under `limit`.
pub fn admit(limit: &LocalRateLimit, bucket: &TokenBucket, now_ns: u64, chance: &Chance) -> Verdict {
    let drawn = |ppm: u32| ppm >= 1_000_000 || chance.below(1_000_000) < u64::from(ppm);
    if !drawn(limit.enabled_ppm) || bucket.take(now_ns) {
        Verdict::Admitted
    } else if drawn(limit.enforced_ppm) {
        Verdict::Limited
    } else {
        Verdict::WouldLimit
    }
}

type BucketsByRule = HashMap<Arc<str>, Vec<Arc<TokenBucket>>>;

/// All buckets of the process, by rule and setting: an update of the configuration finds its tokens again.
#[derive(Debug, Default)]
pub struct Buckets(Mutex<BucketsByRule>);

impl Buckets {
    /// The bucket of that limit, made full when it is new. Taken once per configuration and kept, not per request.
    pub fn bucket(&self, limit: &LocalRateLimit, now_ns: u64) -> Arc<TokenBucket> {
        let mut by_rule = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = by_rule.entry(limit.rule.clone()).or_default();
        if let Some(bucket) = buckets.iter().find(|bucket| bucket.config == limit.bucket) {
            return bucket.clone();
        }
        let bucket = Arc::new(TokenBucket::new(limit.bucket, now_ns));
        buckets.push(bucket.clone());
        bucket
    }

    /// Visits every bucket with its rule, sorted by rule.
    pub fn each(&self, mut visit: impl FnMut(&str, &TokenBucket)) {
        let by_rule = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rules: Vec<_> = by_rule.iter().collect();
        rules.sort_unstable_by_key(|(rule, _)| *rule);
        rules.into_iter().for_each(|(rule, buckets)| buckets.iter().for_each(|bucket| visit(rule, bucket)));
    }

    /// Forgets the buckets that `keep` denies.
    pub fn retain(&self, mut keep: impl FnMut(&str, &TokenBucketConfig) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|rule, buckets| {
            buckets.retain(|bucket| keep(rule, &bucket.config));
            !buckets.is_empty()
        });
    }
}
