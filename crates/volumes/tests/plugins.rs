//! Every plugin, on both kernels, with every fault.
#![allow(clippy::unwrap_used)]

use std::{path::Path, sync::Arc};

use sys::{FakeSys, RealSys, Sys};
use testkit::{in_mount_namespace, plugin_suite};

#[test]
fn all_plugins_on_the_fake_kernel() {
    let fake = Arc::new(FakeSys::default());
    let sys: Arc<dyn Sys> = fake.clone();
    plugin_suite::add_device(&fake, Path::new("/scratch/host"), 1 << 20);
    plugin_suite::check_plugins(&sys, Path::new("/scratch"));
    plugin_suite::check_reclaiming(&sys, Path::new("/scratch/released"));
    assert!(fake.mounts().is_empty());
    assert!(fake.leftovers("/scratch/pods").is_empty());
}

#[test]
fn all_plugins_on_the_real_kernel() {
    let scratch = tempfile::tempdir().unwrap();
    in_mount_namespace(|| {
        let sys: Arc<dyn Sys> = Arc::new(RealSys);
        plugin_suite::check_plugins(&sys, scratch.path());
        plugin_suite::check_reclaiming(&sys, &scratch.path().join("released"));
    });
}

#[test]
fn every_fault_is_survived_without_a_leak() {
    plugin_suite::sweep_faults();
}

#[test]
fn reclaiming_goes_on_after_every_fault() {
    plugin_suite::sweep_reclaiming();
}

#[test]
fn growing_goes_on_after_every_fault() {
    plugin_suite::sweep_growth();
}
