//! A directory of YAML and JSON files as a source (standalone mode). Follows editors' renames, Kubernetes' `..data`
//! links, subdirectories and the mesh configuration; sends what changed and nothing else.
//!
//! ```text
//! notify ─► hints ─► look (what to read when) ─► crds::read ─► catalog (what changed) ─► Change…
//! ```
//!
//! It never writes, and it enforces nothing: closed values and last good versions are chosen here, but made by `crds`.

mod catalog;
mod hints;
mod look;
pub(crate) mod mesh;
mod tree;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};

use crate::Change;
use hints::{Hints, Watched};
use look::Look;
use tree::Root;

/// How long notifications are collected before a look, so that the halves of a rename are seen together.
const COALESCE: Duration = Duration::from_millis(2);
/// How often everything is looked at in case notifications were missed (network file systems send none).
const ROUND: Duration = Duration::from_secs(5);
/// The same where there are no notifications, or no directory.
const ROUND_BLIND: Duration = Duration::from_millis(500);

/// Follows `dir` and, if given, a mesh configuration file (otherwise the mesh has its defaults), and sends what
/// changes. First comes the full list, ended by [`Change::Synced`].
///
/// Runs until the receiver is gone; dropping the future stops it at any point and loses nothing but itself. Problems
/// with files are [`Change`]s, never errors.
pub async fn watch(dir: PathBuf, mesh_config: Option<PathBuf>, changes: mpsc::Sender<Change>) {
    // Notifications have absolute paths.
    let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
    let (dir, mesh_config) = (absolute(dir), mesh_config.map(absolute));
    let ears = Arc::new(Ears::default());
    let mut watching = Watching::new(&dir, mesh_config.as_deref(), ears.clone());
    let mut look = Look::new(dir, mesh_config);
    let mut told;
    (look, told) = blocking(look, |look| look.first(Instant::now())).await;
    let mut last_round = Instant::now();
    loop {
        watching.follow(&look);
        for change in told {
            if changes.send(change).await.is_err() {
                return;
            }
        }
        let round = last_round + if watching.blind() || look.is_frozen() { ROUND_BLIND } else { ROUND };
        let until = look.due().map_or(round, |due| due.min(round));
        tokio::select! {
            () = ears.wake.notified() => tokio::time::sleep(COALESCE).await,
            () = tokio::time::sleep_until(until.into()) => {}
            () = changes.closed() => return,
        }
        let heard = ears.take();
        let now = Instant::now();
        (look, told) = if now >= round {
            last_round = now;
            blocking(look, move |look| {
                let mut told = look.look(heard, now);
                told.extend(look.round(now));
                told
            })
            .await
        } else {
            blocking(look, move |look| look.look(heard, now)).await
        };
    }
}

/// Reads `dir` once, as [`watch`] would at start, and returns its first list. Files that are being written while it
/// reads are waited for.
pub fn load(dir: &Path, mesh_config: Option<&Path>) -> Vec<Change> {
    let mut look = Look::new(dir.to_owned(), mesh_config.map(Path::to_owned));
    let mut changes = look.first(Instant::now());
    while let Some(due) = look.due().filter(|_| !look.is_frozen()) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        changes.extend(look.look(Hints::default(), Instant::now()));
    }
    changes
}

/// Runs a look off the async threads. If this future is dropped meanwhile, the look ends by itself and is forgotten.
async fn blocking(
    mut look: Look,
    run: impl FnOnce(&mut Look) -> Vec<Change> + Send + 'static,
) -> (Look, Vec<Change>) {
    let task = tokio::task::spawn_blocking(move || {
        let told = run(&mut look);
        (look, told)
    });
    match task.await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is shutting down and will not poll this again.
        Err(_) => std::future::pending().await,
    }
}

/// Where notifications arrive.
#[derive(Debug, Default)]
struct Ears {
    hints: Mutex<Hints>,
    wake: Notify,
}

impl Ears {
    fn take(&self) -> Hints {
        std::mem::take(&mut *self.hints.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lost(&self) {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).lost();
        self.wake.notify_one();
    }

    fn hear(&self, event: notify::Result<notify::Event>, watched: &Watched) {
        let mut hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Ok(event) => hints.add(&event, watched),
            Err(error) => {
                tracing::debug!(%error, "file notifications");
                hints.lost();
            }
        }
        if !hints.is_empty() {
            self.wake.notify_one();
        }
    }
}

/// The kernel's side of the watch. It is made anew when the directory is another one than before.
struct Watching {
    watched: Watched,
    ears: Arc<Ears>,
    watcher: Option<notify::RecommendedWatcher>,
    /// The directory that is watched; `None` if it is not.
    root: Option<Root>,
}

impl Watching {
    fn new(dir: &Path, mesh_config: Option<&Path>, ears: Arc<Ears>) -> Self {
        let watched = Watched { dir: dir.to_owned(), mesh_config: mesh_config.map(Path::to_owned) };
        let mut watching = Self { watched, ears, watcher: None, root: None };
        watching.renew();
        watching
    }

    fn blind(&self) -> bool {
        self.root.is_none()
    }

    /// Watches the directory that `look` has found, if it is another one.
    fn follow(&mut self, look: &Look) {
        if look.is_frozen() {
            self.root = None;
        } else if self.root != look.root() {
            self.renew();
            // What happened between the listing and now was not heard.
            self.ears.lost();
        }
    }

    fn renew(&mut self) {
        self.root = None;
        self.watcher =
            self.watcher().inspect_err(|error| tracing::debug!(%error, "no file notifications")).ok();
        let dir = &self.watched.dir;
        if let Some(watcher) = &mut self.watcher {
            let root = Root::at(dir);
            match watcher.watch(dir, RecursiveMode::Recursive) {
                Ok(()) => self.root = root,
                Err(error) => tracing::debug!(%error, directory = %dir.display(), "not watched"),
            }
        }
    }

    /// One that watches what is beside the directory and the mesh configuration: either may be a link that is changed,
    /// and the directory may be replaced as a whole. If that cannot be watched, the periodic look makes up for it.
    fn watcher(&self) -> notify::Result<notify::RecommendedWatcher> {
        let (ears, watched) = (self.ears.clone(), self.watched.clone());
        // Links to directories are listed, but not followed here: one to `/` would have the whole disk watched.
        let config = notify::Config::default().with_follow_symlinks(false);
        let hear = move |event| ears.hear(event, &watched);
        let mut watcher = notify::RecommendedWatcher::new(hear, config)?;
        for beside in [Some(&self.watched.dir), self.watched.mesh_config.as_ref()].into_iter().flatten() {
            // What is inside is watched anyway, and a second watch would make that one not recursive.
            let Some(parent) = beside.parent().filter(|parent| !parent.starts_with(&self.watched.dir)) else {
                continue;
            };
            if let Err(error) = watcher.watch(parent, RecursiveMode::NonRecursive) {
                tracing::debug!(%error, directory = %parent.display(), "not watched");
            }
        }
        Ok(watcher)
    }
}

#[cfg(test)]
mod tests;
