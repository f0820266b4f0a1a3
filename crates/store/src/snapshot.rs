//! A file with every live object at one revision, which lets older logs go.
use std::{io, sync::Arc};

use crate::{
    Record, Revision,
    disk::Disk,
    log::{Entry, Format, FrameKind, add_record, start_frame},
    recover::{snapshot_name, superseded},
};

const TEMPORARY: &str = "snapshot.tmp";
/// Objects are gathered into frames of about this many bytes.
const FRAME_BYTES: usize = 1 << 20;

/// Writes the snapshot, makes it durable under its name, and only then removes the files that it replaces.
/// Returns its size in bytes.
pub(crate) fn write<F>(disk: &dyn Disk, revision: Revision, objects: &[Arc<Record<F>>]) -> io::Result<u64> {
    let format = Format::new();
    let mut file = disk.create(TEMPORARY)?;
    file.append(&format.header())?;
    let mut size = 0;
    let mut frame = Vec::new();
    start_frame(&mut frame);
    for (i, record) in objects.iter().enumerate() {
        let entry = Entry { revision: record.revision, deleted: false, key: &record.key, value: &record.value };
        add_record(&mut frame, entry);
        if frame.len() >= FRAME_BYTES || i + 1 == objects.len() {
            format.finish_frame(&mut frame, FrameKind::Objects);
            file.append(&frame)?;
            size += frame.len() as u64;
            start_frame(&mut frame);
        }
    }
    add_record(&mut frame, Entry { revision, deleted: false, key: "", value: &[] });
    format.finish_frame(&mut frame, FrameKind::End);
    file.append(&frame)?;
    file.sync()?;
    disk.rename(TEMPORARY, &snapshot_name(revision))?;
    disk.sync_names()?;
    for name in superseded(&disk.names()?, revision) {
        disk.remove(&name)?;
    }
    Ok(size)
}
