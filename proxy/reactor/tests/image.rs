//! What of the program is in memory. Alone in its process: other tests would map pages meanwhile.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use outrigger_reactor::release_image;

const KIB: u64 = 4096;

static TABLE: [u64; (KIB * 1024 / 8) as usize] = [7; (KIB * 1024 / 8) as usize];

/// Kilobytes of files that are mapped.
fn mapped_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn what_was_read_is_released_and_reads_the_same() {
    let sum = || std::hint::black_box(&TABLE).iter().sum::<u64>();
    let before = sum();
    let mapped = mapped_kib();
    release_image();
    let released = mapped_kib();
    assert!(released + KIB / 2 < mapped, "{mapped} KiB before, {released} KiB after");
    assert_eq!(sum(), before);
    let again = mapped_kib();
    assert!(again > released + KIB / 2, "{released} KiB released, {again} KiB when read again");
}
