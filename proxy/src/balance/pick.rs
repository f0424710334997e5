//! **Purpose.** One endpoint for one try.
//!
//! **Shape.** A [`Balancer`] belongs to one worker and one state of one cluster's endpoints. It groups the usable endpoints by
//! priority and health (`tiers`), and picks inside a group (`rotation`). Groups are made anew only when the generation that the
//! caller passes has changed; between changes a pick allocates nothing and looks at no endpoint but those drawn.
//!
//! **Limits.** A retry picks by a scan of its group, since the endpoints tried before are left out.
//!
//! **Source.** Envoy's load balancers; where tried endpoints are skipped, `previous_hosts` without its bounded luck.

use std::net::SocketAddr;

use crate::chance::Chance;
use crate::config::{EndpointHealth, EndpointSet, LoadBalancing};

use super::hashed::{HashTable, Hashed};
use super::rotation::Rotation;
use super::tiers::{Counts, Share, compute};

/// Envoy's default, for endpoint sets that do not say.
const OVERPROVISIONING_PERCENT: u32 = 140;

/// What is true of endpoints now; indices are places in the [`EndpointSet`].
pub trait Live {
    /// It is not ejected. Asked only when the generation changes.
    fn is_up(&self, index: usize) -> bool;
    /// Tries in flight.
    fn active(&self, index: usize) -> u32;
}

/// An endpoint chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Its place in the [`EndpointSet`].
    pub index: usize,
    /// Too few endpoints are usable, so that it was chosen among all.
    pub panic: bool,
}

/// What decides between endpoints that are equal.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// Chance.
    pub chance: &'a Chance,
    /// The hash, for policies that balance by it; by chance they do without.
    pub hash: Option<u64>,
}

impl<'a> From<&'a Chance> for Draw<'a> {
    fn from(chance: &'a Chance) -> Self {
        Self { chance, hash: None }
    }
}

#[derive(Debug)]
struct Member {
    address: SocketAddr,
    weight: u32,
    priority: u32,
    health: EndpointHealth,
    is_up: bool,
}

/// Endpoints of one priority and class, with its part of the load.
#[derive(Debug, Default)]
struct Group {
    /// Running sum of loads, in percent.
    up_to: u32,
    panic: bool,
    rotation: Rotation,
    /// Beside the turns, for policies that balance by hash.
    table: HashTable,
}

/// Chooses endpoints of one cluster for one worker.
#[derive(Debug)]
pub struct Balancer {
    policy: LoadBalancing,
    overprovisioning: u32,
    panic_threshold: u32,
    members: Vec<Member>,
    generation: Option<u64>,
    counts: Vec<Counts>,
    shares: Vec<Share>,
    /// Only the first `used` are current; the rest keep their memory.
    groups: Vec<Group>,
    used: usize,
}

impl Balancer {
    /// For these endpoints. `panic_threshold` is the percentage of [`ClusterConfig`](crate::config::ClusterConfig).
    pub fn new(policy: LoadBalancing, endpoints: &EndpointSet, panic_threshold: u32) -> Self {
        let members: Vec<Member> = endpoints
            .endpoints
            .iter()
            .map(|endpoint| Member {
                address: endpoint.address,
                weight: endpoint.weight.max(1),
                priority: endpoint.priority,
                health: endpoint.health,
                is_up: true,
            })
            .collect();
        let overprovisioning = match endpoints.overprovisioning_percent {
            0 => OVERPROVISIONING_PERCENT,
            percent => percent,
        };
        Self {
            policy,
            overprovisioning,
            panic_threshold,
            members,
            generation: None,
            counts: Vec::new(),
            shares: Vec::new(),
            groups: Vec::new(),
            used: 0,
        }
    }

    /// Chooses an endpoint; `None`: none may be used. One in `tried` is chosen only when no other may be used.
    /// `generation` changes whenever [`Live::is_up`] may answer differently.
    pub fn pick<'a>(
        &mut self,
        live: &impl Live,
        generation: u64,
        tried: &[usize],
        draw: impl Into<Draw<'a>>,
    ) -> Option<Pick> {
        let Draw { chance, hash } = draw.into();
        if self.generation != Some(generation) {
            self.regroup(live, chance);
            self.generation = Some(generation);
        }
        let groups = &mut self.groups[..self.used];
        let at = match groups.len() {
            0 => return None,
            1 => 0,
            _ => {
                let total = groups.last().map_or(0, |group| group.up_to);
                let drawn = hash.map_or_else(|| chance.below(total.into()), |hash| hash % u64::from(total.max(1)));
                groups.partition_point(|group| u64::from(group.up_to) <= drawn)
            }
        };
        let group = groups.get_mut(at)?;
        // Drawn only where it is used: the other policies' draws are part of their speed.
        let hash = match self.policy {
            LoadBalancing::Maglev { .. } | LoadBalancing::RingHash { .. } => {
                hash.unwrap_or_else(|| chance.below(u64::MAX))
            }
            LoadBalancing::LeastRequest { .. } | LoadBalancing::Random | LoadBalancing::RoundRobin => 0,
        };
        let member = group.choose(self.policy, live, hash, chance)?;
        let first = Pick { index: usize::try_from(member).ok()?, panic: group.panic };
        if !tried.contains(&first.index) {
            return Some(first);
        }
        let fresh = |member: u32| usize::try_from(member).is_ok_and(|index| !tried.contains(&index));
        let order = (at..groups.len()).chain(0..at);
        let other = order.filter_map(|at| {
            let group = &groups[at];
            let behind = group.table.find(hash, fresh);
            let member = behind.or_else(|| group.rotation.among(fresh, chance))?;
            Some(Pick { index: usize::try_from(member).ok()?, panic: group.panic })
        });
        Some({ other }.next().unwrap_or(first))
    }

    /// Endpoints that a pick may choose now, and whether any group is in panic. For the admin pages.
    pub fn usable(&self) -> (usize, bool) {
        let groups = &self.groups[..self.used];
        (groups.iter().map(|group| group.rotation.members().len()).sum(), groups.iter().any(|group| group.panic))
    }

    fn regroup(&mut self, live: &impl Live, chance: &Chance) {
        self.counts.clear();
        for (index, member) in self.members.iter_mut().enumerate() {
            member.is_up = live.is_up(index);
            let priority = usize::try_from(member.priority).unwrap_or(usize::MAX);
            if self.counts.len() <= priority {
                self.counts.resize(priority + 1, Counts::default());
            }
            let counts = &mut self.counts[priority];
            counts.total += 1;
            match member.class() {
                Some(Class::Healthy) => counts.healthy += 1,
                Some(Class::Degraded) => counts.degraded += 1,
                None => {}
            }
        }
        compute(&self.counts, self.overprovisioning, self.panic_threshold, &mut self.shares);
        self.used = 0;
        let mut up_to = 0;
        for (priority, share) in (0_u32..).zip(&self.shares) {
            for (class, load) in [(Class::Healthy, share.healthy), (Class::Degraded, share.degraded)] {
                // In panic the load of both classes falls on all endpoints of the priority.
                let load = match (share.panic, class) {
                    (true, Class::Healthy) => share.healthy + share.degraded,
                    (true, Class::Degraded) => 0,
                    (false, _) => load,
                };
                if load == 0 {
                    continue;
                }
                up_to += load;
                if self.groups.len() == self.used {
                    self.groups.push(Group::default());
                }
                let group = &mut self.groups[self.used];
                self.used += 1;
                (group.up_to, group.panic) = (up_to, share.panic);
                let chosen = (0_u32..).zip(&self.members).filter(|(_, member)| {
                    member.priority == priority && (share.panic || member.class() == Some(class))
                });
                group.rotation.rebuild(chosen.clone().map(|(at, member)| (at, member.weight)), chance);
                let hashed = chosen.map(|(at, one)| Hashed { member: at, weight: one.weight, address: one.address });
                group.table = HashTable::build(self.policy, hashed);
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Degraded,
    Healthy,
}

impl Member {
    fn class(&self) -> Option<Class> {
        match self.health {
            _ if !self.is_up => None,
            EndpointHealth::Healthy | EndpointHealth::Unknown => Some(Class::Healthy),
            EndpointHealth::Degraded => Some(Class::Degraded),
            EndpointHealth::Draining | EndpointHealth::Timeout | EndpointHealth::Unhealthy => None,
        }
    }
}

impl Group {
    fn choose(&mut self, policy: LoadBalancing, live: &impl Live, hash: u64, chance: &Chance) -> Option<u32> {
        match policy {
            LoadBalancing::Maglev { .. } | LoadBalancing::RingHash { .. } => self.table.find(hash, |_| true),
            LoadBalancing::RoundRobin => self.rotation.in_turn(),
            LoadBalancing::Random => self.rotation.at_random(chance),
            LoadBalancing::LeastRequest { choices } => {
                let active = |member: u32| usize::try_from(member).map_or(0, |index| live.active(index));
                self.rotation.least_busy(choices, active, chance)
            }
        }
    }
}
