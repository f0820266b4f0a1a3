//! `holdfast volume`: its arguments.
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Server;

const HELP: &str = "\
A claim is written NAME or NAMESPACE/NAME. Objects are looked for with the kubeconfig: list, snapshot and restore work on any
Kubernetes. Usage, deleted volumes, export and import are a matter of the driver on the machine of the volumes, and need root
there.

Examples:
  holdfast volume list --deleted                            every volume, those in the trash too
  holdfast volume snapshot shop/db                          prints the name of the VolumeSnapshot when it is ready
  holdfast volume restore shop/nightly db-again             a claim that begins as the snapshot
  holdfast volume undelete shop/db                          the volume is back, kept for the claim that it had
  holdfast volume export shop/db -f db.tar                  an archive that GNU tar and bsdtar read too
  holdfast volume export shop/db | ssh other holdfast volume import - --name db --claim shop/db";

#[derive(Args)]
#[command(after_help = HELP)]
pub struct VolumeArgs {
    #[command(subcommand)]
    pub command: VolumeCommand,
    #[command(flatten)]
    pub place: VolumePlace,
}

/// Where objects and drivers are.
#[derive(Args)]
pub struct VolumePlace {
    /// Where the daemon has its state; its kubeconfig is used too [default: the directory of the kubeconfig, else
    /// /var/lib/holdfast]
    #[arg(long, env = "HOLDFAST_DATA_DIR", value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// The socket of the driver, where `holdfast csi` serves it: a path, or unix:// and a path
    #[arg(long, value_name = "SOCKET", global = true)]
    pub endpoint: Option<String>,
    #[command(flatten)]
    pub server: Server,
}

#[derive(Subcommand)]
pub enum VolumeCommand {
    /// List volumes of the driver, and claims that wait for one
    ///
    /// All namespaces, unless -n names one. USED is what a volume takes of the machine's disk; `usage` has what is in it.
    List {
        /// Those too that were deleted and can come back
        #[arg(long)]
        deleted: bool,
        /// table or json
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Show how full each claim is, and each namespace
    ///
    /// What the filesystem says, as `df` in the pod does; a volume that no pod has mounted has no figures.
    Usage {
        /// table or json
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Take a snapshot of a claim, and print its name when it is ready
    Snapshot {
        /// The claim
        #[arg(value_name = "[NS/]CLAIM")]
        claim: String,
        /// Name of the VolumeSnapshot [default: the claim's, and the time]
        #[arg(long)]
        name: Option<String>,
        /// VolumeSnapshotClass [default: that of the driver; made if there is none]
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        /// How long to wait
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Make a claim whose volume begins as a snapshot
    ///
    /// Waits until it is bound; but where the class binds with the first pod, it says so and returns.
    Restore {
        /// The snapshot
        #[arg(value_name = "[NS/]SNAPSHOT")]
        snapshot: String,
        /// Name of the claim, in the snapshot's namespace
        #[arg(value_name = "NEW-CLAIM")]
        claim: String,
        /// StorageClass [default: that of the snapshot's claim, else the default class]
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        /// Size of the claim [default: the snapshot's]
        #[arg(long)]
        size: Option<String>,
        /// How long to wait
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Write a volume as a tar archive, in use or not
    ///
    /// One that is in use is written as it is at one instant. Only what holds data is written.
    Export {
        /// The claim, or the PersistentVolume
        #[arg(value_name = "[NS/]CLAIM|PV")]
        volume: String,
        /// Where to [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Make a volume and its PersistentVolume from an archive that `export` wrote
    Import {
        /// The archive; `-` is standard input
        file: PathBuf,
        /// Name of the volume and of the PersistentVolume
        #[arg(long, value_parser = crate::volume::name)]
        name: String,
        /// Make this claim for it
        #[arg(long, value_name = "[NS/]CLAIM")]
        claim: Option<String>,
        #[command(flatten)]
        object: VolumeObject,
    },
    /// Bring a deleted volume back as a PersistentVolume, policy Retain
    ///
    /// Nobody but the claim that it had, or that --claim names, can bind it. Apply the claim again to use it.
    Undelete {
        /// The claim that it had, or the volume's name, as `list --deleted` shows them
        #[arg(value_name = "[NS/]CLAIM|PV")]
        volume: String,
        /// Keep it for this claim [default: the one that it had, if that is known]
        #[arg(long, value_name = "[NS/]CLAIM", conflicts_with = "any_claim")]
        claim: Option<String>,
        /// Let any claim that it fits have it
        #[arg(long)]
        any_claim: bool,
        #[command(flatten)]
        object: VolumeObject,
    },
}

/// What a PersistentVolume says that its volume does not know.
#[derive(Args)]
pub struct VolumeObject {
    /// StorageClass of the PersistentVolume [default: a class of the driver]
    #[arg(long, value_name = "CLASS")]
    pub class: Option<String>,
    /// An access mode; may be repeated [default: as it was made for, else ReadWriteOnce]
    #[arg(long = "access-mode", value_name = "MODE",
        value_parser = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"])]
    pub modes: Vec<String>,
}
