//! The process's limits as the kernel has them.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the number of files this process may have open to what it is allowed at most; each connection is one. The new
/// number; `None` if it could not be raised, and then the old one stays.
pub fn raise_open_files() -> Option<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).ok()?;
    Some(most)
}

/// How many files this process may have open now.
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(now, _)| now)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        assert_eq!(super::raise_open_files(), super::raise_open_files());
        assert!(super::raise_open_files().is_some_and(|files| files > 0));
        assert_eq!(super::raise_open_files(), super::open_files());
    }
}
