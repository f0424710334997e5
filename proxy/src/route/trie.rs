//! A compressed trie over route paths: one walk finds every configured prefix of a path, and the exact path.
//!
//! ```text
//! routes: 0 /a/b   1 exact /a   2 /        node "/" [2] ── "a" exact [1] ── "/b" [0]
//! ```

/// Route places, ascending.
type Places = Box<[u32]>;

#[derive(Debug, Default)]
struct Node {
    /// Bytes below the parent.
    label: Box<[u8]>,
    /// Routes whose prefix ends here.
    prefixes: Places,
    /// Routes whose whole path ends here.
    exact: Places,
    /// First bytes of the children's labels, ascending, beside their nodes.
    branches: Box<[u8]>,
    children: Box<[Node]>,
}

/// One path of a route.
#[derive(Debug)]
pub(super) struct Key<'a> {
    pub(super) path: &'a [u8],
    pub(super) is_exact: bool,
    pub(super) place: u32,
}

/// The trie of one virtual host.
#[derive(Debug, Default)]
pub(super) struct Trie {
    root: Node,
}

impl Trie {
    /// Built once per virtual host. Depth is the number of keys that are prefixes of one another, at most.
    pub(super) fn build(mut keys: Vec<Key<'_>>) -> Self {
        keys.sort_by(|a, b| a.path.cmp(b.path).then(a.place.cmp(&b.place)));
        Self { root: build_node(&keys, 0, 0) }
    }

    /// True when no path is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.root.prefixes.is_empty() && self.root.exact.is_empty() && self.root.children.is_empty()
    }

    /// Visits the places of every prefix of `path`, shortest first, then of the exact path.
    pub(super) fn walk<'t>(&'t self, path: &[u8], mut visit: impl FnMut(&'t [u32])) {
        let mut node = &self.root;
        let mut rest = path;
        loop {
            if !node.prefixes.is_empty() {
                visit(&node.prefixes);
            }
            let Some(first) = rest.first() else {
                if !node.exact.is_empty() {
                    visit(&node.exact);
                }
                return;
            };
            let Ok(at) = node.branches.binary_search(first) else { return };
            let child = &node.children[at];
            let Some(tail) = rest.strip_prefix(&*child.label) else { return };
            node = child;
            rest = tail;
        }
    }
}

/// The node for `keys` (sorted), all equal in `..depth`; its label begins at `from`.
fn build_node(keys: &[Key<'_>], from: usize, depth: usize) -> Node {
    let label = keys.first().map(|key| &key.path[from..depth]).unwrap_or_default();
    let ends = keys.iter().take_while(|key| key.path.len() == depth).count();
    let (here, below) = keys.split_at(ends);
    let places = |exact: bool| here.iter().filter(|key| key.is_exact == exact).map(|key| key.place).collect();
    let mut branches = Vec::new();
    let mut children = Vec::new();
    for group in below.chunk_by(|a, b| a.path[depth] == b.path[depth]) {
        let (first, last) = (group[0].path, group[group.len() - 1].path);
        // The keys are sorted, so what the first and the last share, all share.
        let shared = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        branches.push(first[depth]);
        children.push(build_node(group, depth, shared));
    }
    Node {
        label: label.into(),
        prefixes: places(false),
        exact: places(true),
        branches: branches.into(),
        children: children.into(),
    }
}
