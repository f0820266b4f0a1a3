//! Runs controllers: caches on a `kube` client, a key queue with back-off, performing actions, recording Events.
//!
//! Absent on purpose: rules about claims, pods or volumes (see `controllers`).
