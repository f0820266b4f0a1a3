//! From what the pod asks and what the image says to what the shim does. Pure.
use std::path::{Path, PathBuf};

use super::images::RunnableImage;
use crate::{
    caps,
    contract::{ContainerSpec, RuntimeError, SandboxSpec, Seccomp},
    launch::{Launch, PidNamespace, Process},
};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a container's parts are on the host.
pub(super) struct Places<'a> {
    /// The container's own directory.
    pub container: &'a Path,
    /// The pod's directory, with its pinned namespaces.
    pub pod: &'a Path,
    pub cgroup: String,
    pub pid: PidNamespace,
    /// Name of this machine, for pods without a name of their own.
    pub host_name: String,
}

/// The launch description.
pub(super) fn plan(
    sandbox: &SandboxSpec,
    spec: &ContainerSpec,
    image: &RunnableImage,
    places: Places<'_>,
) -> Result<Launch, RuntimeError> {
    let capabilities = if spec.privileged {
        caps::ALL
    } else {
        caps::set(&spec.cap_add, &spec.cap_drop).map_err(RuntimeError::Other)?
    };
    if let (Seccomp::Localhost(_), false) = (&spec.seccomp, spec.privileged) {
        crate::seccomp::filter(&spec.seccomp, capabilities).map_err(RuntimeError::Other)?;
    }
    let pinned = |wanted: bool, name: &str| wanted.then(|| places.pod.join(name));
    let host_name = if sandbox.host_network { &places.host_name } else { &sandbox.hostname };
    Ok(Launch {
        lower: image.layers.clone(),
        writable: places.container.to_owned(),
        read_only_root: spec.read_only_root,
        net: pinned(!sandbox.host_network, "net"),
        ipc: pinned(!sandbox.host_ipc, "ipc"),
        uts: pinned(!sandbox.host_network, "uts"),
        pid: places.pid,
        shm: if sandbox.host_ipc { PathBuf::from("/dev/shm") } else { places.pod.join("shm") },
        mounts: spec.mounts.clone(),
        devices: spec.devices.clone(),
        privileged: spec.privileged,
        unmasked_proc: spec.unmasked_proc,
        cgroup: places.cgroup,
        resources: spec.resources.clone(),
        process: Process {
            args: arguments(spec, image)?,
            env: environment(spec, image, host_name),
            cwd: working_dir(spec, image),
            capabilities,
            no_new_privileges: spec.no_new_privileges,
            seccomp: if spec.privileged { Seccomp::Unconfined } else { spec.seccomp.clone() },
            oom_score_adj: spec.resources.oom_score_adj,
            tty: spec.tty,
        },
        image_user: image.user.clone(),
        user: spec.user.clone(),
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        log_path: spec.log_path.clone(),
    })
}

fn arguments(spec: &ContainerSpec, image: &RunnableImage) -> Result<Vec<String>, RuntimeError> {
    let (program, rest) = match (spec.command.is_empty(), spec.args.is_empty()) {
        // A new command makes the image's arguments meaningless.
        (false, _) => (&spec.command, &spec.args),
        (true, false) => (&image.entrypoint, &spec.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let all: Vec<String> = program.iter().chain(rest).cloned().collect();
    if all.is_empty() {
        return Err(RuntimeError::Other("no command specified".to_owned()));
    }
    Ok(all)
}

fn environment(spec: &ContainerSpec, image: &RunnableImage, host_name: &str) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(n, _)| n == name) {
        Some((_, v)) => value.clone_into(v),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    if spec.tty {
        set("TERM", "xterm");
    }
    set("HOSTNAME", host_name);
    for variable in &image.env {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(name, value);
    }
    for (name, value) in &spec.env {
        set(name, value);
    }
    env
}

fn working_dir(spec: &ContainerSpec, image: &RunnableImage) -> String {
    let dir = spec.working_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or(&image.working_dir);
    // An image may name it relative; then it starts at the root.
    if dir.starts_with('/') { dir.to_owned() } else { format!("/{dir}") }
}

/// The signal that asks the image's program to end.
pub(super) fn stop_signal(image: &RunnableImage) -> i32 {
    const TERM: i32 = nix::libc::SIGTERM;
    let text = image.stop_signal.trim().to_ascii_uppercase();
    if let Ok(number) = text.parse::<i32>() {
        return if nix::sys::signal::Signal::try_from(number).is_ok() { number } else { TERM };
    }
    let full = if text.starts_with("SIG") { text } else { format!("SIG{text}") };
    full.parse::<nix::sys::signal::Signal>().map_or(TERM, |s| s as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Resources, User};

    pub(crate) fn spec() -> ContainerSpec {
        ContainerSpec {
            name: "app".to_owned(),
            attempt: 0,
            image: "image".to_owned(),
            command: vec![],
            args: vec![],
            env: vec![],
            working_dir: None,
            mounts: vec![],
            devices: vec![],
            user: User::default(),
            resources: Resources::default(),
            privileged: false,
            read_only_root: false,
            no_new_privileges: false,
            cap_add: vec![],
            cap_drop: vec![],
            seccomp: Seccomp::Unconfined,
            tty: false,
            stdin: false,
            stdin_once: false,
            log_path: "/log".into(),
            pid_of: None,
            unmasked_proc: false,
        }
    }

    fn list(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_replace_the_images() {
        // image entrypoint, image cmd, command, args, result
        let cases = [
            ("e", "c", "", "", Some("e c")),
            ("e", "c", "", "a", Some("e a")),
            ("e", "c", "x", "", Some("x")),
            ("e", "c", "x", "a b", Some("x a b")),
            ("", "c d", "", "", Some("c d")),
            ("", "c", "", "a", Some("a")),
            ("", "", "", "", None),
        ];
        for (entrypoint, cmd, command, args, expected) in cases {
            let image = RunnableImage { entrypoint: list(entrypoint), cmd: list(cmd), ..RunnableImage::default() };
            let spec = ContainerSpec { command: list(command), args: list(args), ..spec() };
            assert_eq!(arguments(&spec, &image).ok(), expected.map(list), "{entrypoint}|{cmd}|{command}|{args}");
        }
    }

    #[test]
    fn the_pods_environment_wins() {
        let image = RunnableImage { env: list("PATH=/bin A=1 B=2 EMPTY"), ..RunnableImage::default() };
        let env = [("B", "3"), ("C", "x=y")].map(|(n, v)| (n.to_owned(), v.to_owned())).to_vec();
        let got = environment(&ContainerSpec { env, ..spec() }, &image, "pod");
        let text: Vec<_> = got.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(text, ["PATH=/bin", "HOSTNAME=pod", "A=1", "B=3", "EMPTY=", "C=x=y"]);
        let bare = environment(&ContainerSpec { tty: true, ..spec() }, &RunnableImage::default(), "pod");
        assert!(bare.iter().any(|(n, v)| n == "PATH" && v == DEFAULT_PATH));
        assert!(bare.iter().any(|(n, v)| n == "TERM" && v == "xterm"));
    }

    #[test]
    fn working_directories_are_absolute() {
        let image = |dir: &str| RunnableImage { working_dir: dir.to_owned(), ..RunnableImage::default() };
        assert_eq!(working_dir(&spec(), &image("")), "/");
        assert_eq!(working_dir(&spec(), &image("srv")), "/srv");
        assert_eq!(working_dir(&ContainerSpec { working_dir: Some("/x".into()), ..spec() }, &image("/srv")), "/x");
    }

    #[test]
    fn stop_signals_have_many_spellings() {
        for (text, number) in [("", 15), ("SIGQUIT", 3), ("quit", 3), ("10", 10), ("SIGNONSENSE", 15), ("999", 15)] {
            assert_eq!(
                stop_signal(&RunnableImage { stop_signal: text.into(), ..RunnableImage::default() }),
                number,
                "{text}"
            );
        }
    }
}
