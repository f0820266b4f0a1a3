//! The client against a service that answers as Flocker's does, over TLS.
#![allow(clippy::unwrap_used)]

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use flocker::{Client, Control, Error, NewDataset, Settings};
use testkit::flocker::{FakeFlocker, FlockerService, HERE, THERE};

const WANTED: &dyn Fn() -> bool = &|| false;

fn service(dir: &tempfile::TempDir) -> (FlockerService, String) {
    let fake = FakeFlocker::new("192.0.2.7", Box::new(|id, _| PathBuf::from("/flocker").join(id)));
    let id = fake.add("db");
    (FlockerService::start(fake, dir.path()), id)
}

#[test]
fn a_dataset_is_found_moved_made_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (service, id) = service(&dir);
    let client = Client::new(service.settings.clone());
    let nodes = client.nodes(WANTED).unwrap();
    assert_eq!((nodes[0].host.as_str(), nodes[0].uuid.as_str()), ("192.0.2.7", HERE));
    let all = client.datasets(WANTED).unwrap();
    assert_eq!((all[0].name(), all[0].primary.as_deref(), all[0].deleted), (Some("db"), Some(THERE), false));
    client.move_to(&id, HERE, WANTED).unwrap();
    let states = std::iter::repeat_with(|| client.states(WANTED).unwrap());
    let come = states.take(10).flatten().find(|s| s.path.is_some()).unwrap();
    assert_eq!(come.primary.as_deref(), Some(HERE));
    let new = NewDataset { name: "new".into(), primary: HERE.into(), maximum_bytes: 1 << 26 };
    let made = client.create(&new, WANTED).unwrap();
    assert_eq!(client.datasets(WANTED).unwrap()[1].dataset_id, made.dataset_id);
    client.delete(&made.dataset_id, WANTED).unwrap();
    client.delete("unknown", WANTED).unwrap();
    assert!(client.datasets(WANTED).unwrap()[1].deleted);
    let refused = client.move_to("../x", HERE, WANTED).unwrap_err().to_string();
    assert!(refused.contains("404: ") && refused.contains("%2E%2E%2Fx"), "{refused}");
}

/// All that an error says.
fn said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

#[test]
fn nobody_talks_to_strangers() {
    let dir = tempfile::tempdir().unwrap();
    let (service, _) = service(&dir);
    let ours = service.settings.clone();
    let theirs = service.strangers(dir.path());
    let ask = |settings: Settings| said(&Client::new(settings).nodes(WANTED).unwrap_err());
    // F1: the service is of another cluster, or has another name.
    let other = ask(Settings { ca_file: theirs.ca_file.clone(), ..ours.clone() });
    assert!(other.contains("cannot be asked") && other.contains("UnknownIssuer"), "{other}");
    let other = ask(Settings { host: "localhost".into(), ..ours.clone() });
    assert!(other.contains("NotValidForName") || other.contains("not valid for name"), "{other}");
    // The service does not take just anybody.
    let other = ask(Settings { ca_file: ours.ca_file.clone(), ..theirs });
    assert!(other.contains("cannot be asked"), "{other}");
    let missing = ask(Settings { key_file: "/nowhere/key".into(), ..ours.clone() });
    assert!(missing.starts_with("the key of the Flocker API user /nowhere/key cannot be used"), "{missing}");
    let empty = dir.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let empty = ask(Settings { certificate_file: empty, ..ours });
    assert!(empty.contains("it has no certificate"), "{empty}");
}

#[test]
fn a_service_that_says_nothing_is_left_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut service, _) = service(&dir);
    service.down();
    let down = Client::new(service.settings.clone()).nodes(WANTED).unwrap_err();
    assert!(matches!(down, Error::Unreachable { .. }), "{down:?}");
    service.up();
    assert!(Client::new(service.settings.clone()).nodes(WANTED).is_ok());

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings { port: silent.local_addr().unwrap().port(), ..service.settings.clone() };
    let (looks, begun) = (AtomicUsize::new(0), Instant::now());
    let enough = || looks.fetch_add(1, Ordering::Relaxed) >= 3;
    let left = Client::new(settings).states(&enough).unwrap_err();
    assert!(matches!(left, Error::Cancelled), "{left:?}");
    assert!(begun.elapsed() < Duration::from_secs(20), "it waited for an answer");
}
