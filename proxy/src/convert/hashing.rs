//! Balancing by hash: the sizes of its tables.

use envoy_types::pb::envoy::config::cluster::v3::cluster::{MaglevLbConfig, RingHashLbConfig};
use envoy_types::pb::envoy::extensions::load_balancing_policies as lb;
use envoy_types::pb::google::protobuf::UInt64Value;

use super::at::{At, at};
use crate::config::LoadBalancing;

/// Envoy's bounds and defaults.
const RING_MAX: u64 = 8 << 20;
const RING_MIN_DEFAULT: u32 = 1024;
const MAGLEV_MAX: u64 = 5_000_011;
const MAGLEV_DEFAULT: u32 = 65_537;

/// A ring with Envoy's defaults.
pub(super) const RING_HASH: LoadBalancing = LoadBalancing::RingHash { minimum: RING_MIN_DEFAULT, maximum: 8 << 20 };

/// Maglev's table with Envoy's default.
pub(super) const MAGLEV: LoadBalancing = LoadBalancing::Maglev { table_size: MAGLEV_DEFAULT };

pub(super) fn old_ring_hash(config: &At<'_, RingHashLbConfig>) -> Option<LoadBalancing> {
    let config = *config;
    ring_hash(&at!(config.minimum_ring_size), &at!(config.maximum_ring_size))
}

pub(super) fn listed_ring_hash(config: &At<'_, lb::ring_hash::v3::RingHash>) -> Option<LoadBalancing> {
    let config = *config;
    ring_hash(&at!(config.minimum_ring_size), &at!(config.maximum_ring_size))
}

pub(super) fn old_maglev(config: &At<'_, MaglevLbConfig>) -> Option<LoadBalancing> {
    let config = *config;
    maglev(&at!(config.table_size))
}

pub(super) fn listed_maglev(config: &At<'_, lb::maglev::v3::Maglev>) -> Option<LoadBalancing> {
    let config = *config;
    maglev(&at!(config.table_size))
}

type Size<'a> = At<'a, Option<UInt64Value>>;

fn ring_hash(minimum: &Size<'_>, maximum: &Size<'_>) -> Option<LoadBalancing> {
    let least = size(minimum, RING_MIN_DEFAULT, RING_MAX)?;
    let most = size(maximum, 8 << 20, RING_MAX)?;
    if least > most {
        minimum.refuse(format_args!("{least} is above maximum_ring_size, {most}"));
        return None;
    }
    Some(LoadBalancing::RingHash { minimum: least, maximum: most })
}

fn maglev(given: &Size<'_>) -> Option<LoadBalancing> {
    let table_size = size(given, MAGLEV_DEFAULT, MAGLEV_MAX)?;
    if !is_prime(table_size) {
        given.refuse(format_args!("{table_size} is not a prime number"));
        return None;
    }
    Some(LoadBalancing::Maglev { table_size })
}

fn size(given: &Size<'_>, default: u32, most: u64) -> Option<u32> {
    let Some(UInt64Value { value }) = given.value else { return Some(default) };
    if !(1..=most).contains(value) {
        given.refuse(format_args!("{value} is not in 1..={most}"));
        return None;
    }
    u32::try_from(*value).ok()
}

fn is_prime(number: u32) -> bool {
    number > 1 && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}
