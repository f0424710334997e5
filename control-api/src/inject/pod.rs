//! Purpose: the fields of a pod that the injector looks at; the others are stepped over unread.
//! Shape: reads from JSON text (a review) or from a YAML value (a manifest) alike; `null` counts as absent everywhere.
//! Limits: no nesting is followed but this; what is stepped over costs no memory.
//! Source: Kubernetes API, Pod v1.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::annotations::PREFIX;

/// A pod, or a workload's template of one.
#[derive(Debug, Default, Deserialize)]
pub struct Pod {
    pub(super) metadata: Option<Metadata>,
    pub(super) spec: Option<PodSpec>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Metadata {
    pub(super) labels: Option<BTreeMap<String, Option<String>>>,
    /// Those under our prefix.
    #[serde(default, deserialize_with = "read_own")]
    pub(super) annotations: Option<BTreeMap<String, Option<String>>>,
}

/// Reads a map and keeps our entries; those of others, which may be large, are stepped over.
fn read_own<'de, D: Deserializer<'de>>(reader: D) -> Result<Option<BTreeMap<String, Option<String>>>, D::Error> {
    struct Own;

    impl<'de> Visitor<'de> for Own {
        type Value = Option<BTreeMap<String, Option<String>>>;

        fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("a map")
        }

        fn visit_none<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
            reader.deserialize_map(self)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut own = BTreeMap::new();
            while let Some(key) = entries.next_key::<String>()? {
                if key.starts_with(PREFIX) {
                    own.insert(key, entries.next_value()?);
                } else {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
            Ok(Some(own))
        }
    }

    reader.deserialize_option(Own)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) host_network: Option<bool>,
    pub(super) os: Option<Os>,
    pub(super) node_selector: Option<BTreeMap<String, Option<String>>>,
    pub(super) restart_policy: Option<String>,
    pub(super) termination_grace_period_seconds: Option<i64>,
    pub(super) security_context: Option<Security>,
    pub(super) init_containers: Option<Vec<Container>>,
    pub(super) containers: Option<Vec<Container>>,
    pub(super) ephemeral_containers: Option<Vec<Named>>,
    pub(super) volumes: Option<Vec<Named>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Os {
    pub(super) name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Security {
    pub(super) run_as_user: Option<i64>,
    pub(super) run_as_group: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Named {
    pub(super) name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container {
    pub(super) name: Option<String>,
    pub(super) image: Option<String>,
    pub(super) ports: Option<Vec<Port>>,
    pub(super) lifecycle: Option<Lifecycle>,
    pub(super) security_context: Option<Security>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lifecycle {
    pub(super) pre_stop: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) container_port: Option<i64>,
}

impl Pod {
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.labels.as_ref()?.get(key)?.as_deref()
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.annotations.as_ref()?.get(key)?.as_deref()
    }
}

impl PodSpec {
    pub(super) fn containers(&self) -> &[Container] {
        self.containers.as_deref().unwrap_or_default()
    }

    pub(super) fn init_containers(&self) -> &[Container] {
        self.init_containers.as_deref().unwrap_or_default()
    }

    /// Such a pod ends by itself: a Job's, or one that runs once.
    pub(super) fn runs_to_completion(&self) -> bool {
        matches!(self.restart_policy.as_deref(), Some("Never" | "OnFailure"))
    }

    pub(super) fn is_windows(&self) -> bool {
        let os = self.os.as_ref().and_then(|os| os.name.as_deref());
        let selected = self.node_selector.as_ref().and_then(|map| map.get("kubernetes.io/os")?.as_deref());
        os.or(selected) == Some("windows")
    }

    /// Kubernetes' default is 30 s.
    pub(super) fn grace_seconds(&self) -> u64 {
        self.termination_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(30)
    }
}

impl Container {
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    pub(super) fn has_pre_stop(&self) -> bool {
        self.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
    }
}
