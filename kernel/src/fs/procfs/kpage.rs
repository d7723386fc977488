//! /proc/kpagecount and /proc/kpageflags: one word for each frame of the machine, from its descriptor.
//!
//! No lock is taken: each word is what the descriptor said at some moment during the read.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use mm::addr::Order;
use mm::phys::folio::MAPPING_ANON;
use mm::phys::{FrameDesc, flag};
use mm::{Errno, Hw, Pfn};

use super::super::file::File;
use super::super::inode::{FileOps, Inode};
use super::super::iobuf::IoBuf;
use super::super::pseudo::lasting_ino;
use super::opened::{AT_ONCE, Opened, put_words};
use crate::SysResult;
use crate::arch::X86;
use crate::memory;

/// Bits of kpageflags (Linux's `KPF_*`).
mod kpf {
    pub const LOCKED: u32 = 0;
    pub const REFERENCED: u32 = 2;
    pub const UPTODATE: u32 = 3;
    pub const DIRTY: u32 = 4;
    pub const LRU: u32 = 5;
    pub const ACTIVE: u32 = 6;
    pub const SLAB: u32 = 7;
    pub const WRITEBACK: u32 = 8;
    pub const BUDDY: u32 = 10;
    pub const MMAP: u32 = 11;
    pub const ANON: u32 = 12;
    pub const SWAPBACKED: u32 = 14;
    pub const COMPOUND_HEAD: u32 = 15;
    pub const COMPOUND_TAIL: u32 = 16;
    pub const UNEVICTABLE: u32 = 18;
    pub const NOPAGE: u32 = 20;
    pub const ZERO_PAGE: u32 = 24;
    pub const PGTABLE: u32 = 26;
    pub const RESERVED: u32 = 32;
    pub const MLOCKED: u32 = 33;
}

/// What is copied from a folio's flags.
const COPIED: [(u64, u32); 13] = [
    (flag::LOCKED, kpf::LOCKED),
    (flag::REFERENCED, kpf::REFERENCED),
    (flag::UPTODATE, kpf::UPTODATE),
    (flag::DIRTY, kpf::DIRTY),
    (flag::LRU, kpf::LRU),
    (flag::ACTIVE, kpf::ACTIVE),
    (flag::SLAB, kpf::SLAB),
    (flag::WRITEBACK, kpf::WRITEBACK),
    (flag::SWAPBACKED, kpf::SWAPBACKED),
    (flag::TABLE, kpf::PGTABLE),
    (flag::UNEVICTABLE, kpf::UNEVICTABLE),
    // Only mlock makes a folio unevictable.
    (flag::UNEVICTABLE, kpf::MLOCKED),
    (flag::HEAD, kpf::COMPOUND_HEAD),
];

/// A frame that has a descriptor, and the head of its folio.
#[derive(Clone, Copy)]
pub struct Page {
    pfn: Pfn,
    own: &'static FrameDesc,
    head: &'static FrameDesc,
}

impl Page {
    /// The frame; memory that the machine has.
    pub fn of(pfn: Pfn) -> Page {
        let own = X86.desc(pfn);
        let tail = own.has(flag::TAIL);
        let head = if tail {
            X86.desc(Pfn(own.head.load(Relaxed).into()))
        } else {
            own
        };
        Page { pfn, own, head }
    }

    /// Whether its folio has all of these flags.
    pub fn has(self, flags: u64) -> bool {
        self.head.has(flags)
    }

    /// Entries that map it.
    pub fn mappings(self) -> u64 {
        let whole = if self.own.has(flag::HEAD) || self.own.has(flag::TAIL) {
            self.head.entire_maps.load(Relaxed)
        } else {
            0
        };
        (self.own.map_count() + whole).max(0) as u64
    }

    /// Whether it is anonymous memory.
    pub fn is_anon(self) -> bool {
        self.head.mapping.load(Relaxed) & MAPPING_ANON != 0
    }

    /// Whether it stands in a free block: the block's first frame says so.
    fn is_free_block(self) -> bool {
        (0..=Order::MAX.get()).any(|order| {
            let first = X86.desc(Pfn(self.pfn.0 & !((1 << order) - 1)));
            first.has(flag::BUDDY) && first.order() >= order
        })
    }

    fn flags(self) -> u64 {
        let has = self.head.flags.load(Relaxed);
        let mut word = 0u64;
        if has & flag::MANAGED == 0 {
            return 1 << kpf::RESERVED;
        }
        for (ours, theirs) in COPIED {
            if has & ours == ours {
                word |= 1 << theirs;
            }
        }
        let mut set = |on: bool, bit: u32| word |= u64::from(on) << bit;
        // The word of a slab or table means other things.
        let user = has & (flag::SLAB | flag::TABLE) == 0;
        set(user && self.mappings() != 0, kpf::MMAP);
        set(user && self.is_anon(), kpf::ANON);
        if self.own.has(flag::TAIL) {
            word = word & !(1 << kpf::COMPOUND_HEAD) | 1 << kpf::COMPOUND_TAIL;
        }
        if self.pfn == X86.phys().zero_page() {
            word |= 1 << kpf::ZERO_PAGE;
        }
        if self.own.ref_count() == 0 && self.is_free_block() {
            word |= 1 << kpf::BUDDY;
        }
        word
    }
}

/// Memory of a mapped kind, in pages.
#[derive(Default)]
pub struct Census {
    /// Anonymous, mapped somewhere.
    pub anon: u64,
    /// Of files, mapped somewhere.
    pub mapped: u64,
    /// Page tables.
    pub tables: u64,
}

/// Looks at every frame: for those who ask seldom, so that those who map and unmap need not count.
pub fn census() -> Census {
    let mut c = Census::default();
    for pfn in 0..X86.frames_end() {
        if pfn % 4096 == 0 {
            crate::task::cond_resched();
        }
        let pfn = Pfn(pfn);
        if !memory::has_descriptor(pfn) {
            continue;
        }
        let d = X86.desc(pfn);
        let has = d.flags.load(Relaxed);
        if has & flag::TABLE != 0 {
            c.tables += 1;
        } else if has & flag::SLAB == 0 && d.maps.load(Relaxed) > 0 {
            match Page::of(pfn).is_anon() {
                true => c.anon += 1,
                false => c.mapped += 1,
            }
        }
    }
    c
}

/// Frames are told up to a whole block of descriptors, as Linux does.
const BLOCK: u64 = 32768;
const WORD: u64 = 8;

struct PerFrame(fn(Pfn) -> u64);

impl FileOps for PerFrame {
    fn has_end(&self) -> bool {
        false
    }

    fn read(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let len = buf.left() as u64;
        if !(*pos | len).is_multiple_of(WORD) {
            return Err(Errno::EINVAL);
        }
        let end = X86.frames_end().next_multiple_of(BLOCK) * WORD;
        let mut left = len.min(end.saturating_sub(*pos)) / WORD;
        let mut done = 0;
        while left > 0 {
            let n = left.min(AT_ONCE as u64) as usize;
            let mut words = [0; AT_ONCE];
            for (pfn, word) in (*pos / WORD..).zip(&mut words[..n]) {
                *word = (self.0)(Pfn(pfn));
            }
            let put = put_words(buf, &words[..n]);
            *pos += put as u64 * WORD;
            done += put * WORD as usize;
            if put < n {
                return Err(Errno::EFAULT);
            }
            left -= n as u64;
            crate::task::cond_resched();
        }
        Ok(done)
    }
}

fn count(pfn: Pfn) -> u64 {
    if !memory::has_descriptor(pfn) {
        return 0;
    }
    let page = Page::of(pfn);
    let counted = page.head.flags.load(Relaxed) & (flag::SLAB | flag::TABLE) == 0;
    if counted { page.mappings() } else { 0 }
}

fn flags(pfn: Pfn) -> u64 {
    if memory::has_descriptor(pfn) {
        Page::of(pfn).flags()
    } else {
        1 << kpf::NOPAGE
    }
}

/// The two files.
pub fn entries() -> [(&'static str, Arc<dyn Inode>); 2] {
    let file = |word: fn(Pfn) -> u64| {
        Opened::inode(lasting_ino(), 0o400, move || Ok(Arc::new(PerFrame(word))))
    };
    [("kpagecount", file(count)), ("kpageflags", file(flags))]
}
