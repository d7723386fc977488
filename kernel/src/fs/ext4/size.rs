//! How large a file system is, before `rsext4` sees it: that does not ask for memory, and has lists of all groups of blocks and, while
//! it mounts, of all blocks of the journal.
//!
//! What cannot be made sense of counts as nothing here: `rsext4` will say what is wrong with it.

use alloc::vec::Vec;
use mm::Errno;

use super::MAGIC;
use crate::memory::heap;

/// As many bytes of one list there may be at most for a group: 192, and part of another for the journal.
const MOST_GROUPS: u64 = heap::ROW as u64 / 256;
/// The same for a block of the journal.
const MOST_BLOCKS: u64 = heap::ROW as u64 / 64;
/// Blocks that a node of the journal's tree counts for: so there are not too many of those to look at.
const NODE: u64 = 256;

const HAS_JOURNAL: u64 = 0x4;
const WIDE: u64 = 0x80;
const EXTENTS: u64 = 0x8_0000;
const NODE_MAGIC: u64 = 0xf30a;
const ENTRY: usize = 12;
/// A longer extent has not been written.
const LONGEST: u64 = 0x8000;

/// Reads bytes of the disk.
type Read<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> Result<(), Errno>;

/// Of what a file system has lists, or a few more.
#[derive(Clone, Copy, Default)]
pub struct Size {
    pub groups: u64,
    pub journal: u64,
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes[at..at + len].iter().rev();
    bytes.fold(0, |n, byte| n << 8 | u64::from(*byte))
}

impl Size {
    /// What the first sector of a superblock says. `ENOMEM`: more than can be; `EIO`.
    pub fn of(sector: &[u8], read: Read<'_>) -> Result<Size, Errno> {
        let word = |at| number(sector, at, 4);
        let per_group = word(0x20);
        if number(sector, 0x38, 2) != MAGIC || per_group == 0 {
            return Ok(Size::default());
        }
        let blocks = word(0x150) << 32 | word(0x4);
        let size = Size {
            groups: blocks.div_ceil(per_group),
            journal: journal(sector, read)?,
        };
        match size.groups > MOST_GROUPS || size.journal > MOST_BLOCKS {
            true => Err(Errno::ENOMEM),
            false => Ok(size),
        }
    }

    /// Nothing of it is larger.
    pub fn fits(&self, other: &Size) -> bool {
        self.groups <= other.groups && self.journal <= other.journal
    }

    /// Frames that the journal's lists take while it is mounted.
    pub fn lists(&self) -> u64 {
        self.journal.div_ceil(16)
    }
}

/// Blocks of the journal.
fn journal(sector: &[u8], read: Read<'_>) -> Result<u64, Errno> {
    let word = |at| number(sector, at, 4);
    let (inode, per_group, log) = (word(0xe0), word(0x28), word(0x18));
    if word(0x5c) & HAS_JOURNAL == 0 || inode == 0 || per_group == 0 || log > 2 {
        return Ok(0);
    }
    let block = 1024u64 << log;
    let (group, index) = ((inode - 1) / per_group, (inode - 1) % per_group);
    let mut group_of = [0; 64];
    let wide = word(0x60) & WIDE != 0;
    let each = if wide { number(sector, 0xfe, 2) } else { 32 };
    let len = each.clamp(32, 64) as usize;
    read(
        (word(0x14) + 1) * block + group * each,
        &mut group_of[..len],
    )?;
    let table = number(&group_of, 0x28, 4) << 32 | number(&group_of, 0x8, 4);
    let each = number(sector, 0x58, 2).max(128);
    let mut inode = [0; 128];
    read(
        table.saturating_mul(block).saturating_add(index * each),
        &mut inode,
    )?;
    if number(&inode, 0x20, 4) & EXTENTS == 0 {
        let bytes = number(&inode, 0x6c, 4) << 32 | number(&inode, 0x4, 4);
        return Ok(bytes.div_ceil(block));
    }
    extents(&inode[0x28..0x64], block, read)
}

/// Blocks that a tree of extents maps.
fn extents(root: &[u8], block: u64, read: Read<'_>) -> Result<u64, Errno> {
    let mut node = Vec::new();
    node.try_reserve_exact(block as usize)
        .map_err(|_| Errno::ENOMEM)?;
    node.extend_from_slice(root);
    // Nodes below, each with its level.
    let mut below: Vec<(u64, u64)> = Vec::new();
    let (mut found, mut level) = (0, number(root, 6, 2));
    while found <= MOST_BLOCKS {
        if number(&node, 0, 2) == NODE_MAGIC && number(&node, 6, 2) == level {
            let count = number(&node, 2, 2) as usize;
            for entry in node[ENTRY..].chunks_exact(ENTRY).take(count) {
                let len = number(entry, 4, 2);
                if level > 0 {
                    below.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                    let at = number(entry, 8, 2) << 32 | number(entry, 4, 4);
                    below.push((at, level - 1));
                } else if len <= LONGEST {
                    found += len;
                }
            }
        }
        let Some((at, next)) = below.pop() else {
            break;
        };
        level = next;
        found += NODE;
        node.resize(block as usize, 0);
        read(at.saturating_mul(block), &mut node)?;
    }
    Ok(found)
}
