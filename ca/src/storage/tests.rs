use tempfile::TempDir;

use super::*;

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn open(dir: &TempDir) -> Result<Authority, StorageError> {
    Storage::open(dir.path()).unwrap().authority(&domain(), OffsetDateTime::now_utc())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Name → content of every file.
fn content(dir: &TempDir) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn a_root_is_made_once_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir).unwrap();
    assert_eq!(mode(&dir.path().join(KEY)), 0o600);
    assert_eq!(mode(&dir.path().join(ROOT)), 0o644);
    assert_eq!(mode(&dir.path().join(LOCK)), 0o600);
    let before = content(&dir);
    assert_eq!(before.len(), 3, "no scratch files stay: {before:?}");
    let again = open(&dir).unwrap();
    assert_eq!(first.root(), again.root());
    assert_eq!(first.key().public_key_der(), again.key().public_key_der());
    assert_eq!(content(&dir), before);
}

#[test]
fn many_starting_at_once_share_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let roots: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| open(&dir).unwrap().root().to_pem())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(roots.iter().all(|root| *root == roots[0]));
}

/// What is done to a good state directory, and a word of the error that must follow.
type Case = (&'static str, fn(&Path), &'static str);

#[test]
fn a_state_that_does_not_fit_together_is_refused_and_left_alone() {
    let cases: &[Case] = &[
        ("readable by the group", |dir| set_mode(&dir.join(KEY), 0o640), "mode 0640"),
        ("readable by everybody", |dir| set_mode(&dir.join(KEY), 0o604), "mode 0604"),
        ("writable by the group", |dir| set_mode(&dir.join(KEY), 0o620), "mode 0620"),
        ("key lost", |dir| fs::remove_file(dir.join(KEY)).unwrap(), "root-cert.pem is there but"),
        ("root lost", |dir| fs::remove_file(dir.join(ROOT)).unwrap(), "ca-key.pem is there but"),
        (
            "another key",
            |dir| fs::write(dir.join(KEY), &*PrivateKey::generate().unwrap().to_pem()).unwrap(),
            "no root certificate for ca-key.pem",
        ),
        ("key cut off", |dir| cut(&dir.join(KEY)), "no usable private key"),
        ("key empty", |dir| fs::write(dir.join(KEY), "").unwrap(), "no usable private key"),
        ("key not text", |dir| fs::write(dir.join(KEY), [0xff; 9]).unwrap(), "no usable private key"),
        ("root cut off", |dir| cut(&dir.join(ROOT)), "no root certificate"),
        ("root empty", |dir| fs::write(dir.join(ROOT), "").unwrap(), "no root certificate"),
        ("key huge", |dir| fs::write(dir.join(KEY), vec![b'a'; 1 << 20]).unwrap(), "too large"),
        (
            "key a directory",
            |dir| {
                fs::remove_file(dir.join(KEY)).unwrap();
                fs::create_dir(dir.join(KEY)).unwrap();
            },
            "not a regular file",
        ),
    ];
    for (name, spoil, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        open(&dir).unwrap();
        spoil(dir.path());
        let snapshot = || fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
        let before = snapshot();
        let error = open(&dir).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
        assert!(error.contains(dir.path().to_str().unwrap()), "{name} names no file: {error}");
        assert_eq!(snapshot(), before, "{name}");
    }
}

fn cut(path: &Path) {
    let content = fs::read(path).unwrap();
    fs::write(path, &content[..content.len() / 2]).unwrap();
}

#[test]
fn another_trust_domain_needs_another_root() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).unwrap();
    let storage = Storage::open(dir.path()).unwrap();
    let error = storage.authority(&"example.com".parse().unwrap(), OffsetDateTime::now_utc()).unwrap_err();
    assert!(matches!(error, StorageError::TrustDomain { .. }));
}

#[test]
fn a_directory_that_everybody_can_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o777);
    assert!(matches!(Storage::open(dir.path()), Err(StorageError::WritableDirectory(_))));
}

#[test]
fn creating_never_replaces() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    files::create_new(&path, b"first", 0o600).unwrap();
    let error = files::create_new(&path, b"second", 0o600).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(content(&dir), [(path, b"first".to_vec())]);
}
