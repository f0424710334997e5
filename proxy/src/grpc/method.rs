//! The method that a path names: `/package.Service/Method`.

/// Longest path that is told apart in statistics.
const MAX_BYTES: usize = 256;

/// A method by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodName<'a> {
    /// Its service, with the package.
    pub service: &'a str,
    /// Its name in the service.
    pub method: &'a str,
}

impl<'a> MethodName<'a> {
    /// What `path` names: two parts that are not empty, of printable ASCII. `None` for anything else, and for more than 256
    /// bytes.
    pub fn parse(path: &'a [u8]) -> Option<Self> {
        if path.len() > MAX_BYTES || !path.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let path = std::str::from_utf8(path).ok()?;
        let (service, method) = path.strip_prefix('/')?.split_once('/')?;
        (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some(Self { service, method })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_service_and_a_method() {
        let parse = |path: &'static str| MethodName::parse(path.as_bytes()).map(|name| (name.service, name.method));
        assert_eq!(parse("/shop.v1.Orders/Place"), Some(("shop.v1.Orders", "Place")));
        for bad in ["", "/", "/a", "/a/", "//b", "/a/b/c", "/a/b/", "a/b", "/a /b", "/a/é"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        let longest = format!("/a/{}", "b".repeat(MAX_BYTES - 3));
        assert!(MethodName::parse(longest.as_bytes()).is_some());
        assert!(MethodName::parse(format!("{longest}b").as_bytes()).is_none());
    }
}
