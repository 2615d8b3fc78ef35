use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const LONG: Duration = Duration::from_secs(10);

fn deleted(object: &str) -> Event {
    Event::PolicyDeleted { object: object.to_owned() }
}

fn written(path: &Path, options: Options, events: usize) -> (u64, Hash) {
    let trail = Trail::open(path, options).unwrap();
    for number in 0..events {
        trail.append(deleted(&format!("AuthorizationPolicy a/\"{number}\"\n\u{1b}")));
    }
    assert!(trail.flush(LONG));
    trail.head().unwrap()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    (folder, path)
}

/// Opening waits for the lock of a trail that was just dropped, whose thread is still ending.
fn reopened(path: &Path, options: Options) -> Trail {
    let deadline = Instant::now() + LONG;
    loop {
        match Trail::open(path, options) {
            Err(Error::Locked { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

fn checked(path: &Path) -> Report {
    verify(&[path.to_owned()], None).unwrap()
}

#[test]
fn a_trail_is_whole_private_and_continued() {
    let (_folder, path) = folder();
    let (seq, head) = written(&path, Options::default(), 3);
    assert_eq!(seq, 3);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let trail = reopened(&path, Options::default());
    trail.append(Event::SourceRestored {});
    assert!(trail.flush(LONG));
    assert!(matches!(Trail::open(&path, Options::default()), Err(Error::Locked { .. })));
    let report = checked(&path);
    assert!(report.whole, "{report:?}");
    assert_eq!(report.files[0].lines, 5);
    assert_eq!(report.head, Some(trail.head().unwrap().1));
    assert_eq!(report.after, None);
    assert_ne!(report.head, Some(head));
    for line in fs::read_to_string(&path).unwrap().lines() {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
        assert!(!line.contains('\u{1b}'));
    }
    // The end cut off shows only to who knows the last hash.
    let text = fs::read_to_string(&path).unwrap();
    let cut = text.trim_end().rsplit_once('\n').unwrap().0.to_owned() + "\n";
    let copy = path.with_extension("copy");
    fs::write(&copy, cut).unwrap();
    assert!(checked(&copy).whole);
    let report = verify(&[copy], report.head).unwrap();
    assert_eq!((report.whole, report.faults[0].line), (false, 4), "{report:?}");
}

#[test]
fn a_torn_line_is_kept_aside_and_noted() {
    let (folder, path) = folder();
    written(&path, Options::default(), 2);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    drop(reopened(&path, Options::default()));
    let report = checked(&path);
    assert!(report.whole, "{report:?}");
    let text = fs::read_to_string(&path).unwrap();
    let last = text.lines().last().unwrap();
    assert!(last.contains("\"kind\":\"TornLine\""), "{last}");
    let aside = folder.path().join(format!("audit.jsonl.torn.{:020}", 2));
    let torn = fs::read(aside).unwrap();
    assert_eq!(torn, whole[whole.len() - 10 - torn.len()..whole.len() - 10]);
}

#[test]
fn a_file_that_was_tampered_with_is_not_continued() {
    let (folder, path) = folder();
    written(&path, Options::default(), 4);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replacen("PolicyDeleted", "PolicyChanged", 1)).unwrap();
    drop(reopened(&path, Options::default()));
    let now = fs::read_to_string(&path).unwrap();
    assert!(now.lines().nth(1).unwrap().contains("ChainBroken"), "{now}");
    assert!(checked(&path).whole);
    let aside = folder.path().join(format!("audit.jsonl.broken.{:020}", 5));
    assert_eq!(fs::read_to_string(&aside).unwrap().len(), text.len());
    // The new file names the end of the old one.
    let both = verify(&[aside, path], None).unwrap();
    assert_eq!(both.faults.len(), 1, "{both:?}");
}

#[test]
fn rotated_files_are_one_chain() {
    let (folder, path) = folder();
    let options = Options { max_bytes: 2000, ..Options::default() };
    let (_, head) = written(&path, options, 40);
    let mut files: Vec<PathBuf> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    // `audit.jsonl` itself sorts first and is the newest.
    files.rotate_left(1);
    assert!(files.len() > 3, "{files:?}");
    let report = verify(&files, Some(head)).unwrap();
    assert!(report.whole, "{report:?}");
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 2000));
    let report = verify(&files[1..], None).unwrap();
    assert!(report.whole && report.after.is_some(), "{report:?}");
    let gap: Vec<PathBuf> =
        files.iter().enumerate().filter(|(i, _)| *i != 1).map(|(_, f)| f.clone()).collect();
    assert!(!verify(&gap, None).unwrap().whole);
    // A crash between setting aside and beginning anew.
    fs::remove_file(files.pop().unwrap()).unwrap();
    drop(reopened(&path, options));
    files.push(path);
    assert!(verify(&files, None).unwrap().whole);
}

#[test]
fn a_file_removed_while_written_is_noticed() {
    let (_folder, path) = folder();
    let trail = Trail::open(&path, Options::default()).unwrap();
    trail.append(deleted("a"));
    assert!(trail.flush(LONG));
    fs::remove_file(&path).unwrap();
    let deadline = Instant::now() + LONG;
    while !fs::read_to_string(&path).is_ok_and(|text| text.contains("FileReplaced")) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    drop(trail);
    let report = checked(&path);
    assert!(report.whole && report.after.is_some(), "{report:?}");
}

#[test]
fn what_is_dropped_is_counted_and_said() {
    let (_folder, path) = folder();
    let trail = Trail::open(&path, Options::default()).unwrap();
    let refused = || Event::StreamRefused {
        peer: "10.0.0.1".into(),
        node: "x".repeat(5000),
        identity: None,
        code: "PermissionDenied".into(),
        reason: "no".into(),
    };
    for _ in 0..500 {
        trail.append(refused());
    }
    trail.append(deleted("still written"));
    assert!(trail.flush(LONG));
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("still written") && text.contains("EventsDropped"), "{}", text.len());
    assert!(text.lines().count() < 300 && text.len() < 500_000);
    assert!(checked(&path).whole);
}

/// What `ca` and `authn` log reaches the trail under its own kind, also where the log says nothing.
#[test]
fn what_is_logged_for_the_trail_reaches_it() {
    use tracing_subscriber::layer::SubscriberExt as _;
    let (_folder, path) = folder();
    let trail = Trail::open(&path, Options::default()).unwrap();
    trail.install();
    let silent = tracing_subscriber::Layer::with_filter(
        tracing_subscriber::fmt::layer(),
        tracing_subscriber::filter::LevelFilter::OFF,
    );
    let subscriber = tracing_subscriber::registry().with(silent).with(capture::layer());
    started("test", &crate::Version::of("countersign"));
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!(target: "audit", method = "m", id = %"spiffe://a/b", serial = "1", not_after = "t", caller = "none", address = %"::1", "certificate issued");
        tracing::info!(target: "audit", method = "m", caller = "c", address = %"::1", code = ?7, error = %"no", cause = "why", "certificate refused");
        tracing::info!(target: "audit", code = ?16, reason = "expired", "token refused");
        tracing::info!(target: "audit", peer = "1.2.3.4:5", node = "n", identity = "", code = ?7, reason = "no", "stream refused");
        tracing::info!(target: "audit", roots = 2, "keys changed");
        tracing::info!("not for the trail");
    });
    stopped("test", "the test is over");
    Trail::disabled().install();
    let text = fs::read_to_string(&path).unwrap();
    for part in [
        r#""kind":"CertificateIssued","address":"::1","caller":"none","id":"spiffe://a/b","method":"m","notAfter":"t","serial":"1""#,
        r#""kind":"CertificateRefused","address":"::1","caller":"c","code":"7","method":"m","reason":"no: why""#,
        r#""kind":"StreamRefused","code":"7","node":"n","peer":"1.2.3.4:5","reason":"no""#,
        r#""kind":"TokenRefused","code":"16","reason":"expired""#,
        r#""kind":"Logged","fields":{"roots":"2"},"message":"keys changed""#,
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert_eq!(text.lines().count(), 8);
    assert!(
        text.contains(r#""kind":"Started""#) && text.lines().last().unwrap().contains("Stopped"),
        "{text}"
    );
}

/// A disk that refuses: nothing half-written stays, it is loud, and what waited is written when there is room.
#[test]
fn a_full_disk_loses_what_does_not_fit_and_says_so() {
    let (_folder, path) = folder();
    let mut log = file::Log::open(&path, 1 << 20, "t").unwrap().0;
    let before = log.head();
    log.break_file(true);
    assert!(log.append("t", &deleted("a")).is_err());
    assert_eq!(log.head(), before);
    log.break_file(false);
    log.append("t", &deleted("b")).unwrap();
    drop(log);
    let report = checked(&path);
    assert!(report.whole && report.files[0].lines == 2, "{report:?}");
}

#[test]
fn what_cannot_be_opened_is_an_error_and_nothing_is_written_where_it_is_off() {
    let (folder, _) = folder();
    assert!(matches!(Trail::open(folder.path(), Options::default()), Err(Error::NotAFile { .. })));
    assert!(matches!(Trail::open(&folder.path().join("a/b"), Options::default()), Err(Error::Io { .. })));
    let off = Trail::disabled();
    off.append(deleted("a"));
    assert!(off.flush(Duration::ZERO) && off.head().is_none() && !off.is_enabled());
}

#[test]
fn no_event_hides_a_field_of_the_line() {
    let events = [
        Event::Genesis { format: 1, previous_file: None },
        Event::PolicyAdmitted {
            object: "o".into(),
            operation: "CREATE".into(),
            user: "u".into(),
            caller: "127.0.0.1".into(),
            compiled: None,
            dry_run: true,
        },
    ];
    for event in events {
        let (_, fields) = event.fields();
        assert!(["seq", "time", "kind", "prev", "hash"].iter().all(|name| !fields.contains_key(*name)));
    }
}

#[test]
fn equal_values_have_equal_digests() {
    assert_eq!(digest(&("a", 1)), digest(&("a", 1)));
    assert_ne!(digest(&("a", 1)), digest(&("a", 2)));
    assert_eq!(digest(&"").len(), 64);
}

fn sample() -> Vec<u8> {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    SAMPLE
        .get_or_init(|| {
            let (_folder, path) = folder();
            written(&path, Options::default(), 6);
            fs::read(&path).unwrap()
        })
        .clone()
}

fn whole(bytes: &[u8]) -> bool {
    let (_folder, path) = folder();
    fs::write(&path, bytes).unwrap();
    checked(&path).whole
}

fn lines(bytes: &[u8]) -> Vec<&[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n').collect()
}

proptest! {
    #[test]
    fn a_flipped_bit_shows(at in 0..sample().len(), bit in 0..8_u8) {
        let mut bytes = sample();
        bytes[at] ^= 1 << bit;
        prop_assert!(!whole(&bytes), "byte {at} bit {bit}");
    }

    #[test]
    fn a_removed_inserted_or_moved_line_shows(a in 0..7_usize, b in 0..7_usize, junk in "[ -~]{0,40}") {
        let bytes = sample();
        prop_assert!(whole(&bytes));
        let mut removed = lines(&bytes);
        removed.remove(a);
        // The last one alone leaves a whole chain: only its hash, kept elsewhere, would tell.
        prop_assert_eq!(whole(&removed.concat()), a == 6);
        let mut moved = lines(&bytes);
        moved.swap(a, b);
        prop_assert_eq!(whole(&moved.concat()), a == b);
        let mut copied = lines(&bytes);
        copied.insert(b, copied[a]);
        prop_assert!(!whole(&copied.concat()));
        let junk = junk + "\n";
        let mut added = lines(&bytes);
        added.insert(a, junk.as_bytes());
        prop_assert!(!whole(&added.concat()));
    }

    #[test]
    fn a_byte_added_or_taken_shows(at in 0..sample().len(), byte: u8) {
        let mut added = sample();
        added.insert(at, byte);
        prop_assert!(!whole(&added));
        let mut taken = sample();
        taken.remove(at);
        prop_assert!(!whole(&taken));
    }
}
