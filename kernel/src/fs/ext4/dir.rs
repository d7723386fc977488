//! Open directories: their entries in a row.

use mm::Errno;
use rsext4::{DirectoryCursor, InodeFlags};

use super::node::{Node, entry_kind};
use crate::fs::inode::DirSink;

/// Where a listing ends.
const END: u64 = i64::MAX as u64;
/// Names that are read at once.
const BATCH: usize = 64;

/// A position as Linux has it: an offset or, in a hashed directory, the hash.
fn position(cursor: DirectoryCursor) -> u64 {
    match cursor {
        DirectoryCursor::Start => 0,
        DirectoryCursor::Linear { offset } => offset,
        DirectoryCursor::HTree { major, minor, .. } => {
            u64::from(major >> 1) << 32 | u64::from(minor)
        }
        DirectoryCursor::End => END,
    }
}

impl Node {
    /// Entries of a directory, each with the position after it. Names with one hash come again when a listing stops
    /// between them.
    pub fn entries(&self, pos: &mut u64, sink: &mut dyn DirSink) -> Result<(), Errno> {
        if !self.is_dir() {
            return Err(Errno::ENOTDIR);
        }
        while *pos < END {
            let from = *pos;
            let entries = self.fs.with(|volume| {
                let hashed = volume
                    .inode(self.number)?
                    .flags
                    .contains(InodeFlags::DIRECTORY_INDEX);
                let cursor = match (from, hashed) {
                    (0, _) => DirectoryCursor::Start,
                    (offset, false) => DirectoryCursor::Linear { offset },
                    (hash, true) => DirectoryCursor::HTree {
                        major: ((hash >> 32) as u32) << 1,
                        minor: hash as u32,
                        collision: 0,
                    },
                };
                volume.read_directory(self.number, cursor, BATCH)
            })?;
            if entries.is_empty() {
                *pos = END;
            }
            for entry in entries {
                let next = position(entry.next_cursor);
                let kind = entry_kind(entry.file_type);
                if !sink.add(entry.inode.as_u64(), next, kind, &entry.name) {
                    return Ok(());
                }
                *pos = next;
            }
            if *pos == from {
                // As many names with one hash as fit into no buffer.
                return Err(Errno::EIO);
            }
        }
        Ok(())
    }
}
