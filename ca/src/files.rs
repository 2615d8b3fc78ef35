//! Files that appear whole or not at all, and are never replaced.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

/// Makes `path` with `content` and `mode`, on disk when this returns.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] if there is such a file, which is left as it was.
pub(crate) fn create_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (dir, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(io::Error::other)?;
    let scratch = dir.join(format!(".{}.{:016x}", name.to_string_lossy(), u64::from_ne_bytes(random)));
    let result = write_new(&scratch, content, mode)
        // Unlike a rename, a link fails if the name is taken.
        .and_then(|()| fs::hard_link(&scratch, path));
    // A scratch file that stays after an error or a crash is never read.
    let _ = fs::remove_file(&scratch);
    result?;
    sync_dir(dir)
}

fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The process's umask may have taken bits away, which for the public certificate would lock its readers out.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes `path` and its parents, if they are not there, with `mode`.
pub(crate) fn create_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Makes the names in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
