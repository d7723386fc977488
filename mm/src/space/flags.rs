//! What a VMA allows now, and what it may come to allow.

use crate::table::LeafBits;
use crate::table::pte::bit;

bitflags::bitflags! {
    /// Linux's `VM_*` bits, with Linux's values where it has them.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct VmaFlags: u64 {
        /// Readable.
        const READ = 1;
        /// Writable.
        const WRITE = 1 << 1;
        /// Executable.
        const EXEC = 1 << 2;
        /// Writes go to the object.
        const SHARED = 1 << 3;
        /// READ may be given.
        const MAYREAD = 1 << 4;
        /// WRITE may be given.
        const MAYWRITE = 1 << 5;
        /// EXEC may be given.
        const MAYEXEC = 1 << 6;
        /// Mapped MAP_SHARED, whatever the object allows.
        const MAYSHARE = 1 << 7;
        /// Grows down on a fault below it.
        const GROWSDOWN = 1 << 8;
        /// Bare frames without descriptors.
        const PFNMAP = 1 << 10;
        /// Never reclaimed.
        const LOCKED = 1 << 13;
        /// Device memory.
        const IO = 1 << 14;
        /// MADV_SEQUENTIAL.
        const SEQ_READ = 1 << 15;
        /// MADV_RANDOM.
        const RAND_READ = 1 << 16;
        /// Not given to a child.
        const DONTCOPY = 1 << 17;
        /// `mremap` may not grow it.
        const DONTEXPAND = 1 << 18;
        /// Locked page by page as they are touched.
        const LOCKONFAULT = 1 << 19;
        /// Counted as promised memory: private, and writable at some time.
        const ACCOUNT = 1 << 20;
        /// MAP_NORESERVE.
        const NORESERVE = 1 << 21;
        /// Explicit huge pages.
        const HUGETLB = 1 << 22;
        /// Zeroes in a child.
        const WIPEONFORK = 1 << 25;
        /// Not in a core dump.
        const DONTDUMP = 1 << 26;
        /// Made or written since soft-dirty bits were cleared.
        const SOFTDIRTY = 1 << 27;
        /// Both bare frames and folios.
        const MIXEDMAP = 1 << 28;
        /// MADV_HUGEPAGE.
        const HUGEPAGE = 1 << 29;
        /// MADV_NOHUGEPAGE.
        const NOHUGEPAGE = 1 << 30;
        /// Four bits: the protection key ([`VmaFlags::key`]).
        const PKEY = 0xf << 32;
        /// CET shadow stack.
        const SHADOW_STACK = 1 << 37;
        /// The first thread's stack (ours; Linux compares with `start_stack`).
        const STACK = 1 << 48;
        /// Secret memory: only its own process reaches it, by its own addresses (ours; Linux compares the file's
        /// operations).
        const SECRET = 1 << 49;
    }
}

impl VmaFlags {
    /// READ, WRITE and EXEC.
    pub const ACCESS: Self = Self::READ.union(Self::WRITE).union(Self::EXEC);
    /// What keeps a VMA from ever merging or growing.
    pub const SPECIAL: Self = Self::IO
        .union(Self::DONTEXPAND)
        .union(Self::PFNMAP)
        .union(Self::MIXEDMAP);

    /// What `munlock` takes away.
    pub const LOCKED_MASK: Self = Self::LOCKED.union(Self::LOCKONFAULT);

    /// Bits of a leaf that a read fault installs, with the key: writable only where a write needs no fault of its own,
    /// which is in shared mappings, unless it must be seen ([`VmaFlags::tracks_writes`]).
    #[inline]
    pub const fn leaf_bits(self) -> LeafBits {
        let bits = LeafBits::user(
            self.intersects(Self::READ.union(Self::WRITE)),
            self.contains(Self::WRITE.union(Self::SHARED).union(Self::SOFTDIRTY)),
            self.contains(Self::EXEC),
        )
        .with_key(self.key());
        if self.contains(Self::LOCKED) {
            LeafBits(bits.0 | bit::MLOCKED)
        } else {
            bits
        }
    }

    /// The protection key, 0 to 15 (VMA-10).
    #[inline]
    pub const fn key(self) -> u32 {
        (self.bits() >> 32) as u32 & 15
    }
    /// The same with another key.
    #[inline]
    pub const fn with_key(self, key: u32) -> Self {
        Self::from_bits_retain(self.bits() & !Self::PKEY.bits() | (key as u64 & 15) << 32)
    }
    /// Whether pinning, and access from elsewhere, is refused as secret (VMA-11).
    #[inline]
    pub const fn is_secret(self) -> bool {
        self.contains(Self::SECRET)
    }
    /// Whether ordinary stores are refused as to a shadow stack, whatever WRITE says (VMA-7).
    #[inline]
    pub const fn is_shadow_stack(self) -> bool {
        self.contains(Self::SHADOW_STACK)
    }

    /// Whether the first write to each page must fault, to mark its entry (SOFTD-1): nothing is known to have
    /// changed as a whole. An entry without [`Pte::soft_dirty`](crate::table::Pte::soft_dirty) may not be written
    /// through then, by nobody.
    #[inline]
    pub const fn tracks_writes(self) -> bool {
        !self.contains(Self::SOFTDIRTY)
    }

    /// Whether a private copy is made on write (SPEC VMA-5).
    #[inline]
    pub const fn is_cow(self) -> bool {
        self.bits() & (Self::SHARED.bits() | Self::MAYWRITE.bits()) == Self::MAYWRITE.bits()
    }

    /// Bytes kept free below the start (256 pages below a stack).
    #[inline]
    pub(super) const fn guard(self) -> u32 {
        if self.contains(Self::GROWSDOWN) {
            super::stack::GUARD_GAP as u32
        } else {
            0
        }
    }
}
