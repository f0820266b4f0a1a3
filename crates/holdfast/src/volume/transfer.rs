//! `holdfast volume export` and `import`: an archive goes through a pipe between this process and the driver.
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, IsTerminal, Read, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use csi::DeleteVolumeRequest;
use driver::admin::{ExportRequest, ImportRequest, Kept};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::{
    Named,
    drivers::{Local, Place},
    object,
    progress::Shown,
};
use crate::{
    cli::volume::VolumeObject,
    client::Error,
    errors::{Doing, misused, said, say, story},
};

/// A name that volume and object can have.
pub fn name(text: &str) -> Result<String, String> {
    match pool::Id::parse(text) {
        Some(id) if !text.contains("..") => Ok(id.to_string()),
        _ => Err("a name has lower-case letters, digits, `-` and `.`, at most 63".into()),
    }
}

pub async fn export(place: &Place, text: &str, file: Option<&Path>) -> Result<(), Error> {
    if file.is_none() && io::stdout().is_terminal() {
        return misused("an archive is nothing for a terminal; redirect standard output, or give -f FILE");
    }
    let drivers = place.drivers().await?;
    let (driver, kept) = find(place, &drivers, text).await?;
    let mut out = Output::open(file)?;
    let shown = Shown::new(format!("exporting {text}"), kept.taken_bytes);
    let (mut from, to) = io::pipe().doing(|| "make a pipe".into())?;
    let pump = thread::spawn(move || shown.copy(&mut from, &mut out).map(|()| out));
    let request = ExportRequest { handle: kept.handle.clone(), process: std::process::id(), file: to.as_raw_fd() };
    let exported = driver.archives.export(request).await;
    // What is written ends here too, now that the driver has written all of it, or will not.
    drop(to);
    let written = joined(pump).doing(|| match file {
        Some(file) => format!("write {}", file.display()),
        None => "write to standard output".into(),
    });
    match (written, exported) {
        // It ended because nobody read it any more.
        (Err(error), _) => Err(error.into()),
        (Ok(_), Err(status)) => Err(driver.refused(&status)),
        (Ok(out), Ok(_)) => out.finish(),
    }
}

fn joined<T>(thread: JoinHandle<io::Result<T>>) -> io::Result<T> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the copying thread panicked; this is a bug")))
}

/// The volume that is meant, with its driver.
async fn find<'a>(place: &Place, drivers: &'a [Local], text: &str) -> Result<(&'a Local, Kept), Error> {
    let claim = match Named::parse(text.strip_prefix("pvc/").unwrap_or(text), &place.session) {
        Ok(claim) if !text.starts_with("pv/") => {
            let found: Option<PersistentVolumeClaim> = place.find(&object::claim_path(&claim)).await?;
            found.map(|object| (claim, object))
        }
        _ => None,
    };
    let volume = match claim {
        None => text.strip_prefix("pv/").unwrap_or(text).to_owned(),
        Some((claim, object)) => match object.spec.and_then(|s| s.volume_name).filter(|v| !v.is_empty()) {
            Some(volume) => volume,
            None => {
                return said(format!("claim {claim} has no volume yet; `holdfast why pvc/{}` says why", claim.name));
            }
        },
    };
    let found: Option<PersistentVolume> = match volume.contains('/') {
        true => None,
        false => place.find(&object::volume_path(&volume)).await?,
    };
    // What has no object goes by the name that the driver has for it.
    let source = found.as_ref().map(|found| (object::source(found), &volume));
    for driver in drivers {
        let handle = match &source {
            Some((Some((of, handle)), _)) if *of == driver.name => handle,
            Some(_) => continue,
            None => &volume,
        };
        let mut all = driver.volumes().await?.into_iter().filter(|kept| kept.deleted == 0);
        if let Some(kept) = all.find(|kept| object::is_same(&driver.name, kept, handle)) {
            return Ok((driver, kept));
        }
    }
    match source {
        None => said(format!(
            "there is no claim and no PersistentVolume {text:?}; `holdfast volume list` shows what there is"
        )),
        Some((Some((driver, handle)), name)) => said(format!(
            "PersistentVolume {name} is volume {handle:?} of driver {driver}, which is not on this machine"
        )),
        Some((None, name)) => said(format!(
            "PersistentVolume {name} is of no CSI driver; only volumes of holdfast's drivers are exported"
        )),
    }
}

/// Where an archive goes: nothing stands under the name of a file before it is whole.
struct Output {
    to: Box<dyn Write + Send>,
    part: Option<(Part, PathBuf, File)>,
}

/// A file that goes unless it is kept.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After it got its name there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

impl Output {
    fn open(file: Option<&Path>) -> Result<Self, Error> {
        let Some(file) = file else { return Ok(Self { to: Box::new(io::stdout()), part: None }) };
        let what = || format!("write {}", file.display());
        if fs::metadata(file).is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            return Ok(Self { to: Box::new(File::options().write(true).open(file).doing(what)?), part: None });
        }
        let mut name = OsString::from(file);
        name.push(".part");
        let part = Part(PathBuf::from(name));
        let to = File::create(&part.0).doing(what)?;
        let second = to.try_clone().doing(what)?;
        Ok(Self { to: Box::new(to), part: Some((part, file.to_owned(), second)) })
    }

    fn finish(self) -> Result<(), Error> {
        let Some((part, file, written)) = self.part else { return Ok(()) };
        let named = written.sync_all().and_then(|()| fs::rename(&part.0, &file));
        Ok(named.doing(|| format!("write {}", file.display()))?)
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

pub async fn import(
    place: &Place,
    file: &Path,
    name: &str,
    claim: Option<&Named>,
    asked: &VolumeObject,
) -> Result<(), Error> {
    let driver = place.local().await?;
    if driver.volumes().await?.iter().any(|kept| kept.deleted == 0 && kept.handle == name) {
        return said(format!(
            "there is a volume {name:?} already; choose another --name; if it has no PersistentVolume, `holdfast volume \
             undelete {name}` makes one"
        ));
    }
    object::is_free(place, "PersistentVolume", &object::volume_path(name)).await?;
    if let Some(claim) = claim {
        object::is_free(place, "claim", &object::claim_path(claim)).await?;
        if place.find::<serde_json::Value>(&format!("/api/v1/namespaces/{}", claim.namespace)).await?.is_none() {
            return said(format!("there is no namespace {:?} for claim {claim}; make it first", claim.namespace));
        }
    }
    let kept = send(&driver, file, name).await?;
    let made = match object::make(place, &driver, &kept, name, claim, asked).await {
        Ok(made) => made,
        Err(error) => {
            // Without its object nobody would find it.
            let request = DeleteVolumeRequest { volume_id: kept.handle, ..Default::default() };
            driver.controller.delete_volume(request).await.map_err(|s| driver.refused(&s))?;
            return Err(error);
        }
    };
    if let Some(claim) = claim {
        object::make_claim(place, &made, claim).await.map_err(|error| {
            let why = story(error.as_ref());
            format!("PersistentVolume {name} is there and kept for claim {claim}, which was not made: {why}; apply the claim")
        })?;
    }
    say(name)
}

/// Sends an archive to the driver.
async fn send(driver: &Local, file: &Path, name: &str) -> Result<Kept, Error> {
    let what = || format!("read {}", file.display());
    let (mut from, total): (Box<dyn Read + Send>, u64) = if file == Path::new("-") {
        (Box::new(io::stdin()), 0)
    } else {
        let from = File::open(file).doing(what)?;
        let bytes = from.metadata().doing(what)?.len();
        (Box::new(from), bytes)
    };
    let shown = Shown::new(format!("importing {name}"), total);
    let (from_us, mut to_driver) = io::pipe().doing(|| "make a pipe".into())?;
    let pump = thread::spawn(move || shown.copy(&mut from, &mut to_driver));
    let request = ImportRequest { name: name.to_owned(), process: std::process::id(), file: from_us.as_raw_fd() };
    let imported = driver.archives.import(request).await;
    // Nobody reads what may come after the archive.
    drop(from_us);
    match imported {
        Ok(kept) => Ok(kept),
        // The driver had no end of it because there was none.
        Err(status) => match pump.is_finished().then(|| joined(pump)) {
            Some(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).doing(what)?,
            _ => Err(driver.refused(&status)),
        },
    }
}
