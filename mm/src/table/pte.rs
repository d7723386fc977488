//! Entry bits to meaning and back; pure.
//!
//! ```text
//! 63 62..59 58     57      51..12  11      10      9       8 7      6 5 4   3   2 1 0
//! NX  key  DEVMAP  MLOCKED frame   UFFD_WP SOFTD   SPECIAL G PS/PAT D A PCD PWT U W P     present
//! 63 62..59 58     57      51..12  11      10      9       1   7      6 5 4   3   2 1 0     PROT_NONE leaf
//! 63..12 value                              11..9 kind     0   7..1 flags               0     the others, not zero
//! ```
//! Not present: kind 1 = swap (value: slot), kind 2 = migration (value: frame); flag bit 1 = exclusive,
//! bit 2 = was writable. A PROT_NONE leaf is absent for the machine, so that the kernel's own copies
//! fault on it like the user (a mere U = 0 would let them through), and present for us.

use crate::addr::{PAGE_SHIFT, Pfn};
use crate::phys::{Folio, Hw};
use crate::race::planted;

/// Bits of an entry.
pub mod bit {
    pub const P: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    /// Leaf at levels 2 and 3.
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    /// With P clear: a leaf that nobody may access (leaves are never global).
    pub const PROT_NONE: u64 = 1 << 8;
    /// No descriptor counts behind this entry: zero page, raw frames (PFN-1).
    pub const SPECIAL: u64 = 1 << 9;
    pub const SOFT_DIRTY: u64 = 1 << 10;
    pub const UFFD_WP: u64 = 1 << 11;
    /// The page is counted as locked in memory on behalf of this entry (phys/lru.rs).
    pub const MLOCKED: u64 = 1 << 57;
    pub const DEVMAP: u64 = 1 << 58;
    /// Four bits: the protection key.
    pub const KEY: u64 = 0xf << KEY_SHIFT;
    /// See [`KEY`].
    pub const KEY_SHIFT: u32 = 59;
    pub const NX: u64 = 1 << 63;
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;
}

/// What a VMA gives to its leaves: user, writable, executable, cache and key bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafBits(pub u64);

impl LeafBits {
    /// User leaf with the given rights; not accessible at all when `read` is false.
    pub const fn user(read: bool, write: bool, exec: bool) -> Self {
        let mut b = if read || write || exec {
            bit::P | bit::U
        } else {
            bit::PROT_NONE
        };
        if write {
            b |= bit::W;
        }
        if !exec {
            b |= bit::NX;
        }
        Self(b)
    }
    /// The same with a protection key, 0 to 15.
    #[inline]
    pub const fn with_key(self, key: u32) -> Self {
        Self(self.0 & !bit::KEY | (key as u64) << bit::KEY_SHIFT & bit::KEY)
    }
    /// In a VMA that is locked in memory.
    #[inline]
    pub const fn mlocked(self) -> bool {
        self.0 & bit::MLOCKED != 0
    }
    /// The same without write permission.
    #[inline]
    pub const fn read_only(self) -> Self {
        Self(self.0 & !bit::W)
    }
}

/// How the processor caches what a bare frame shows: an entry of the table that IA32_PAT holds, whose first four are these, in
/// Linux's order (the third is never used).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caching {
    /// As memory.
    Back,
    /// Not, but writes are gathered: what is looked at and not asked, a frame buffer.
    Combining,
    /// Not: a device's registers.
    Off,
}

impl Caching {
    /// Its bits in a leaf, of whatever size.
    pub const fn bits(self) -> u64 {
        match self {
            Caching::Back => 0,
            Caching::Combining => bit::PWT,
            Caching::Off => bit::PCD | bit::PWT,
        }
    }
}

/// Bits that `mprotect` and friends may change in a present leaf; the rest stays.
pub const PROT_BITS: u64 = bit::P | bit::PROT_NONE | bit::W | bit::U | bit::NX | bit::KEY;

/// One entry, copied out; no address, no lock.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Pte(pub u64);

/// Where the content of a page went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwapEntry {
    pub slot: u64,
    pub exclusive: bool,
}

/// Whom to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MigrationEntry {
    pub pfn: Pfn,
    pub exclusive: bool,
    pub writable: bool,
}

/// What an entry means at its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PteState {
    /// Nothing.
    Absent,
    /// A lower table.
    Table(Pfn),
    /// Memory.
    Leaf(Pte),
    /// Swapped out.
    Swap(SwapEntry),
    /// On the move.
    Migrating(MigrationEntry),
    /// No meaning that this kernel gave it (WALK-2): reported, never dereferenced.
    Bad(u64),
}

impl Pte {
    /// Nothing.
    pub const EMPTY: Pte = Pte(0);

    /// A leaf of `pfn`. Accessed is set: it is made because of an access.
    #[inline]
    pub const fn leaf(pfn: Pfn, bits: LeafBits) -> Self {
        Pte(pfn.0 << 12 | bits.0 | bit::A)
    }
    /// A leaf of a bare frame, which nobody counts (PFN-1).
    #[inline]
    pub const fn raw(pfn: Pfn, bits: LeafBits, caching: Caching) -> Self {
        Pte((pfn.0 << 12 | bits.0 | bit::A | bit::SPECIAL | caching.bits()) & !bit::MLOCKED)
    }
    /// A user table entry; rights are decided by the leaf (FAST-6).
    #[inline]
    pub const fn table(pfn: Pfn) -> Self {
        Pte(pfn.0 << 12 | bit::P | bit::W | bit::U | bit::A)
    }
    /// A swap entry.
    pub const fn swap(e: SwapEntry) -> Self {
        Pte(e.slot << 12 | 1 << 9 | (e.exclusive as u64) << 1)
    }
    /// A migration entry.
    pub const fn migrating(e: MigrationEntry) -> Self {
        Pte(e.pfn.0 << 12 | 2 << 9 | (e.exclusive as u64) << 1 | (e.writable as u64) << 2)
    }
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    #[inline]
    pub const fn present(self) -> bool {
        self.0 & (bit::P | bit::PROT_NONE) != 0
    }
    #[inline]
    pub const fn writable(self) -> bool {
        self.0 & bit::W != 0
    }
    #[inline]
    pub const fn user(self) -> bool {
        self.0 & bit::U != 0
    }
    #[inline]
    pub const fn executable(self) -> bool {
        self.0 & bit::NX == 0
    }
    #[inline]
    pub const fn dirty(self) -> bool {
        self.0 & bit::D != 0
    }
    #[inline]
    pub const fn young(self) -> bool {
        self.0 & bit::A != 0
    }
    /// Present, and nobody counts what is behind it. What is not present is never special: its bits mean something else.
    #[inline]
    pub const fn special(self) -> bool {
        // SPECIAL is the highest of the three: set, and another as well.
        self.0 & (bit::P | bit::PROT_NONE | bit::SPECIAL) > bit::SPECIAL
    }
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn((self.0 & bit::FRAME) >> 12)
    }
    /// The protection key of a leaf (VMA-10).
    #[inline]
    pub const fn key(self) -> u32 {
        (self.0 >> bit::KEY_SHIFT) as u32 & 15
    }
    /// Written, or made, since soft-dirty bits were cleared.
    #[inline]
    pub const fn soft_dirty(self) -> bool {
        self.0 & bit::SOFT_DIRTY != 0
    }
    /// In a shadow stack's VMA (VMA-7): a leaf that its CPU may push to, read-only for ordinary stores and dirty.
    /// Means nothing elsewhere: on CPUs without shadow stacks ordinary leaves keep D when they lose W.
    #[inline]
    pub const fn is_shadow_stack(self) -> bool {
        self.0 & (bit::P | bit::W | bit::D) == bit::P | bit::D
    }
    /// A leaf of a shadow stack: only calls, returns and the CPU's own instructions write it.
    #[inline]
    pub const fn to_shadow_stack(self) -> Self {
        Pte(self.0 & !bit::W | bit::D)
    }
    /// Whether a folio stands behind it, with a reference and a mapping count: present, not special.
    #[inline]
    pub const fn is_counted(self) -> bool {
        // SPECIAL is the highest of the three: not zero and below it.
        let b = self.0 & (bit::P | bit::PROT_NONE | bit::SPECIAL);
        b.wrapping_sub(1) < bit::SPECIAL - 1
    }
    /// Whether it shows the frame that `old`, which was present, showed, and is counted if that was.
    #[inline]
    pub const fn shows_as(self, old: Pte) -> bool {
        self.present() && (self.0 ^ old.0) & (bit::FRAME | bit::SPECIAL) == 0
    }
    /// The folio behind it, as it starts or some page of it; none if nothing counts it, or if its frame has no descriptor: then
    /// the entry cannot be ours (PFN-8, `Vma::folio` reports it, as it does a frame that is nobody's).
    #[inline]
    pub fn folio<H: Hw>(self, hw: H) -> Option<Folio<H>> {
        (self.is_counted() && self.pfn().0 < hw.frames_end()).then(|| Folio::new(hw, self.pfn()))
    }
    /// Its frame, by one comparison, if it is what a loop nearly always meets: present for the machine, counted, of a frame
    /// below `end`, which is [`Hw::frames_end`], with all the bits `with` and none of `without`. `None` says nothing.
    #[inline(always)]
    pub fn plain(self, with: u64, without: u64, end: u64) -> Option<Pfn> {
        let with = with | bit::P;
        let wrong = (self.0 ^ with) & (with | without | bit::SPECIAL);
        // The frame comes lowest, and above it what is not as it should be, which makes it too large.
        let pfn = (wrong | self.0 & bit::FRAME).rotate_right(PAGE_SHIFT);
        (pfn < end && !planted(13)).then_some(Pfn(pfn))
    }
    /// Whether its page is counted as locked on its behalf.
    #[inline]
    pub const fn mlocked(self) -> bool {
        self.0 & bit::MLOCKED != 0
    }
    /// With more bits of [`bit`].
    #[inline]
    pub const fn with(self, bits: u64) -> Self {
        Pte(self.0 | bits)
    }
    /// Without some bits.
    #[inline]
    pub const fn without(self, bits: u64) -> Self {
        Pte(self.0 & !bits)
    }
    /// The permission bits replaced.
    #[inline]
    pub const fn with_prot(self, bits: LeafBits) -> Self {
        Pte(self.0 & !PROT_BITS | bits.0 & PROT_BITS)
    }
    /// The meaning of an entry at `level` (1 = 4 KiB leaves).
    pub const fn state(self, level: u32) -> PteState {
        if self.0 == 0 {
            return PteState::Absent;
        }
        if self.present() {
            if level == 1 {
                return PteState::Leaf(self);
            }
            if self.0 & bit::PS == 0 {
                return PteState::Table(self.pfn());
            }
            return if level <= 3 {
                PteState::Leaf(self)
            } else {
                PteState::Bad(self.0)
            };
        }
        let exclusive = self.0 & 2 != 0;
        match self.0 >> 9 & 7 {
            1 => PteState::Swap(SwapEntry {
                slot: self.0 >> 12,
                exclusive,
            }),
            2 => PteState::Migrating(MigrationEntry {
                pfn: Pfn(self.0 >> 12),
                exclusive,
                writable: self.0 & 4 != 0,
            }),
            _ => PteState::Bad(self.0),
        }
    }
}

impl core::fmt::Debug for Pte {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Pte({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PFN-2: what the processor is told of a bare frame's caching, and of nothing else.
    #[test]
    fn a_raw_leaf_says_how_it_is_cached() {
        let bits = LeafBits::user(true, true, false);
        let plain = Pte::raw(Pfn(7), bits, Caching::Back).0;
        assert_eq!(plain & (bit::PWT | bit::PCD | bit::PS), 0);
        let combining = Pte::raw(Pfn(7), bits, Caching::Combining).0;
        assert_eq!(combining ^ plain, bit::PWT);
        let off = Pte::raw(Pfn(7), bits, Caching::Off).0;
        assert_eq!(off ^ plain, bit::PWT | bit::PCD);
    }

    #[test]
    fn every_kind_survives_the_round_trip() {
        let leaf = Pte::leaf(Pfn(0x12345), LeafBits::user(true, true, false));
        assert_eq!(leaf.state(1), PteState::Leaf(leaf));
        assert_eq!(leaf.pfn(), Pfn(0x12345));
        assert!(leaf.writable() && leaf.user() && !leaf.executable());
        assert_eq!(Pte::table(Pfn(7)).state(2), PteState::Table(Pfn(7)));
        assert_eq!(leaf.with(bit::PS).state(4), PteState::Bad(leaf.0 | bit::PS));
        for exclusive in [false, true] {
            let s = SwapEntry {
                slot: 99,
                exclusive,
            };
            assert_eq!(Pte::swap(s).state(1), PteState::Swap(s));
            assert!(!Pte::swap(s).present());
            let m = MigrationEntry {
                pfn: Pfn(5),
                exclusive,
                writable: true,
            };
            assert_eq!(Pte::migrating(m).state(1), PteState::Migrating(m));
        }
        assert_eq!(Pte::EMPTY.state(1), PteState::Absent);
    }

    /// PFN-1, PFN-8: against its rule in words, where all is as asked but for one bit, or two; also where every frame has a
    /// descriptor.
    #[test]
    fn a_plain_entry_is_all_that_is_asked() {
        const SOME: u64 = 1 << 18;
        const ALL: u64 = 1 << 40;
        let pfns = [0, 1, 7, SOME - 1, SOME, SOME + 1, 1 << 39, ALL - 1];
        let asked = [
            (0, 0),
            (0, bit::MLOCKED),
            (bit::U | bit::W, bit::DEVMAP | bit::KEY),
        ];
        for ((with, without), n) in asked
            .iter()
            .flat_map(|&a| (0..64 * 64).map(move |n| (a, n)))
        {
            let odd = (1u64 << (n & 63) | 1 << (n >> 6)) & !bit::FRAME;
            for (pfn, end) in pfns.iter().flat_map(|&pfn| [(pfn, SOME), (pfn, ALL)]) {
                let e = Pte(pfn << 12 | (with | bit::P) ^ odd);
                let plain = e.0 & bit::P != 0
                    && e.is_counted()
                    && pfn < end
                    && e.0 & with == with
                    && e.0 & without == 0;
                let found = plain.then_some(Pfn(pfn));
                assert_eq!(e.plain(with, without, end), found, "{e:?}");
            }
        }
    }

    /// PFN-1: the kind of a swap entry stands where a leaf has SPECIAL.
    #[test]
    fn only_what_is_present_is_special() {
        for bits in [bit::P, bit::PROT_NONE] {
            let e = Pte(7 << 12 | bits | bit::MLOCKED | bit::NX);
            assert!(!e.special() && e.is_counted());
            assert!(e.with(bit::SPECIAL).special() && !e.with(bit::SPECIAL).is_counted());
        }
        for n in 0..64 {
            let swap = Pte::swap(SwapEntry {
                slot: n,
                exclusive: n & 1 != 0,
            });
            let moving = Pte::migrating(MigrationEntry {
                pfn: Pfn(n),
                exclusive: n & 1 != 0,
                writable: n & 2 != 0,
            });
            let bad = Pte(n << 57 | bit::SPECIAL);
            for e in [swap, moving, bad, Pte::EMPTY] {
                assert!(!e.special() && !e.is_counted(), "{e:?}");
            }
        }
    }

    #[test]
    fn prot_none_is_present_but_not_the_users() {
        let p = Pte::leaf(Pfn(1), LeafBits::user(false, false, false));
        assert!(p.present() && !p.user());
    }

    #[test]
    fn a_key_is_kept_through_a_change_of_rights_and_comes_with_it() {
        let bits = LeafBits::user(true, true, false).with_key(13);
        let p = Pte::leaf(Pfn(0xf_ffff_ffff), bits);
        assert_eq!((p.key(), p.pfn()), (13, Pfn(0xf_ffff_ffff)));
        let q = p.with_prot(LeafBits::user(true, false, true).with_key(2));
        assert_eq!((q.key(), q.writable(), q.executable()), (2, false, true));
        assert_eq!((q.pfn(), q.young()), (p.pfn(), true));
        assert!(!bits.with_key(0).0 & bit::KEY == bit::KEY && bits.0 & bit::NX != 0);
    }

    /// VMA-7.
    #[test]
    fn a_shadow_stack_leaf_is_dirty_and_not_writable() {
        let p = Pte::leaf(Pfn(1), LeafBits::user(true, true, false)).to_shadow_stack();
        assert!(p.is_shadow_stack() && !p.writable() && p.dirty());
        assert!(!p.without(bit::D).is_shadow_stack() && !p.with(bit::W).is_shadow_stack());
        assert!(!Pte::EMPTY.with(bit::D).is_shadow_stack());
    }
}
