//! Purpose: the end of the story as a table or as JSON.

use std::time::Duration;

use serde_json::{Value, json};

use crate::sale::Count;

/// What is reported.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// What became of the orders.
    pub(crate) count: Count,
    /// Tries after the first, over all sidecars.
    pub(crate) retried: u64,
    /// Ejections, over all sidecars.
    pub(crate) ejected: u64,
    /// Charges in payment's ledger.
    pub(crate) charges: u64,
    /// Charges that came again and were answered from the ledger.
    pub(crate) repeats: u64,
    /// Charges that came without a key.
    pub(crate) without_key: u64,
    /// Time below which half of the answers came.
    pub(crate) p50: Duration,
    /// Time below which 99 of 100 answers came.
    pub(crate) p99: Duration,
    /// The first failures in words.
    pub(crate) failures: Vec<String>,
}

impl Report {
    /// Orders charged beyond those that were served.
    pub(crate) fn doubled(&self) -> u64 {
        (self.charges + self.without_key).saturating_sub(self.count.served())
    }

    /// Whether every order is accounted for, once.
    pub(crate) fn is_clean(&self) -> bool {
        self.count.sent > 0 && self.count.lost() == 0 && self.doubled() == 0
    }

    /// As aligned text.
    pub(crate) fn to_table(&self) -> String {
        let rows = [
            ("sent", self.count.sent, "orders offered, each with an Idempotency-Key"),
            ("served", self.count.served(), "placed and paid"),
            ("limited", self.count.limited, "refused by the rate limit (429), told that a retry is safe"),
            ("retried", self.retried, "tries after the first, made by the sidecars"),
            ("repeated", self.repeats, "charges that came again and were answered from the ledger"),
            ("ejected", self.ejected, "times a replica was taken out of use"),
            ("doubled", self.doubled(), "orders charged twice or without being served"),
            ("lost", self.count.lost(), "neither served nor limited"),
        ];
        let mut text = String::new();
        for (name, count, meaning) in rows {
            text.push_str(&format!("  {name:<10}{:>9}   {meaning}\n", grouped(count)));
        }
        text.push_str(&format!(
            "  latency      p50 {:.1} ms, p99 {:.1} ms through seven sidecar hops\n",
            ms(self.p50),
            ms(self.p99)
        ));
        text
    }

    /// As JSON.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "sent": self.count.sent, "served": self.count.served(), "limited": self.count.limited,
            "retried": self.retried, "repeated": self.repeats, "ejected": self.ejected,
            "doubled": self.doubled(), "lost": self.count.lost(),
            "p50_ms": ms(self.p50), "p99_ms": ms(self.p99), "failures": self.failures,
        })
    }
}

fn ms(span: Duration) -> f64 {
    (span.as_secs_f64() * 10_000.0).round() / 10.0
}

/// `12345` as `12,345`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(count: Count, charges: u64) -> Report {
        Report {
            count,
            retried: 0,
            ejected: 0,
            charges,
            repeats: 0,
            without_key: 0,
            p50: Duration::ZERO,
            p99: Duration::ZERO,
            failures: Vec::new(),
        }
    }

    #[test]
    fn what_is_neither_served_nor_limited_is_lost() {
        let count = Count { sent: 10, orders_1: 4, orders_v2: 3, limited: 2, ..Count::default() };
        assert_eq!(count.lost(), 1);
        assert!(!report(count, 7).is_clean());
        let count = Count { orders_2: 1, ..count };
        assert!(report(count, 8).is_clean());
    }

    #[test]
    fn a_charge_without_a_served_order_is_no_clean_end() {
        let count = Count { sent: 1, orders_1: 1, ..Count::default() };
        assert_eq!(report(count, 2).doubled(), 1);
        assert!(!report(count, 2).is_clean());
    }

    #[test]
    fn an_empty_sale_is_no_clean_end() {
        assert!(!report(Count::default(), 0).is_clean());
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
