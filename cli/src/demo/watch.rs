//! `--watch`: whenever a file of the shop is saved, the rows that changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often the files are looked at.
const EVERY: Duration = Duration::from_millis(150);

/// What the files were like.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Files {
    root: PathBuf,
    seen: BTreeMap<PathBuf, (Option<SystemTime>, u64)>,
}

impl Files {
    pub(super) fn of(root: &Path) -> Self {
        let mut seen = BTreeMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(found) if found.is_dir() => folders.push(entry.path()),
                    Ok(found) if entry.path().extension().is_some_and(|e| e == "yaml" || e == "yml") => {
                        seen.insert(entry.path(), (found.modified().ok(), found.len()));
                    }
                    _ => {}
                }
            }
        }
        Self { root: root.to_owned(), seen }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.seen.keys().map(PathBuf::as_path)
    }

    /// Waits until files are saved, made or removed: their names.
    pub(super) async fn changed(&mut self) -> Vec<String> {
        loop {
            tokio::time::sleep(EVERY).await;
            let now = Self::of(&self.root);
            if now != *self {
                let names = self.differing(&now);
                *self = now;
                return names;
            }
        }
    }

    fn differing(&self, now: &Self) -> Vec<String> {
        let all = self.seen.keys().chain(now.seen.keys().filter(|path| !self.seen.contains_key(*path)));
        let differing = all.filter(|path| self.seen.get(*path) != now.seen.get(*path));
        differing.map(|path| path.strip_prefix(&self.root).unwrap_or(path).display().to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_saved_a_new_and_a_removed_file_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a.yaml", "1");
        write("b.yaml", "1");
        write("ignored.txt", "1");
        let mut files = Files::of(folder.path());
        write("a.yaml", "22");
        write("c.yaml", "1");
        write("ignored.txt", "22");
        std::fs::remove_file(folder.path().join("b.yaml")).unwrap();
        let mut names = files.changed().await;
        names.sort_unstable();
        assert_eq!(names, ["a.yaml", "b.yaml", "c.yaml"]);
    }
}
