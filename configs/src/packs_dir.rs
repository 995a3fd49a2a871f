//! The default folder of packs: the coordinator and a worker of the same user find each other's.

use std::ffi::OsString;
use std::path::PathBuf;

/// `thanos/packs` in the user's cache folder, given the environment; `None` where it names none.
pub fn default_packs_dir(
    environment: impl Fn(&'static str) -> Option<OsString>,
) -> Option<PathBuf> {
    let folder = |name| environment(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache =
        folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("thanos/packs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn it_is_in_the_cache_folder() {
        let check = |cache: Option<&str>, home: Option<&str>, expected: Option<&str>| {
            let found = default_packs_dir(|name| {
                if name == "HOME" { home } else { cache }.map(OsString::from)
            });
            assert_eq!(found.as_deref(), expected.map(Path::new));
        };
        check(Some("/cache"), Some("/home/me"), Some("/cache/thanos/packs"));
        check(Some(""), Some("/home/me"), Some("/home/me/.cache/thanos/packs"));
        check(None, Some("/home/me"), Some("/home/me/.cache/thanos/packs"));
        check(None, None, None);
    }
}
