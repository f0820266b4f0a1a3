//! What may go: images nobody can find or, when the disk is full, nobody used for longest; then layers without an image.
use std::{
    collections::HashSet,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    error::{ImageError, file},
    model::Image,
    store::{Images, Inner},
};

/// When unused images go.
#[derive(Debug, Clone)]
pub struct GcPolicy {
    /// Above this use of the file system unused images are removed, longest unused first ...
    pub high_percent: u8,
    /// ... until it is at or below this.
    pub low_percent: u8,
    /// Images that came more recently are left alone.
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
    /// Removes what is not needed. `in_use` holds the ids of images that containers use. Blocks while deleting.
    pub fn gc(&self, in_use: &HashSet<String>, policy: &GcPolicy) -> Result<GcReport, ImageError> {
        let usage = usage_percent(self.inner.dir())?;
        self.collect(in_use, policy, usage)
    }

    /// [`Images::gc`] with the disk's use given.
    pub(crate) fn collect(
        &self,
        in_use: &HashSet<String>,
        policy: &GcPolicy,
        usage: u8,
    ) -> Result<GcReport, ImageError> {
        let inner = &*self.inner;
        let mut report = GcReport::default();
        let now = Timestamp::now();
        inner.update(|list| {
            for image in list.iter_mut().filter(|i| in_use.contains(&i.id)) {
                image.last_used_at = now;
            }
            list.retain(|i| {
                let lost = i.names.is_empty() && i.repo_digests.is_empty() && !in_use.contains(&i.id);
                if lost {
                    report.removed_images.push(i.id.clone());
                }
                !lost
            });
        })?;
        let Some(_alone) = inner.work_alone()? else {
            return Ok(GcReport { postponed: true, ..report });
        };
        inner.remove_leftovers()?;
        remove_old_files(inner.layers.partial(), policy.partial_age)?;
        remove_layers(inner, &mut report)?;
        let mut usage = usage;
        while usage > policy.high_percent || (usage > policy.low_percent && !report.removed_images.is_empty()) {
            let Some(image) = next_victim(inner, in_use, policy, now)? else { break };
            inner.update(|list| list.retain(|i| i.id != image.id))?;
            report.removed_images.push(image.display_name().into());
            remove_layers(inner, &mut report)?;
            usage = usage_percent(inner.dir())?;
        }
        Ok(report)
    }
}

fn next_victim(
    inner: &Inner,
    in_use: &HashSet<String>,
    policy: &GcPolicy,
    now: Timestamp,
) -> Result<Option<Image>, ImageError> {
    let young =
        |i: &Image| now.duration_since(i.added_at) < SignedDuration::try_from(policy.min_age).unwrap_or_default();
    let list = inner.list()?;
    Ok(list.iter().filter(|i| !in_use.contains(&i.id) && !young(i)).min_by_key(|i| i.last_used_at).cloned())
}

/// Removes layers that no record names. The caller works alone.
fn remove_layers(inner: &Inner, report: &mut GcReport) -> Result<(), ImageError> {
    let list = inner.list()?;
    let needed: HashSet<String> = list.iter().flat_map(|i| &i.layers).map(|l| inner.layers.home_name(l)).collect();
    let all = inner.layers.all();
    for entry in fs::read_dir(all).map_err(file("list", all))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if needed.contains(&name) {
            continue;
        }
        report.freed_bytes += fs::read(entry.path().join("layer.json"))
            .ok()
            .and_then(|b| serde_json::from_slice::<crate::layers::LayerRecord>(&b).ok())
            .map_or(0, |r| r.size);
        // First out of sight under its own name, so that a crash leaves a leftover and never half a layer.
        let doomed = inner.layers.tmp().join(format!("gone-{name}"));
        fs::rename(entry.path(), &doomed).map_err(file("remove layer", entry.path()))?;
        fs::remove_dir_all(&doomed).map_err(file("remove layer", doomed))?;
        report.removed_layers += 1;
    }
    Ok(())
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
