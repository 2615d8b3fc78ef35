//! Where the programs under test are: our own binary and Envoy.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The project's root folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of a workspace has a parent folder")
}

/// `$COUNTERSIGN_BIN`, else `countersign` in the folder where this test was built.
///
/// # Panics
/// If there is none, saying how to build it.
pub fn countersign() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(path) = std::env::var_os("COUNTERSIGN_BIN") {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "COUNTERSIGN_BIN={} is no file", path.display());
            return path;
        }
        let test = std::env::current_exe().expect("a running program has a path");
        // target/PROFILE/deps/TEST-HASH: the binary is one folder up.
        let built = test.parent().and_then(Path::parent).map(|folder| folder.join("countersign"));
        match built {
            Some(path) if path.is_file() => path,
            _ => panic!(
                "no `countersign` beside {}: run `cargo build -p cli` or set COUNTERSIGN_BIN",
                test.display()
            ),
        }
    })
}

/// `$ENVOY`, else the pinned version in `.cache/envoy`.
///
/// # Errors
/// Says how to get one.
pub fn envoy() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("ENVOY") {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(format!("ENVOY={} is no file", path.display())) };
    }
    let pinned = std::fs::read_to_string(root().join("tests/tools/envoy-version")).unwrap_or_default();
    let path = root().join(".cache/envoy").join(pinned.trim()).join("envoy");
    if path.is_file() {
        return Ok(path);
    }
    Err(format!("no Envoy at {}: run scripts/get-envoy or set ENVOY", path.display()))
}
