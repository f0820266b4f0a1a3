use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use crate::{
    Expect, Options, Record, Revision, Store, StoreError,
    disk::fake::{FakeDisk, Survives},
    log::FILE_HEADER,
    recover::log_name,
};

type Text = Store<usize>;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}
fn open(disk: &FakeDisk, options: Options) -> Result<Text, StoreError> {
    Store::open_on(Arc::new(disk.clone()), options, |_, value| value.len())
}
async fn put(store: &Text, key: &str, expect: Expect, text: &str) -> Result<Arc<Record<usize>>, StoreError> {
    store.put(key, expect, |revision| Bytes::from(format!("{text}@{revision}"))).await
}
async fn delete(store: &Text, key: &str, expect: Expect) -> Result<Arc<Record<usize>>, StoreError> {
    store.delete(key, expect, |revision| Bytes::from(format!("gone@{revision}"))).await
}
fn contents(store: &Text) -> BTreeMap<String, (Revision, Bytes)> {
    let page = store.list("", None, None, &|_| true);
    page.records.iter().map(|r| (r.key.to_string(), (r.revision, r.value.clone()))).collect()
}

#[test]
fn writes_need_the_state_they_expect() {
    runtime().block_on(async {
        let store = Store::in_memory(|_, value| value.len());
        assert_eq!((store.revision(), store.oldest()), (1, 1));
        let first = put(&store, "/a", Expect::Absent, "x").await.unwrap();
        assert_eq!((first.revision, &*first.value, first.facets), (2, &b"x@2"[..], 3));
        let conflict = |r: Result<_, StoreError>| match r {
            Err(StoreError::Conflict { found, .. }) => found,
            other => panic!("{other:?}"),
        };
        assert_eq!(conflict(put(&store, "/a", Expect::Absent, "y").await), Some(2));
        assert_eq!(conflict(put(&store, "/a", Expect::At(1), "y").await), Some(2));
        assert_eq!(conflict(put(&store, "/b", Expect::At(2), "y").await), None);
        assert_eq!(conflict(delete(&store, "/a", Expect::At(9)).await), Some(2));
        assert_eq!(conflict(delete(&store, "/b", Expect::Absent).await), None);
        assert_eq!(put(&store, "/a", Expect::At(2), "z").await.unwrap().revision, 3);
        assert_eq!(&*delete(&store, "/a", Expect::At(3)).await.unwrap().value, b"gone@4");
        assert!(store.get("/a").is_none());
        assert_eq!(put(&store, "/a", Expect::Absent, "again").await.unwrap().revision, 5);
        store.close().await;
        assert!(matches!(put(&store, "/b", Expect::Absent, "y").await, Err(StoreError::Closed)));
    });
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Text::open(&dir.path().join("s"), Options::default(), |_, v| v.len());
    let store = open().unwrap();
    runtime().block_on(put(&store, "/a", Expect::Absent, "x")).unwrap();
    let error = open().unwrap_err();
    assert!(matches!(error, StoreError::Locked { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert!(error.to_string().contains(&format!("in use by process {}", std::process::id())), "{error}");
    drop(store);
    assert_eq!(&*open().unwrap().get("/a").unwrap().value, b"x@2");
}

#[test]
fn a_full_disk_refuses_writes_and_nothing_else() {
    runtime().block_on(async {
        let disk = FakeDisk::default();
        let store = open(&disk, Options::default()).unwrap();
        put(&store, "/a", Expect::Absent, "x").await.unwrap();
        disk.fail_appends(true);
        assert!(matches!(put(&store, "/a", Expect::At(2), "y").await, Err(StoreError::Io { .. })));
        assert_eq!(&*store.get("/a").unwrap().value, b"x@2");
        disk.fail_appends(false);
        assert_eq!(&*put(&store, "/a", Expect::At(2), "z").await.unwrap().value, b"z@3");
        store.close().await;
        assert_eq!(contents(&open(&disk, Options::default()).unwrap())["/a"].1, "z@3");
    });
}

#[test]
fn damage_before_the_end_refuses_to_open() {
    let disk = FakeDisk::default();
    let store = open(&disk, Options::default()).unwrap();
    for key in ["/a", "/b", "/c"] {
        runtime().block_on(put(&store, key, Expect::Absent, "value")).unwrap();
    }
    drop(store);
    let name = log_name(2);
    disk.flip(&name, FILE_HEADER + 40);
    let error = open(&disk, Options::default()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&name) && text.contains(&format!("byte {FILE_HEADER}:")), "{text}");
    disk.flip(&name, FILE_HEADER + 40);
    assert_eq!(open(&disk, Options::default()).unwrap().revision(), 4);
    disk.flip(&name, 3);
    assert!(matches!(open(&disk, Options::default()), Err(StoreError::Corrupt { offset: 0, .. })));
    disk.flip(&name, 3);
    disk.flip(&name, 7);
    assert!(matches!(open(&disk, Options::default()), Err(StoreError::OtherVersion { file }) if file == name));
    for len in [0, FILE_HEADER as u64 - 1] {
        crate::disk::Disk::open(&disk, &name).unwrap().cut(len).unwrap();
        assert!(matches!(open(&disk, Options::default()), Err(StoreError::Corrupt { offset: 0, .. })), "{len}");
    }
}

#[test]
fn a_watch_expires_only_when_it_is_slow() {
    runtime().block_on(async {
        let options = Options { history_events: 5, ..Options::default() };
        let store = open(&FakeDisk::default(), options).unwrap();
        let mut slow = store.watch("/a/", 1).unwrap();
        let mut idle = store.watch("/b/", 0).unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, idle.next()).await.is_err());
        for i in 0..9 {
            put(&store, &format!("/a/{i}"), Expect::Absent, "x").await.unwrap();
        }
        assert!(matches!(slow.next().await, Err(StoreError::Expired { asked: 1, oldest: 5 })));
        assert_eq!(idle.progress(), 10);
        put(&store, "/b/x", Expect::Absent, "x").await.unwrap();
        assert_eq!(idle.next().await.unwrap().revision, 11);
        assert!(matches!(store.watch("", 5), Err(StoreError::Expired { .. })));
        assert!(matches!(store.watch("", 12), Err(StoreError::Future { current: 11, .. })));
        assert!(matches!(store.list_at(5, "", None, None, &|_| true), Err(StoreError::Expired { .. })));
        assert_eq!(store.list_at(6, "", None, None, &|_| true).unwrap().records.len(), 5);
        store.close().await;
        assert!(matches!(idle.next().await, Err(StoreError::Closed)));
    });
}

#[test]
fn concurrent_conditional_writes_lose_no_update() {
    const TASKS: usize = 8;
    const EACH: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(Store::open(dir.path(), Options::default(), |_, v| v.len()).unwrap());
        let mut watch = store.watch("/", 1).unwrap();
        let tasks: Vec<_> = (0..TASKS).map(|t| tokio::spawn(count_up(store.clone(), t, EACH))).collect();
        for task in tasks {
            task.await.unwrap();
        }
        for revision in 2..2 + (TASKS * EACH) as Revision {
            assert_eq!(watch.next().await.unwrap().revision, revision);
        }
        let count = |key| String::from_utf8(store.get(key).unwrap().value.to_vec()).unwrap().parse::<usize>().unwrap();
        assert_eq!(count("/0") + count("/1"), TASKS * EACH);
    });
}

async fn count_up(store: Arc<Text>, task: usize, times: usize) {
    let key = format!("/{}", task % 2);
    for _ in 0..times {
        loop {
            let old = store.get(&key);
            let expect = old.as_ref().map_or(Expect::Absent, |r| Expect::At(r.revision));
            let count = old.map_or(0, |r| String::from_utf8(r.value.to_vec()).unwrap().parse::<usize>().unwrap()) + 1;
            match store.put(&key, expect, |_| count.to_string().into()).await {
                Ok(_) => break,
                Err(StoreError::Conflict { found, .. }) => {
                    let seen = store.get(&key).map(|r| r.revision);
                    assert!(seen >= found, "the winner {found:?} is not visible to the loser, who sees {seen:?}");
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Small limits, so that a short run rotates logs and writes snapshots.
fn tight(room_bytes: u64) -> Options {
    Options { log_bytes: 150, room_bytes, room_after: Duration::ZERO, ..Options::default() }
}

/// Writes until the disk fails. Returns what was acknowledged after each write, newest last.
fn run_script(disk: &FakeDisk, room: u64) -> Vec<BTreeMap<String, (Revision, Bytes)>> {
    let mut acknowledged = vec![BTreeMap::new()];
    let Ok(store) = open(disk, tight(room)) else { return acknowledged };
    runtime().block_on(async {
        for i in 0..12 {
            let key = format!("/{}", i % 4);
            let old = store.get(&key).map(|r| r.revision);
            let result = match old {
                Some(at) if i % 3 == 0 => delete(&store, &key, Expect::At(at)).await,
                Some(at) => put(&store, &key, Expect::At(at), "changed").await,
                None => put(&store, &key, Expect::Absent, "new").await,
            };
            if result.is_err() {
                break;
            }
            acknowledged.push(contents(&store));
        }
    });
    acknowledged
}

#[test]
fn a_crash_at_any_operation_loses_nothing_acknowledged() {
    // Without room in the log, and with room for some batches.
    [0, 100].into_iter().for_each(crash_everywhere);
}

fn crash_everywhere(room: u64) {
    let whole = FakeDisk::default();
    let states = run_script(&whole, room);
    assert_eq!(states.len(), 13);
    let operations = whole.operations();
    assert!(operations > 40, "the script must reach snapshots: {operations}");
    let survivals = (0..=3).map(Survives::Thirds).chain([Survives::Nothing, Survives::Holes]);
    for (crash, survives) in (1..=operations + 1).flat_map(|n| survivals.clone().map(move |s| (n, s))) {
        let disk = FakeDisk::crashing_at(crash);
        let acknowledged = run_script(&disk, room);
        let disk = disk.after_crash(survives);
        let store =
            open(&disk, tight(room)).unwrap_or_else(|e| panic!("crash at {crash}, {survives:?}, room {room}: {e}"));
        let found = contents(&store);
        let n = acknowledged.len();
        // The write under way may have made it.
        let possible = &states[n - 1..(n + 1).min(states.len())];
        assert!(
            possible.contains(&found),
            "crash at {crash}, {survives:?}, room {room}: {found:?} is none of {possible:?}"
        );
        let again = runtime().block_on(put(&store, "/again", Expect::Absent, "x")).unwrap();
        assert_eq!(again.revision, store.revision());
        drop(store);
        let store = open(&disk, tight(room)).unwrap();
        assert_eq!(store.revision(), again.revision);
        assert_eq!(store.get("/again").unwrap().value, again.value);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8, bool),
    Delete(u8, bool),
    List { prefix: u8, after: Option<u8>, limit: Option<usize> },
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let key = 0..12u8;
    let op = prop_oneof![
        6 => (key.clone(), prop::bool::weighted(0.8)).prop_map(|(k, ok)| Op::Put(k, ok)),
        3 => (key.clone(), prop::bool::weighted(0.8)).prop_map(|(k, ok)| Op::Delete(k, ok)),
        2 => (0..4u8, prop::option::of(key), prop::option::of(0..5usize))
            .prop_map(|(prefix, after, limit)| Op::List { prefix, after, limit }),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(op, 1..60)
}
fn key(n: u8) -> String {
    format!("/{}/{}", ["a", "b", "bb"][usize::from(n % 3)], n / 3)
}
fn prefix(n: u8) -> &'static str {
    ["", "/a/", "/b/", "/bb/"][usize::from(n)]
}

/// What the store must equal: every state it ever had.
#[derive(Debug, Default)]
struct Model {
    /// State after each write; the first is that of revision 1.
    states: Vec<BTreeMap<String, (Revision, String)>>,
    /// Key and whether it was deleted, of revision 2 and on.
    events: Vec<(String, bool)>,
}

impl Model {
    fn now(&self) -> BTreeMap<String, (Revision, String)> {
        self.states.last().cloned().unwrap_or_default()
    }
    fn write(&mut self, store: &Text, n: u8, right: bool, deleted: bool) -> Result<(), TestCaseError> {
        let key = key(n);
        let mut now = self.now();
        let found = now.get(&key).map(|v| v.0);
        let expect = match (found, right) {
            (Some(at), true) => Expect::At(at),
            (None, true) => Expect::Absent,
            (Some(_), false) => Expect::Absent,
            (None, false) => Expect::At(1),
        };
        let result = runtime().block_on(async {
            if deleted { delete(store, &key, expect).await } else { put(store, &key, expect, "v").await }
        });
        if !right || (deleted && found.is_none()) {
            let refused = matches!(&result, Err(StoreError::Conflict { found: f, .. }) if *f == found);
            prop_assert!(refused, "{:?}", result);
            return Ok(());
        }
        let revision = self.states.len() as Revision + 1;
        prop_assert_eq!(result.unwrap().revision, revision);
        if deleted {
            now.remove(&key)
        } else {
            now.insert(key.clone(), (revision, format!("v@{revision}")))
        };
        self.states.push(now);
        self.events.push((key, deleted));
        Ok(())
    }
    fn page(&self, at: Revision, prefix: &str, after: Option<&str>, limit: usize) -> (Vec<(String, String)>, usize) {
        let all: Vec<_> = self.states[at as usize - 1]
            .iter()
            .filter(|(k, _)| k.starts_with(prefix) && after.is_none_or(|a| k.as_str() > a))
            .map(|(k, v)| (k.clone(), v.1.clone()))
            .collect();
        let n = limit.min(all.len());
        (all[..n].to_vec(), all.len() - n)
    }
}

fn check_watches(store: &Text, model: &Model) -> Result<(), TestCaseError> {
    for (from, p) in (store.oldest()..=store.revision()).flat_map(|r| (0..4).map(move |p| (r, prefix(p)))) {
        let mut watch = store.watch(p, from).unwrap();
        let expected = model.events.iter().enumerate().map(|(i, e)| (i as Revision + 2, e));
        for (revision, (key, deleted)) in expected.filter(|(r, (k, _))| *r > from && k.starts_with(p)) {
            let event = runtime().block_on(watch.next()).unwrap();
            prop_assert_eq!((event.revision, &*event.record.key, event.deleted), (revision, key.as_str(), *deleted));
            let before = model.states[revision as usize - 2].get(key).map(|v| v.0);
            prop_assert_eq!(event.previous.as_ref().map(|r| r.revision), before);
        }
        if p.is_empty() {
            prop_assert_eq!(watch.progress(), store.revision());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn behaves_as_the_model(ops in ops()) {
        let disk = FakeDisk::default();
        let options = Options { log_bytes: 400, history_events: 20, ..Options::default() };
        let mut store = open(&disk, options.clone()).unwrap();
        let mut model = Model { states: vec![BTreeMap::new()], events: Vec::new() };
        for op in ops {
            match op {
                Op::Put(k, right) => model.write(&store, k, right, false)?,
                Op::Delete(k, right) => model.write(&store, k, right, true)?,
                Op::Reopen => {
                    drop(store);
                    store = open(&disk, options.clone()).unwrap();
                }
                Op::List { prefix: p, after, limit } => {
                    let after = after.map(key);
                    for at in store.oldest()..=store.revision() {
                        let page = store.list_at(at, prefix(p), after.as_deref(), limit, &|_| true).unwrap();
                        let records = page.records.iter()
                            .map(|r| (r.key.to_string(), String::from_utf8(r.value.to_vec()).unwrap())).collect();
                        let expected = model.page(at, prefix(p), after.as_deref(), limit.unwrap_or(usize::MAX));
                        prop_assert_eq!((records, page.remaining), expected);
                    }
                    let (now, then) = (store.list(prefix(p), after.as_deref(), limit, &|_| true),
                        store.list_at(store.revision(), prefix(p), after.as_deref(), limit, &|_| true).unwrap());
                    prop_assert_eq!(now.records.len(), then.records.len());
                }
            }
            prop_assert_eq!(store.revision() as usize, model.states.len());
        }
        check_watches(&store, &model)?;
    }
}
