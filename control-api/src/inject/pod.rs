//! Purpose: the fields of a pod that the injector looks at; the others are stepped over unread.
//! Shape: reads from JSON text (a review) or from a YAML value (a manifest) alike, borrowing what a pod may have very many
//! of; `null` counts as absent everywhere.
//! Limits: no nesting is followed but this; what is stepped over costs no memory.
//! Source: Kubernetes API, Pod v1.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::PORTS;
use super::annotations::PREFIX;

/// A pod, or a workload's template of one.
#[derive(Debug, Default, Deserialize)]
pub struct Pod<'a> {
    pub(super) metadata: Option<Metadata>,
    #[serde(borrow)]
    pub(super) spec: Option<PodSpec<'a>>,
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
            while let Some(key) = entries.next_key::<Text<'de>>()? {
                if key.starts_with(PREFIX) {
                    own.insert(key.0.into_owned(), entries.next_value()?);
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
pub(super) struct PodSpec<'a> {
    pub(super) host_network: Option<bool>,
    pub(super) os: Option<Os>,
    pub(super) node_selector: Option<BTreeMap<String, Option<String>>>,
    pub(super) restart_policy: Option<String>,
    pub(super) termination_grace_period_seconds: Option<i64>,
    pub(super) security_context: Option<Security>,
    #[serde(borrow)]
    pub(super) init_containers: Option<Vec<Container<'a>>>,
    #[serde(borrow)]
    pub(super) containers: Option<Vec<Container<'a>>>,
    #[serde(borrow)]
    pub(super) ephemeral_containers: Option<Vec<Named<'a>>>,
    #[serde(borrow)]
    pub(super) volumes: Option<Vec<Named<'a>>>,
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

/// Copied only where an escape stands in it. A type of its own, for serde borrows a `Cow` only where it is a whole field.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Named<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Container<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) image: Option<Text<'a>>,
    pub(super) ports: Option<TakenPorts>,
    pub(super) lifecycle: Option<Lifecycle>,
    pub(super) security_context: Option<Security>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lifecycle {
    pub(super) pre_stop: Option<IgnoredAny>,
}

/// Those of a container's ports that are the sidecar's own, each with its place in the list.
#[derive(Debug, Default)]
pub(super) struct TakenPorts(pub(super) Vec<(usize, u16)>);

impl<'de> Deserialize<'de> for TakenPorts {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Port {
            container_port: Option<i64>,
        }

        struct Own;

        impl<'de> Visitor<'de> for Own {
            type Value = TakenPorts;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a sequence")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<TakenPorts, A::Error> {
                let mut taken = Vec::new();
                for place in 0.. {
                    let Some(port) = list.next_element::<Port>()? else { break };
                    let own = PORTS.into_iter().find(|own| port.container_port == Some(i64::from(*own)));
                    taken.extend(own.map(|own| (place, own)));
                }
                Ok(TakenPorts(taken))
            }
        }

        reader.deserialize_seq(Own)
    }
}

impl Pod<'_> {
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.labels.as_ref()?.get(key)?.as_deref()
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.as_ref()?.annotations.as_ref()?.get(key)?.as_deref()
    }
}

impl<'a> PodSpec<'a> {
    pub(super) fn containers(&self) -> &[Container<'a>] {
        self.containers.as_deref().unwrap_or_default()
    }

    pub(super) fn init_containers(&self) -> &[Container<'a>] {
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

impl Container<'_> {
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    pub(super) fn has_pre_stop(&self) -> bool {
        self.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some())
    }
}
