//! The aging lists and isolation from them; mechanism only.
//!
//! Each CPU has lists of its own; a folio remembers in its flags which CPU's lists hold it, so adding
//! touches no line that another CPU writes. LRU, SHARD, ACTIVE and UNEVICTABLE change only under the
//! lock of the shard that the folio is on (or by its only owner while it is on none).
//!
//! A folio that is locked in memory (POP-3) is on the unevictable list, where nobody looks for something to
//! reclaim. What decides is how many entries lock it: those with the bit MLOCKED, which is set and
//! cleared under their table locks. Whoever changes the count between none and some then takes the lock of the
//! folio's shard and makes its list agree with what the count says *by then*: of two that cross each other
//! the later sees both changes. A folio on no list is left alone; who lists it looks at the count after it has
//! said so in the flags.

use super::Hw;
use super::frame::{FrameDesc, flag};
use crate::addr::Pfn;
use crate::hw::MAX_CPUS;
use crate::sync::atomic::Ordering::{Relaxed, SeqCst};
use crate::sync::{Class, SpinGuard, SpinLock};

/// Which list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum List {
    InactiveAnon = 0,
    ActiveAnon = 1,
    InactiveFile = 2,
    ActiveFile = 3,
    Unevictable = 4,
}

/// Lists of a shard.
pub const LISTS: usize = 5;

#[derive(Clone, Copy)]
struct Ends {
    head: u32,
    tail: u32,
    len: u64,
}

/// One CPU's lists.
pub(crate) struct Shard {
    lists: [Ends; LISTS],
}

#[repr(align(64))]
struct Aligned(SpinLock<Shard>);

/// All CPUs' lists.
pub struct Lru {
    shards: [Aligned; MAX_CPUS],
}

impl Lru {
    pub(super) const fn new() -> Self {
        Self {
            shards: [const {
                Aligned(SpinLock::new(
                    Class::Lru,
                    Shard {
                        lists: [Ends {
                            head: 0,
                            tail: 0,
                            len: 0,
                        }; LISTS],
                    },
                ))
            }; MAX_CPUS],
        }
    }
    #[inline]
    pub(crate) fn shard<H: Hw>(&self, hw: H, cpu: usize) -> SpinGuard<'_, Shard, H> {
        self.shards[cpu % MAX_CPUS].0.lock(hw)
    }
    /// Folios on one kind of list, over all CPUs.
    pub fn count<H: Hw>(&self, hw: H, list: List) -> u64 {
        self.counts(hw)[list as usize]
    }
    /// Folios on each kind of list, over all CPUs.
    pub fn counts<H: Hw>(&self, hw: H) -> [u64; LISTS] {
        let mut n = [0; LISTS];
        for cpu in 0..MAX_CPUS {
            let shard = self.shard(hw, cpu);
            for (n, l) in n.iter_mut().zip(&shard.lists) {
                *n += l.len;
            }
        }
        n
    }
}

#[inline]
fn list_of(flags: u64, d: &FrameDesc) -> usize {
    if flags & flag::UNEVICTABLE != 0 {
        return List::Unevictable as usize;
    }
    let file = d.mapping.load(Relaxed) & super::folio::MAPPING_ANON == 0;
    (file as usize) << 1 | (flags & flag::ACTIVE != 0) as usize
}

/// Puts a folio that is on no list on the running CPU's; new folios begin inactive.
#[inline]
pub fn add<H: Hw>(hw: H, pfn: Pfn) {
    let cpu = hw.cpu();
    let d = hw.desc(pfn);
    let mut s = hw.phys().lru.shard(hw, cpu);
    let f = d.flags.load(Relaxed);
    debug_assert!(f & flag::LRU == 0);
    s.link(hw, pfn, list_of(f, d));
    // Others may change their own bits of the flags meanwhile: one atomic or, no store. SHARD is zero here.
    // SeqCst: and only then look at the count, which others change and then look at LRU.
    d.flags
        .fetch_or(flag::LRU | (cpu as u64) << flag::SHARD_SHIFT, SeqCst);
    let here = s.settle(hw, pfn, cpu);
    debug_assert!(here);
}

/// As [`add`] for a folio that nobody else can reach yet: plain store.
#[inline]
pub fn add_new<H: Hw>(hw: H, pfn: Pfn) {
    let cpu = hw.cpu();
    let d = hw.desc(pfn);
    let f = d.flags.load(Relaxed);
    let mut s = hw.phys().lru.shard(hw, cpu);
    s.link(hw, pfn, list_of(f, d));
    d.flags
        .store(f | flag::LRU | (cpu as u64) << flag::SHARD_SHIFT, Relaxed);
}

/// Takes a folio off whatever list it is on; `false` if it is on none (somebody isolated it).
#[inline]
pub fn del<H: Hw>(hw: H, pfn: Pfn) -> bool {
    let d = hw.desc(pfn);
    while let Some(shard) = listed_on(d.flags.load(Relaxed)) {
        let mut s = hw.phys().lru.shard(hw, shard);
        let f = d.flags.load(Relaxed);
        if listed_on(f) == Some(shard) {
            s.unlink(hw, pfn, list_of(f, d));
            d.flags.fetch_and(!(flag::LRU | flag::SHARD_MASK), Relaxed);
            return true;
        }
        // Moved to another CPU's lists, or to none, before we had the lock.
    }
    false
}

/// Folios that are locked in memory, or no longer, one after the other: a run on one CPU's lists costs
/// one lock. The caller holds the table lock of each folio's entry.
pub struct Mlocker<'a, H: Hw> {
    hw: H,
    held: Option<(usize, SpinGuard<'a, Shard, H>)>,
}

impl<H: Hw> Mlocker<'_, H> {
    /// Holds no shard's lock yet.
    #[inline]
    pub fn new(hw: H) -> Self {
        Self { hw, held: None }
    }
    /// One more entry locks it.
    #[inline]
    pub fn lock(&mut self, pfn: Pfn) {
        if self.hw.desc(pfn).mlock_inc() {
            self.settle(pfn);
        }
    }
    /// One fewer.
    #[inline]
    pub fn unlock(&mut self, pfn: Pfn) {
        if self.hw.desc(pfn).mlock_dec() {
            self.settle(pfn);
        }
    }
    #[inline]
    fn settle(&mut self, pfn: Pfn) {
        let d = self.hw.desc(pfn);
        // SeqCst: after the count. Who lists it from now on finds that.
        while let Some(shard) = listed_on(d.flags.load(SeqCst)) {
            if self.held.as_ref().is_none_or(|(s, _)| *s != shard) {
                self.held = None; // before the next: one of a kind
                self.held = Some((shard, self.hw.phys().lru.shard(self.hw, shard)));
            }
            if let Some((_, s)) = &mut self.held
                && s.settle(self.hw, pfn, shard)
            {
                return;
            }
        }
    }
}

/// One more entry locks a folio; under the entry's table lock.
#[cold]
pub(super) fn mlock<H: Hw>(hw: H, pfn: Pfn) {
    Mlocker::new(hw).lock(pfn);
}

/// One fewer.
#[cold]
pub(super) fn munlock<H: Hw>(hw: H, pfn: Pfn) {
    Mlocker::new(hw).unlock(pfn);
}

/// The shard whose lists a folio with these flags is on. Both from one reading: between two of them it may have come
/// to another's.
#[inline]
fn listed_on(flags: u64) -> Option<usize> {
    (flags & flag::LRU != 0).then_some(((flags & flag::SHARD_MASK) >> flag::SHARD_SHIFT) as usize)
}

/// The shard that a listed folio is on.
#[inline]
pub(crate) fn shard_of(d: &FrameDesc) -> usize {
    ((d.flags.load(Relaxed) & flag::SHARD_MASK) >> flag::SHARD_SHIFT) as usize
}

impl Shard {
    #[inline]
    fn link<H: Hw>(&mut self, hw: H, pfn: Pfn, list: usize) {
        let l = &mut self.lists[list];
        let d = hw.desc(pfn);
        d.prev.store(0, Relaxed);
        d.next.store(l.head, Relaxed);
        if l.head != 0 {
            hw.desc(Pfn(l.head as u64))
                .prev
                .store(pfn.0 as u32, Relaxed);
        } else {
            l.tail = pfn.0 as u32;
        }
        l.head = pfn.0 as u32;
        l.len += 1;
    }
    #[inline]
    fn unlink<H: Hw>(&mut self, hw: H, pfn: Pfn, list: usize) {
        let l = &mut self.lists[list];
        let d = hw.desc(pfn);
        let (prev, next) = (d.prev.load(Relaxed), d.next.load(Relaxed));
        if prev != 0 {
            hw.desc(Pfn(prev as u64)).next.store(next, Relaxed);
        } else {
            l.head = next;
        }
        if next != 0 {
            hw.desc(Pfn(next as u64)).prev.store(prev, Relaxed);
        } else {
            l.tail = prev;
        }
        l.len -= 1;
    }
    /// Makes the list of a folio agree with how many entries lock it in memory. `false`: it is on none of ours, which
    /// are those of CPU `me`.
    #[inline]
    fn settle<H: Hw>(&mut self, hw: H, pfn: Pfn, me: usize) -> bool {
        let d = hw.desc(pfn);
        let f = d.flags.load(SeqCst);
        if listed_on(f) != Some(me) {
            return false;
        }
        if (f & flag::UNEVICTABLE != 0) != (d.mlock_count() != 0) {
            self.unlink(hw, pfn, list_of(f, d));
            d.flags.fetch_xor(flag::UNEVICTABLE, Relaxed);
            self.link(hw, pfn, list_of(f ^ flag::UNEVICTABLE, d));
        }
        true
    }
    /// Takes off a folio that its last owner is freeing: it is listed here, and nobody else looks at its flags,
    /// which the owner resets.
    #[inline]
    pub(crate) fn unlink_dying<H: Hw>(&mut self, hw: H, pfn: Pfn) {
        let d = hw.desc(pfn);
        let f = d.flags.load(Relaxed);
        self.unlink(hw, pfn, list_of(f, d));
    }
    /// The oldest folio of a list.
    pub(crate) fn oldest(&self, list: List) -> Option<Pfn> {
        let t = self.lists[list as usize].tail;
        (t != 0).then_some(Pfn(t as u64))
    }
}

/// A folio taken off the aging lists with a reference; drop puts both back.
pub struct Isolated<H: Hw> {
    hw: H,
    folio: super::FolioRef<H>,
}

/// Isolates a folio that the caller keeps alive; `None` if somebody else has it or it is on no list.
pub fn isolate<H: Hw>(hw: H, folio: super::FolioRef<H>) -> Option<Isolated<H>> {
    // Not then_some: an `Isolated` that is made and dropped goes back on the lists.
    del(hw, folio.pfn()).then(|| Isolated { hw, folio })
}

impl<H: Hw> Isolated<H> {
    /// The folio.
    pub fn folio(&self) -> super::Folio<H> {
        self.folio.folio()
    }
}

impl<H: Hw> Drop for Isolated<H> {
    fn drop(&mut self) {
        add(self.hw, self.folio.pfn());
    }
}

/// A reference to the oldest folio of a list of one CPU's shard, if it is not being freed.
pub fn oldest<H: Hw>(hw: H, cpu: usize, list: List) -> Option<super::FolioRef<H>> {
    let s = hw.phys().lru.shard(hw, cpu);
    let pfn = s.oldest(list)?;
    super::Folio::new(hw, pfn).try_get()
}
