//! What the kernel has, as the programs list it: our rules by their comments, the rest by its chains.
//!
//! Only names, hooks and the words of a few targets are read, which the programs' versions print alike.

use std::fmt;

use twox_hash::XxHash64;

use super::COMMENT;
use super::model::ChainRole;

/// A rule's name and digest, as its comment says them: `outrigger outbound/capture 1a2b3c4d`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// `outbound/capture`.
    pub name: String,
    /// Of the rule's text.
    pub digest: String,
}

impl Named {
    /// The name of a rule in a chain.
    pub(super) fn new(role: ChainRole, rule: &str, digest: String) -> Self {
        Self { name: format!("{}/{rule}", role.as_str()), digest }
    }

    /// The comment in a line of a listing, if it is one of ours.
    fn find(line: &str) -> Option<Self> {
        let (_, comment) = line.split_once(&format!("\"{COMMENT} "))?;
        let (comment, _) = comment.split_once('"')?;
        let (name, digest) = comment.rsplit_once(' ')?;
        Some(Self { name: name.to_owned(), digest: digest.to_owned() })
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{COMMENT} {} {}", self.name, self.digest)
    }
}

/// Eight digits that change when the text does.
pub(super) fn digest(text: &str) -> String {
    let hash = XxHash64::oneshot(0, text.as_bytes());
    format!("{:08x}", hash >> 32)
}

/// How the rules of a chain differ from those wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A rule that should not be there.
    Additional(String),
    /// A rule of that name that does something else.
    Changed(String),
    /// A rule that is not there.
    Missing(String),
    /// All are there, in another order; the first one out of place.
    Order(String),
    /// A rule that is not ours, in our chain.
    Unnamed(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Additional(name) => write!(f, "rule {name} should not be there"),
            Self::Changed(name) => write!(f, "rule {name} was made by other settings"),
            Self::Missing(name) => write!(f, "rule {name} is missing"),
            Self::Order(name) => write!(f, "rule {name} is out of its place"),
            Self::Unnamed(text) => write!(f, "a rule that is not ours stands in our chain: {text}"),
        }
    }
}

/// How `found`, the rules of a chain as listed, differ from those `wanted`.
pub fn differences<'a>(wanted: &[Named], found: impl Iterator<Item = &'a str>) -> Vec<Difference> {
    let mut named = Vec::new();
    let mut told = Vec::new();
    for line in found {
        match Named::find(line) {
            Some(name) => named.push(name),
            None => told.push(Difference::Unnamed(line.to_owned())),
        }
    }
    for rule in wanted.iter().filter(|rule| !named.contains(rule)) {
        let has_other = named.iter().any(|other| other.name == rule.name && !wanted.contains(other));
        let name = rule.name.clone();
        told.push(if has_other { Difference::Changed(name) } else { Difference::Missing(name) });
    }
    for (at, rule) in named.iter().enumerate() {
        let is_told = told.contains(&Difference::Changed(rule.name.clone()));
        if !is_told && (!wanted.contains(rule) || named[..at].contains(rule)) {
            told.push(Difference::Additional(rule.name.clone()));
        }
    }
    if told.is_empty() {
        let moved = named.iter().zip(wanted).find(|(found, wanted)| found != wanted);
        told.extend(moved.map(|(found, _)| Difference::Order(found.name.clone())));
    }
    told
}

/// What `iptables-save` prints of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables(Vec<SavedTable>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SavedTable {
    name: String,
    chains: Vec<String>,
    rules: Vec<String>,
}

impl Tables {
    /// Reads it; lines of no known form are passed over.
    pub fn parse(text: &str) -> Self {
        let mut tables: Vec<SavedTable> = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                tables.push(SavedTable { name: name.to_owned(), ..SavedTable::default() });
            } else if let Some(table) = tables.last_mut() {
                if let Some(chain) = line.strip_prefix(':') {
                    table.chains.push(chain.split(' ').next().unwrap_or_default().to_owned());
                } else if line.starts_with("-A ") {
                    table.rules.push(line.to_owned());
                }
            }
        }
        Self(tables)
    }

    fn of<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a SavedTable> {
        self.0.iter().filter(move |saved| saved.name == table)
    }

    /// Chains of a table.
    pub fn chains<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a str> {
        self.of(table).flat_map(|saved| saved.chains.iter().map(String::as_str))
    }

    /// Rules of a table, as `-A CHAIN …`.
    pub fn rules<'a>(&'a self, table: &'a str) -> impl Iterator<Item = &'a str> {
        self.of(table).flat_map(|saved| saved.rules.iter().map(String::as_str))
    }

    /// Rules of one chain.
    pub fn rules_of<'a>(&'a self, table: &'a str, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.rules(table).filter(move |rule| rule.split(' ').nth(1) == Some(chain))
    }

    /// True when there is nothing of ours.
    pub fn is_free_of_ours(&self) -> bool {
        let is_ours = |chain: &String| chain.starts_with(super::iptables::PREFIX);
        !self.0.iter().any(|table| table.chains.iter().any(is_ours))
    }

    /// Every chain with its rules, for [`foreign`].
    pub fn listed(&self) -> Vec<ListedChain> {
        let chains = self.0.iter().flat_map(|table| {
            table.chains.iter().map(|chain| ListedChain {
                table: table.name.clone(),
                name: chain.clone(),
                hook: None,
                rules: self.rules_of(&table.name, chain).map(str::to_owned).collect(),
            })
        });
        chains.collect()
    }
}

/// A chain in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChain {
    /// As in `inet outrigger` or `nat`.
    pub table: String,
    /// The chain.
    pub name: String,
    /// `type nat hook output priority -101`, where nft tells it.
    pub hook: Option<String>,
    /// Its rules, as printed.
    pub rules: Vec<String>,
}

/// Reads what `nft -y list ruleset` prints: chains with their hooks and rules; sets and maps are passed over.
pub fn parse_nft(text: &str) -> Vec<ListedChain> {
    let mut chains = Vec::new();
    let mut table = String::new();
    let mut chain: Option<ListedChain> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ").and_then(|rest| rest.strip_suffix(" {")) {
            name.clone_into(&mut table);
        } else if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chain = Some(ListedChain { table: table.clone(), name: name.to_owned(), hook: None, rules: Vec::new() });
        } else if line == "}" {
            chains.extend(chain.take());
        } else if let Some(chain) = chain.as_mut() {
            if line.starts_with("type ") && line.contains(" hook ") {
                chain.hook = Some(line.split(';').next().unwrap_or(line).to_owned());
            } else if !line.is_empty() {
                chain.rules.push(line.to_owned());
            }
        }
    }
    chains
}

/// Something of others that may stand in our way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The mesh that it belongs to, where its name tells.
    pub mesh: Option<&'static str>,
    /// Its table.
    pub table: String,
    /// The chain.
    pub chain: String,
}

/// How chains and tables of other meshes begin.
const MESHES: [(&str, &str); 9] = [
    ("ISTIO_", "Istio"),
    ("istio-", "Istio"),
    ("PROXY_INIT_", "Linkerd"),
    ("linkerd", "Linkerd"),
    ("KUMA_", "Kuma"),
    ("MESH_", "Kuma"),
    ("CONSUL_", "Consul"),
    ("APPMESH_", "App Mesh"),
    ("OSM_", "Open Service Mesh"),
];

/// Words by which a rule sends connections elsewhere.
const DIVERTING: [&str; 7] =
    [" redirect", " dnat ", " tproxy ", "-j REDIRECT", "-j DNAT", "-j TPROXY", "xt target TPROXY"];

/// Chains of others that divert connections, those of known meshes first.
pub fn foreign(chains: &[ListedChain]) -> Vec<Foreign> {
    let is_ours = |chain: &ListedChain| {
        chain.table == format!("inet {}", super::nft::TABLE) || chain.name.starts_with(super::iptables::PREFIX)
    };
    let mut found: Vec<Foreign> = chains
        .iter()
        .filter(|chain| !is_ours(chain))
        .filter_map(|chain| {
            let own_table = chain.table.rsplit(' ').next().unwrap_or_default();
            let begins = |prefix: &str| chain.name.starts_with(prefix) || own_table.starts_with(prefix);
            let mesh = MESHES.iter().find(|(prefix, _)| begins(prefix)).map(|(_, mesh)| *mesh);
            let diverts = |rule: &String| DIVERTING.iter().any(|word| rule.contains(word));
            let is_told = mesh.is_some() || chain.rules.iter().any(diverts);
            is_told.then(|| Foreign { mesh, table: chain.table.clone(), chain: chain.name.clone() })
        })
        .collect();
    found.sort_by(|a, b| (a.mesh.is_none(), &a.chain).cmp(&(b.mesh.is_none(), &b.chain)));
    // What iptables lists, nft may list, too, by another name of the table.
    found.dedup_by(|a, b| a.chain == b.chain && a.mesh == b.mesh);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, digest: &str) -> Named {
        Named { name: name.to_owned(), digest: digest.to_owned() }
    }

    fn told(found: &[&str]) -> Vec<String> {
        let wanted = [named("outbound/a", "1"), named("outbound/b", "2"), named("outbound/b", "3")];
        differences(&wanted, found.iter().copied()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn differences_are_told_by_name() {
        let (a, b, c) =
            ("x \"outrigger outbound/a 1\"", "y \"outrigger outbound/b 2\"", "\"outrigger outbound/b 3\" z");
        assert_eq!(told(&[a, b, c]), Vec::<String>::new());
        assert_eq!(told(&[b, c]), ["rule outbound/a is missing"]);
        assert_eq!(told(&[a, c]), ["rule outbound/b is missing"]);
        assert_eq!(told(&[]).len(), 3);
        assert_eq!(told(&[a, c, b]), ["rule outbound/b is out of its place"]);
        assert_eq!(told(&[a, b, c, c]), ["rule outbound/b should not be there"]);
        assert_eq!(told(&["\"outrigger outbound/a 9\"", b, c]), ["rule outbound/a was made by other settings"]);
        assert_eq!(told(&[a, b, c, "\"outrigger outbound/d 1\""]), ["rule outbound/d should not be there"]);
        let foreign = told(&["tcp dport 80 accept", a, b, c]);
        assert_eq!(foreign, ["a rule that is not ours stands in our chain: tcp dport 80 accept"]);
    }

    #[test]
    fn saved_tables_are_read() {
        let text = "# Generated\n*nat\n:OUTPUT ACCEPT [0:0]\n:OUTRIGGER_OUTBOUND - [0:0]\n\
            -A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND\n-A OUTRIGGER_OUTBOUND -p tcp -j RETURN\nCOMMIT\n\
            *mangle\n:INPUT ACCEPT [0:0]\nCOMMIT\n";
        let tables = Tables::parse(text);
        assert_eq!(tables.chains("nat").collect::<Vec<_>>(), ["OUTPUT", "OUTRIGGER_OUTBOUND"]);
        assert_eq!(tables.rules_of("nat", "OUTPUT").collect::<Vec<_>>(), ["-A OUTPUT -p tcp -j OUTRIGGER_OUTBOUND"]);
        assert_eq!(tables.chains("mangle").count(), 1);
        assert!(!tables.is_free_of_ours() && Tables::parse("*nat\n:OUTPUT ACCEPT [0:0]\n").is_free_of_ours());
        assert_eq!(Tables::parse("no such\nform").listed(), []);
    }

    const NFT: &str = "table inet outrigger {\n\tchain outbound {\n\
        \t\ttype nat hook output priority -101; policy accept;\n\
        \t\tmeta skuid 1337 return comment \"outrigger outbound/proxy-user 1\"\n\
        \t\ttcp dport 1 redirect to :15001\n\t}\n}\n\
        table ip nat {\n\tset s {\n\t\ttype ipv4_addr\n\t\telements = { 10.0.0.1 }\n\t}\n\
        \tchain ISTIO_OUTPUT {\n\t\tcounter return\n\t}\n\tchain DOCKER {\n\t\ttcp dport 53 dnat to 10.0.0.1\n\t}\n\
        \tchain OUTRIGGER_INBOUND {\n\t\tmeta l4proto tcp redirect to :15006\n\t}\n}\n";

    #[test]
    fn chains_of_nft_are_read() {
        let chains = parse_nft(NFT);
        assert_eq!(chains.len(), 4, "{chains:?}");
        assert_eq!(chains[0].hook.as_deref(), Some("type nat hook output priority -101"));
        assert_eq!((chains[0].table.as_str(), chains[0].rules.len()), ("inet outrigger", 2));
    }

    #[test]
    fn chains_of_others_are_named() {
        let found = foreign(&parse_nft(NFT));
        let told: Vec<_> = found.iter().map(|foreign| (foreign.mesh, foreign.chain.as_str())).collect();
        assert_eq!(told, [(Some("Istio"), "ISTIO_OUTPUT"), (None, "DOCKER")]);
        let twice = [parse_nft(NFT), parse_nft(NFT)].concat();
        assert_eq!(foreign(&twice), found, "each is told once");
        let saved = Tables::parse("*nat\n:PROXY_INIT_REDIRECT - [0:0]\n:X - [0:0]\n-A X -p tcp -j REDIRECT\n");
        assert_eq!(foreign(&saved.listed()).len(), 2);
    }
}
