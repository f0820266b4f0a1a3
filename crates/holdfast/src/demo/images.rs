//! The labs' images: pulled where a registry answers, else small stand-ins of the same names made from Debian packages.
use std::{
    io::Write,
    path::{Path, PathBuf},
};

use tokio::process::Command;

use crate::{
    client::Error,
    errors::{Doing, said},
};

/// What the labs' manifests name.
const IMAGES: [&str; 3] = ["nginx:alpine", "nginx", "luksa/fortune"];

/// The recipe of the stand-ins, the same file as in the source tree.
const BUILD: &str = include_str!("../../../../examples/images/build.sh");

/// Makes the labs' images available in the store of `data_dir` (the daemon runs).
pub async fn provide(data_dir: &Path, given: Option<&Path>, scratch: &Path) -> Result<String, Error> {
    if let Some(dir) = given {
        let count = import_all(dir, data_dir).await?;
        return Ok(format!("{count} images imported from {}", dir.display()));
    }
    if pull_all(data_dir).await {
        return Ok("pulled from their registry".into());
    }
    // Takes a while, so it is said before.
    print!("no registry reachable: making small stand-ins of the same names from Debian packages ... ");
    let _ = std::io::stdout().flush();
    let out = scratch.join("images");
    std::fs::create_dir_all(&out).doing(|| format!("make {}", out.display()))?;
    let script = scratch.join("build.sh");
    std::fs::write(&script, BUILD).doing(|| format!("write {}", script.display()))?;
    let built = Command::new("bash").arg(&script).arg(&out).output().await.doing(|| "run bash".into())?;
    if !built.status.success() {
        return said(format!(
            "making the stand-in images failed; bring OCI archives of the labs' images with --images DIR: {}",
            String::from_utf8_lossy(&built.stderr).trim()
        ));
    }
    let count = import_all(&out, data_dir).await?;
    Ok(format!("{count} stand-ins made and imported"))
}

async fn pull_all(data_dir: &Path) -> bool {
    for name in IMAGES {
        let pulled = ours(&["image", "pull", name, "--data-dir"], data_dir).await;
        if !pulled.is_ok_and(|output| output.status.success()) {
            return false;
        }
    }
    true
}

async fn import_all(dir: &Path, data_dir: &Path) -> Result<usize, Error> {
    let entries = std::fs::read_dir(dir).doing(|| format!("read {}", dir.display()))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "tar")).collect();
    files.sort();
    if files.is_empty() {
        return said(format!("{} holds no *.tar; put one OCI archive per image there", dir.display()));
    }
    for file in &files {
        let name = file.to_string_lossy();
        let output = ours(&["image", "import", &name, "--data-dir"], data_dir).await?;
        if !output.status.success() {
            return said(format!("import of {name} failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    Ok(files.len())
}

async fn ours(args: &[&str], data_dir: &Path) -> Result<std::process::Output, Error> {
    let program = std::env::current_exe().doing(|| "find this program".into())?;
    Ok(Command::new(program).args(args).arg(data_dir).output().await.doing(|| "start this program again".into())?)
}
