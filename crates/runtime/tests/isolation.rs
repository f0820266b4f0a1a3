//! What a container sees, may do and may use.
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]
mod support;

use std::{fs, os::unix::fs::symlink};

use runtime::{Device, ExitReason, PodUid, Resources, Runtime, RuntimeError, User};
use support::{POD, World, sandbox};

#[tokio::test]
async fn a_container_sees_its_own_system() {
    let world = World::new().await;
    world.sandbox().await;
    let script = "echo pid=$$ host=$(hostname) HOSTNAME=$HOSTNAME; grep -c . /proc/net/dev >/dev/null; ip -o link | wc -l;
        for f in null zero full random urandom tty ptmx; do test -c /dev/$f || echo no $f; done; echo x > /dev/null;
        mount | grep ' on / ' | cut -c1-7; grep -i cap /proc/self/status; cat /proc/1/oom_score_adj >/dev/null;
        touch /etc/new && echo writable; test -w /proc/sys/kernel/panic || echo no; echo 1 > /proc/sys/kernel/panic || echo read-only;
        echo firmware=$(ls -A /sys/firmware | wc -l) hidden=$(for f in kcore interrupts keys timer_list; do test ! -s /proc/$f && test ! -f /proc/$f && echo -n +; done); stat -c %a /dev/shm";
    let out = world.output(&world.spec(&script.replace("| cut -c1-7", "| head -c 7; echo"))).await;
    for line in [
        "pid=1 host=pod-host HOSTNAME=pod-host",
        "2",
        "overlay",
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "writable",
        "read-only",
        "firmware=0 hidden=++++",
        "1777",
    ] {
        assert!(out.lines().any(|l| l == line), "{line:?} is missing in {out}");
    }
    assert!(!out.contains("no "), "{out}");
    world.finish().await;
}

#[tokio::test]
async fn limits_are_set_and_shown() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null;
         cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null; cat /proc/self/cgroup;
         touch /sys/fs/cgroup/x 2>/dev/null && echo writable; true",
    );
    spec.resources = Resources {
        memory_limit: Some(64 << 20),
        cpu_quota: Some(25_000),
        cpu_period: Some(100_000),
        cpu_shares: Some(256),
        pids_limit: Some(100),
        oom_score_adj: Some(-998),
        huge_pages: [].into(),
    };
    let out = world.output(&spec).await;
    assert!(out.contains("67108864"), "{out}");
    assert!(out.contains("25000"), "{out}");
    assert!(!out.contains(POD), "the cgroup namespace hides where the container is: {out}");
    assert!(!out.contains("writable"), "{out}");
    world.finish().await;
}

#[tokio::test]
async fn out_of_memory_is_said_to_be_that() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.resources.memory_limit = Some(16 << 20);
    let id = world.run(&spec).await;
    assert_eq!(world.exit(&id).await, (137, ExitReason::OomKilled));
    world.finish().await;
}

#[tokio::test]
async fn usage_is_measured() {
    let world = World::new().await;
    world.sandbox().await;
    let id =
        world.run(&world.spec("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; exec sleep 1000")).await;
    support::await_log(&world, "ready").await;
    let usage = world.runtime.usage(&id).await.unwrap();
    assert!(usage.cpu_nanoseconds > 1_000_000, "{usage:?}");
    assert!(usage.memory_working_set_bytes > 0, "{usage:?}");
    world.finish().await;
}

#[tokio::test]
async fn users_and_privileges() {
    let world = World::new().await;
    world.sandbox().await;
    let status = "id -u; id -g; id -G; grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status";
    let mut spec = world.spec(status);
    spec.image = "box:web".to_owned();
    spec.user = User { supplemental_groups: vec![7], merge_image_groups: true, ..User::default() };
    spec.cap_drop = vec!["ALL".to_owned()];
    spec.cap_add = vec!["NET_BIND_SERVICE".to_owned()];
    spec.no_new_privileges = true;
    let out = world.output(&spec).await;
    assert_eq!(out, "33\n34\n34 7 50\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000400\nNoNewPrivs:\t1\n");

    let pod = PodUid(POD.to_owned());
    let root = User { must_not_be_root: true, ..User::default() };
    for (image, user) in
        [("box", root.clone()), ("box:0", root.clone()), ("box:1", User { uid: Some(0), ..root.clone() })]
    {
        let spec = runtime::ContainerSpec { image: image.to_owned(), user, ..world.spec("true") };
        assert!(matches!(world.runtime.create(&pod, &spec).await, Err(RuntimeError::RootRefused)), "{image}");
    }
    let named = runtime::ContainerSpec { image: "box:web".to_owned(), user: root, ..world.spec("true") };
    assert!(matches!(world.runtime.create(&pod, &named).await, Err(RuntimeError::UserUnverifiable(u)) if u == "web"));
    let ghost = runtime::ContainerSpec { image: "box:ghost".to_owned(), ..world.spec("true") };
    let error = world.runtime.create(&pod, &ghost).await.unwrap_err().to_string();
    assert!(error.contains("unable to find user ghost"), "{error}");
    let missing = runtime::ContainerSpec { image: "elsewhere".to_owned(), ..world.spec("true") };
    assert!(matches!(world.runtime.create(&pod, &missing).await, Err(RuntimeError::NoImage { .. })));
    world.finish().await;
}

#[tokio::test]
async fn privileged_containers_may_do_all() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec("mount -t tmpfs none /tmp && touch /tmp/x && echo mounted; test -e /dev/kmsg && echo devices; touch /proc/sys/kernel/domainname 2>/dev/null; ls /proc/acpi 2>/dev/null | wc -l");
    spec.privileged = true;
    let out = world.output(&spec).await;
    assert!(out.contains("mounted\n"), "{out}");
    assert!(out.contains("devices\n") || !std::path::Path::new("/dev/kmsg").exists(), "{out}");
    world.finish().await;
}

#[tokio::test]
async fn volumes_appear_as_asked() {
    let world = World::new().await;
    world.sandbox().await;
    let at = |p: &str| world.dir.path().join(p);
    fs::create_dir_all(at("data/inner")).unwrap();
    fs::create_dir(at("read-only")).unwrap();
    fs::write(at("file"), "from the host\n").unwrap();
    symlink("/tmp", at("base/link")).unwrap();
    let mut spec = world.spec(
        "cat /etc/injected; echo new > /data/inner/made; ls /data; touch /ro/x 2>/dev/null || echo refused;
         touch /root-is-ro 2>/dev/null || echo root-refused; echo deep > /data/inner/deep/x; test -d /tmp/below && echo through-link",
    );
    spec.read_only_root = true;
    spec.mounts = vec![
        world.mount("read-only", "/data/inner/deep-ro", true),
        world.mount("file", "/etc/injected", false),
        world.mount("data", "/data", false),
        world.mount("read-only", "/ro", true),
        world.mount("data/inner", "/data/inner/deep", false),
        world.mount("data", "/link/below", false),
    ];
    fs::create_dir(at("data/inner/deep")).unwrap();
    fs::create_dir(at("data/inner/deep-ro")).unwrap();
    let out = world.output(&spec).await;
    assert_eq!(out, "from the host\ninner\nrefused\nroot-refused\nthrough-link\n");
    assert_eq!(fs::read_to_string(at("data/inner/made")).unwrap(), "new\n");
    assert_eq!(fs::read_to_string(at("data/inner/x")).unwrap(), "deep\n");
    world.finish().await;
}

#[tokio::test]
async fn cve_2021_30465_images_cannot_lure_mounts_outside() {
    let world = World::new().await;
    world.sandbox().await;
    let at = |p: &str| world.dir.path().join(p);
    fs::create_dir(at("data")).unwrap();
    fs::create_dir(at("victim")).unwrap();
    symlink(at("victim"), at("base/trap")).unwrap();
    symlink("/proc/sys", at("base/proc-trap")).unwrap();
    let pod = PodUid(POD.to_owned());
    let mut spec = world.spec("true");
    spec.mounts = vec![world.mount("data", "/trap/below", false)];
    let _ = world.output(&spec).await;
    assert_eq!(fs::read_dir(at("victim")).unwrap().count(), 0, "a directory was made outside the container");
    for path in ["/proc-trap/kernel", "/proc/self", "/proc/1"] {
        spec.mounts = vec![world.mount("data", path, false)];
        let error = world.runtime.create(&pod, &spec).await.expect_err(path).to_string();
        assert!(error.contains("/proc"), "{error}");
    }
    world.finish().await;
}

#[tokio::test]
async fn cve_2019_19921_an_image_cannot_have_a_proc_of_its_own() {
    let world = World::new().await;
    world.sandbox().await;
    let at = |p: &str| world.dir.path().join(p);
    fs::remove_dir(at("base/proc")).unwrap();
    symlink("tmp", at("base/proc")).unwrap();
    let error = world.runtime.create(&PodUid(POD.to_owned()), &world.spec("true")).await.unwrap_err().to_string();
    assert!(error.contains("/proc of the image must be a directory"), "{error}");
    assert!(world.runtime.list().await.unwrap()[0].containers.is_empty(), "nothing half-made is left");
    world.finish().await;
}

#[tokio::test]
async fn devices_are_given_and_withheld() {
    let world = World::new().await;
    world.sandbox().await;
    let mut spec = world.spec(
        "test -c /dev/mine && head -c 4 /dev/mine | wc -c; mknod /tmp/disk b 7 0 && (head -c 1 /tmp/disk 2>&1 || true) | grep -c 'not permitted'",
    );
    spec.devices =
        vec![Device { host_path: "/dev/zero".into(), container_path: "/dev/mine".into(), permissions: "r".to_owned() }];
    assert_eq!(world.output(&spec).await, "4\n1\n");
    world.finish().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_should() {
    let world = World::new().await;
    let mut pod = sandbox();
    pod.share_process_namespace = true;
    pod.sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned());
    pod.sysctls.insert("kernel.shmmax".to_owned(), "123456".to_owned());
    let status = world.runtime.run_sandbox(&pod).await.unwrap();
    assert_eq!(status.ips.len(), 1);
    let again = world.runtime.run_sandbox(&pod).await.unwrap();
    assert_eq!(again.ips, status.ips, "the same call again");
    let first = world.run(&world.spec("echo shared > /dev/shm/file; exec sleep 4321")).await;
    let mut spec = world.spec(
        "while ! test -e /dev/shm/file; do sleep 0.01; done; cat /dev/shm/file; ps | grep -c '[s]leep 4321'; ps | grep -c '^ *1 .*pause\\|^ *1 .*holdfast';
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax; ls /proc/1/root 2>/dev/null | wc -l",
    );
    spec.name = "second".to_owned();
    let _ = fs::remove_dir_all(world.dir.path().join("logs"));
    let id = world.run(&spec).await;
    assert_eq!(world.exit(&id).await.0, 0, "{}", world.log());
    assert_eq!(world.log(), "shared\n1\n1\n80\n123456\n0\n");
    world.runtime.stop(&first, std::time::Duration::ZERO).await.unwrap();
    let mut bad = sandbox();
    bad.uid = PodUid("other".to_owned());
    bad.sysctls.insert("kernel.panic".to_owned(), "1".to_owned());
    assert!(world.runtime.run_sandbox(&bad).await.unwrap_err().to_string().contains("kernel.panic"));
    world.runtime.remove_sandbox(&bad.uid).await.unwrap();
    world.finish().await;
}

#[tokio::test]
async fn an_ephemeral_container_sees_its_target() {
    let world = World::new().await;
    world.sandbox().await;
    let target = world.run(&world.spec("exec sleep 9876")).await;
    let mut spec = world.spec("ps | grep -c '[s]leep 9876'");
    spec.name = "debug".to_owned();
    spec.pid_of = Some(target.clone());
    let _ = fs::remove_dir_all(world.dir.path().join("logs"));
    let id = world.run(&spec).await;
    world.exit(&id).await;
    assert_eq!(world.log(), "1\n");
    assert!(matches!(world.state(&target).await, runtime::ContainerState::Running { .. }));
    world.finish().await;
}

#[tokio::test]
async fn host_namespaces_on_request() {
    let world = World::new().await;
    let mut pod = sandbox();
    (pod.host_network, pod.host_pid, pod.host_ipc) = (true, true, true);
    let status = world.runtime.run_sandbox(&pod).await.unwrap();
    assert!(status.ips.is_empty() && status.ready);
    let own = |n: &str| fs::read_link(format!("/proc/self/ns/{n}")).unwrap().display().to_string();
    let mut spec = world.spec("for n in net pid ipc uts; do readlink /proc/self/ns/$n; done; sleep 77777 & echo left");
    spec.env = vec![("X".into(), "y".into())];
    let out = world.output(&spec).await;
    let expected: String = ["net", "pid", "ipc", "uts"].iter().map(|n| own(n) + "\n").collect();
    assert_eq!(out, expected + "left\n");
    world.finish().await;
}

#[tokio::test]
async fn the_default_system_call_filter_filters() {
    let world = World::new().await;
    world.sandbox().await;
    let script = "grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null && echo unshared; echo lives";
    let mut spec = world.spec(script);
    assert_eq!(world.output(&spec).await, "Seccomp:\t0\nunshared\nlives\n");
    spec.seccomp = runtime::Seccomp::RuntimeDefault;
    for no_new_privileges in [false, true] {
        spec.no_new_privileges = no_new_privileges;
        spec.user.uid = Some(33);
        assert_eq!(world.output(&spec).await, "Seccomp:\t2\nlives\n");
    }
    world.finish().await;
}

#[tokio::test]
async fn the_hosts_mounts_reach_in_as_asked() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
    struct Mounted(Vec<std::path::PathBuf>);
    impl Drop for Mounted {
        fn drop(&mut self) {
            for path in self.0.iter().rev() {
                let _ = unmount(path, UnmountFlags::DETACH);
            }
        }
    }
    let world = World::new().await;
    world.sandbox().await;
    let top = world.dir.path().join("shared");
    let mut mounted = Mounted(Vec::new());
    let mut add = |path: &std::path::Path| {
        fs::create_dir_all(path).unwrap();
        mount("none", path, "tmpfs", MountFlags::empty(), None).unwrap();
        mounted.0.push(path.to_owned());
    };
    add(&top);
    mount_change(&top, MountPropagationFlags::SHARED).unwrap();
    add(&top.join("before"));
    let mut spec = world.spec(
        "touch /private/before/x && echo nested-writable; touch /ro/before/x 2>/dev/null || echo nested-read-only;
         echo ready; while ! test -e /slave/after/file; do sleep 0.01; done; test -e /private/after/file || echo private",
    );
    let mount_as = |path: &str, propagation, recursive_read_only| runtime::Mount {
        propagation,
        recursive_read_only,
        read_only: recursive_read_only,
        ..world.mount("shared", path, false)
    };
    spec.mounts = vec![
        mount_as("/private", runtime::Propagation::Private, false),
        mount_as("/slave", runtime::Propagation::HostToContainer, false),
        mount_as("/ro", runtime::Propagation::Private, true),
    ];
    let id = world.run(&spec).await;
    support::await_log(&world, "ready").await;
    add(&top.join("after"));
    fs::write(top.join("after/file"), "").unwrap();
    assert_eq!(world.exit(&id).await.0, 0);
    assert_eq!(world.log(), "nested-writable\nnested-read-only\nready\nprivate\n");
    drop(mounted);
    world.finish().await;
}
