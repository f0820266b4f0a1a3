//! What may go: images nobody can find or, when the disk is full, pulled ones nobody used for longest; then layers without an image.
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    error::{ImageError, file},
    layers::LayerRecord,
    model::Image,
    store::{Chosen, Images, Inner},
};

/// When unused images go.
#[derive(Debug, Clone)]
pub struct GcPolicy {
    /// Above this use of the file system unused images are removed, longest unused first ...
    pub high_percent: u8,
    /// ... until it is at or below this.
    pub low_percent: u8,
    /// Images that came, or were chosen for a container, more recently are left alone.
    pub min_age: Duration,
    /// Interrupted downloads are kept this long to be resumed.
    pub partial_age: Duration,
}

impl Default for GcPolicy {
    /// The kubelet's figures.
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            min_age: Duration::from_secs(120),
            partial_age: Duration::from_secs(24 * 3600),
        }
    }
}

impl GcPolicy {
    /// However full the disk is: only what nothing leads to.
    pub fn unneeded_only() -> Self {
        Self { high_percent: 100, ..Self::default() }
    }
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Names or ids.
    pub removed_images: Vec<String>,
    /// Count.
    pub removed_layers: usize,
    /// Bytes of file content in the removed layers.
    pub freed_bytes: u64,
    /// True if an import or pull was running, so layers were left for the next time.
    pub postponed: bool,
}

impl Images {
    /// Removes what is not needed. `in_use` holds the ids of images that containers use, as found just before this call;
    /// what [`Images::choose`] or a pull gave within the policy's minimum age counts as in use too. Images that an import
    /// named are never removed for want of space: no registry may have them. Blocks while deleting.
    pub fn gc(&self, in_use: &HashSet<String>, policy: &GcPolicy) -> Result<GcReport, ImageError> {
        let inner = &*self.inner;
        let used = Used { ids: in_use, began: Instant::now(), min_age: policy.min_age };
        let mut report = GcReport { removed_images: inner.remove_lost(&used)?, ..GcReport::default() };
        if !inner.remove_layers(policy, &mut report)? {
            return Ok(report);
        }
        let mut full = usage_percent(inner.dir())? > policy.high_percent;
        while full {
            let Some(image) = inner.remove_victim(&used)? else { break };
            report.removed_images.push(image.display_name().into());
            if !inner.remove_layers(policy, &mut report)? {
                break;
            }
            full = usage_percent(inner.dir())? > policy.low_percent;
        }
        Ok(report)
    }
}

/// What a collection must leave alone.
struct Used<'u> {
    /// Images of containers.
    ids: &'u HashSet<String>,
    /// When the collection began.
    began: Instant,
    min_age: Duration,
}

impl Used<'_> {
    fn has(&self, image: &Image, chosen: &Chosen) -> bool {
        self.ids.contains(&image.id) || chosen.get(&image.id).is_some_and(|at| self.is_recent(*at))
    }
    /// Measured at the beginning: a collection that takes long must not outlive what it relies on.
    fn is_recent(&self, at: Instant) -> bool {
        self.began.saturating_duration_since(at) <= self.min_age
    }
}

impl Inner {
    /// Forgets the images that nothing leads to any more, and returns their ids.
    fn remove_lost(&self, used: &Used<'_>) -> Result<Vec<String>, ImageError> {
        // Held over decision and removal: nobody chooses an image between the two.
        let mut chosen = self.chosen.lock();
        chosen.retain(|_, at| used.is_recent(*at));
        let now = Timestamp::now();
        let mut removed = vec![];
        self.update(|list| {
            list.retain(|i| {
                let lost = i.names.is_empty() && i.repo_digests.is_empty() && !used.has(i, &chosen);
                if lost {
                    removed.push(i.id.clone());
                }
                !lost
            });
            // Minutes are exact enough to tell which was used last, and spare the disk a write at each collection.
            let stale = |i: &Image| now.duration_since(i.last_used_at) > SignedDuration::from_mins(5);
            for image in list.iter_mut().filter(|i| used.has(i, &chosen) && stale(i)) {
                image.last_used_at = now;
            }
        })?;
        Ok(removed)
    }

    /// Forgets the image that was unused for longest and may go, if there is one.
    fn remove_victim(&self, used: &Used<'_>) -> Result<Option<Image>, ImageError> {
        let min_age = SignedDuration::try_from(used.min_age).unwrap_or_default();
        let now = Timestamp::now();
        let may_go = |i: &Image, chosen: &Chosen| {
            i.imported.is_empty() && now.duration_since(i.added_at) >= min_age && !used.has(i, chosen)
        };
        let chosen = self.chosen.lock();
        self.update(|list| {
            let fit = list.iter().enumerate().filter(|(_, i)| may_go(i, &chosen));
            let (index, _) = fit.min_by_key(|(_, i)| i.last_used_at)?;
            Some(list.remove(index))
        })
    }

    /// Removes layers that no record names, half-made ones and old downloads. False, and told in the report, if an import
    /// or pull is running.
    fn remove_layers(&self, policy: &GcPolicy, report: &mut GcReport) -> Result<bool, ImageError> {
        let Some(alone) = self.work_alone()? else {
            report.postponed = true;
            return Ok(false);
        };
        self.remove_leftovers()?;
        remove_old_files(self.layers.partial(), policy.partial_age)?;
        let doomed = self.put_aside(report)?;
        // Nobody finds them any more: pulls and imports need not wait until the disk has let go of them.
        drop(alone);
        for path in doomed {
            match fs::remove_dir_all(&path) {
                // Another process took it for a leftover.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(file("remove layer", path))?,
            }
        }
        Ok(true)
    }

    /// Takes layers that no record names out of sight, so that a crash leaves a leftover and never half a layer. The
    /// caller works alone.
    fn put_aside(&self, report: &mut GcReport) -> Result<Vec<PathBuf>, ImageError> {
        let list = self.list()?;
        let needed: HashSet<String> = list.iter().flat_map(|i| &i.layers).map(|l| self.layers.home_name(l)).collect();
        let all = self.layers.all();
        let mut doomed = vec![];
        for entry in fs::read_dir(all).map_err(file("list", all))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if needed.contains(&name) {
                continue;
            }
            let record = fs::read(entry.path().join("layer.json"));
            let record = record.ok().and_then(|b| serde_json::from_slice::<LayerRecord>(&b).ok());
            let aside = self.layers.tmp().join(format!("gone-{name}"));
            fs::rename(entry.path(), &aside).map_err(file("remove layer", entry.path()))?;
            report.freed_bytes += record.map_or(0, |r| r.size);
            report.removed_layers += 1;
            doomed.push(aside);
        }
        Ok(doomed)
    }
}

fn remove_old_files(dir: &Path, age: Duration) -> Result<(), ImageError> {
    let now = SystemTime::now();
    for entry in fs::read_dir(dir).map_err(file("list", dir))?.flatten() {
        let modified = entry.metadata().and_then(|m| m.modified());
        if modified.is_ok_and(|m| now.duration_since(m).is_ok_and(|a| a >= age)) {
            fs::remove_file(entry.path()).map_err(file("remove interrupted download", entry.path()))?;
        }
    }
    Ok(())
}

/// Used share of the file system, as `df` shows it.
fn usage_percent(dir: &Path) -> Result<u8, ImageError> {
    let stat = rustix::fs::statvfs(dir).map_err(|e| file("look at the file system of", dir)(e.into()))?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    let total = used + stat.f_bavail;
    if total == 0 {
        return Ok(0);
    }
    Ok(u8::try_from((used * 100).div_ceil(total)).unwrap_or(100))
}
