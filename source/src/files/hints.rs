//! What the kernel's notifications mean for the watcher. They are only hints about where to look and whether a file is
//! complete: what is true is what a look finds. Opens nothing.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind, RenameMode};

/// Collected since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hints {
    /// Written and closed, or renamed into place: their content is what somebody meant to put there.
    pub(super) complete: BTreeSet<PathBuf>,
    /// Appeared, not written so far: a link, or a file about to be written.
    pub(super) created: BTreeSet<PathBuf>,
    /// Written to and still open.
    pub(super) writing: BTreeSet<PathBuf>,
    /// Directories or links were renamed into place, which is how whole sets of files are replaced at once.
    pub(super) swapped: bool,
    /// Something else about the tree may have changed.
    pub(super) tree: bool,
    /// Something was removed or renamed away.
    pub(super) removed: bool,
    /// The mesh configuration.
    pub(super) mesh: bool,
}

/// The paths that are being watched.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) dir: PathBuf,
    pub(super) mesh_config: Option<PathBuf>,
}

impl Hints {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Notifications were lost: look at everything.
    pub(super) fn lost(&mut self) {
        self.tree = true;
        self.mesh = true;
    }

    pub(super) fn add(&mut self, event: &notify::Event, watched: &Watched) {
        if event.need_rescan() {
            self.lost();
        }
        let ends = matches!(
            event.kind,
            EventKind::Access(AccessKind::Close(AccessMode::Write))
                | EventKind::Modify(ModifyKind::Name(_))
                | EventKind::Create(_)
                | EventKind::Remove(_)
        );
        if ends && event.paths.iter().any(|path| watched.is_mesh(path)) {
            self.mesh = true;
        }
        let ours =
            |path: &PathBuf| path.starts_with(&watched.dir) && watched.mesh_config.as_ref() != Some(path);
        let mut paths = event.paths.iter().filter(|path| ours(path));
        match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                paths.for_each(|p| self.complete(p, watched));
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                self.removed |= paths.next().is_some();
            }
            EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
                // Old and new name; either may lie outside of what is watched. The one that is gone is no file to read.
                self.removed |= event.paths.first().is_some_and(ours);
                if let Some(to) = event.paths.get(1).filter(|to| ours(to)) {
                    self.complete(to, watched);
                }
            }
            EventKind::Modify(ModifyKind::Name(_)) => paths.for_each(|p| self.complete(p, watched)),
            EventKind::Modify(ModifyKind::Metadata(_)) | EventKind::Create(CreateKind::Folder) => {
                self.tree |= paths.next().is_some();
            }
            EventKind::Create(_) => {
                for path in paths {
                    if is_candidate(path, &watched.dir) {
                        self.created.insert(path.clone());
                    } else {
                        self.tree = true;
                    }
                }
            }
            EventKind::Modify(_) => {
                let candidates = paths.filter(|path| is_candidate(path, &watched.dir));
                for path in candidates {
                    self.created.remove(path);
                    self.complete.remove(path);
                    self.writing.insert(path.clone());
                }
            }
            EventKind::Access(_) => {}
            EventKind::Any | EventKind::Other => self.tree |= paths.next().is_some(),
        }
    }

    fn complete(&mut self, path: &Path, watched: &Watched) {
        if is_candidate(path, &watched.dir) {
            self.created.remove(path);
            self.writing.remove(path);
            self.complete.insert(path.to_owned());
        } else if !is_ignored(path, &watched.dir)
            || path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".."))
        {
            self.swapped = true;
        }
    }
}

impl Watched {
    /// The file itself, or a rename of Kubernetes' `..data` link beside it.
    fn is_mesh(&self, path: &Path) -> bool {
        let Some(mesh) = &self.mesh_config else { return false };
        let link = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
        path == mesh || (link && path.parent() == mesh.parent())
    }
}

/// Whether `path` below `dir` is a file to read: YAML or JSON, no hidden part, none of the names that editors use for
/// what is not finished (`.x.swp`, `#x#`, `x~`, all of which either begin with a dot or a `#`, or end differently).
pub(super) fn is_candidate(path: &Path, dir: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    matches!(extension, "yaml" | "yml" | "json") && !is_ignored(path, dir)
}

/// Whether some part of `path` below `dir` is hidden or temporary.
pub(super) fn is_ignored(path: &Path, dir: &Path) -> bool {
    let hidden = |name: &[u8]| name.starts_with(b".") || name.starts_with(b"#");
    path.strip_prefix(dir).is_ok_and(|below| {
        below
            .components()
            .any(|part| matches!(part, Component::Normal(name) if hidden(name.as_encoded_bytes())))
    })
}

#[cfg(test)]
mod tests {
    use notify::Event;
    use notify::event::{DataChange, RemoveKind};

    use super::*;

    fn watched() -> Watched {
        Watched { dir: "/d".into(), mesh_config: Some("/m/mesh.yaml".into()) }
    }

    fn hints(events: &[(EventKind, &[&str])]) -> Hints {
        let mut hints = Hints::default();
        for (kind, paths) in events {
            let event = paths.iter().fold(Event::new(*kind), |event, path| event.add_path(path.into()));
            hints.add(&event, &watched());
        }
        hints
    }

    const CREATE: EventKind = EventKind::Create(CreateKind::File);
    const WRITE: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSE: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const TO: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    const FROM: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::From));
    const BOTH: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::Both));

    fn paths(paths: &[&str]) -> BTreeSet<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_file_is_complete_once_closed() {
        let a: &[&str] = &["/d/a.yaml"];
        assert_eq!(hints(&[(CREATE, a)]), Hints { created: paths(a), ..Hints::default() });
        assert_eq!(hints(&[(CREATE, a), (WRITE, a)]), Hints { writing: paths(a), ..Hints::default() });
        assert_eq!(
            hints(&[(CREATE, a), (WRITE, a), (CLOSE, a)]),
            Hints { complete: paths(a), ..Hints::default() }
        );
        assert_eq!(hints(&[(CLOSE, a), (WRITE, a)]), Hints { writing: paths(a), ..Hints::default() });
    }

    #[test]
    fn renames() {
        assert_eq!(
            hints(&[(TO, &["/d/a.yaml"])]),
            Hints { complete: paths(&["/d/a.yaml"]), ..Hints::default() }
        );
        assert_eq!(hints(&[(FROM, &["/d/a.yaml"])]), Hints { removed: true, ..Hints::default() });
        let moved = hints(&[(BOTH, &["/d/a.yaml", "/d/b.yaml"])]);
        assert_eq!(moved, Hints { removed: true, complete: paths(&["/d/b.yaml"]), ..Hints::default() });
        assert_eq!(
            hints(&[(BOTH, &["/d/..tmp", "/d/..data"])]),
            Hints { removed: true, swapped: true, ..Hints::default() }
        );
        assert_eq!(hints(&[(TO, &["/d/sub"])]), Hints { swapped: true, ..Hints::default() });
        assert_eq!(hints(&[(TO, &["/d"])]), Hints { swapped: true, ..Hints::default() });
    }

    #[test]
    fn what_is_not_ours_is_nothing() {
        for path in ["/d/.a.yaml.swp", "/d/.a.yaml", "/d/.git/x.yaml", "/elsewhere/a.yaml"] {
            assert!(hints(&[(CLOSE, &[path]), (TO, &[path]), (WRITE, &[path])]).is_empty(), "{path}");
        }
        assert!(!is_candidate(Path::new("/d/#a.yaml#"), Path::new("/d")));
        assert!(!is_candidate(Path::new("/d/a.yaml~"), Path::new("/d")));
        assert!(is_candidate(Path::new("/.hidden/d/a.yaml"), Path::new("/.hidden/d")));
    }

    #[test]
    fn mesh_config() {
        let mesh = Hints { mesh: true, ..Hints::default() };
        assert_eq!(hints(&[(CLOSE, &["/m/mesh.yaml"])]), mesh);
        assert_eq!(hints(&[(BOTH, &["/m/..data_tmp", "/m/..data"])]), mesh);
        assert!(hints(&[(WRITE, &["/m/mesh.yaml"]), (CLOSE, &["/m/other.yaml"])]).is_empty());
        assert_eq!(hints(&[(EventKind::Remove(RemoveKind::File), &["/m/mesh.yaml"])]), mesh);
    }
}
