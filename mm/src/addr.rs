//! Addresses that cannot be mixed up: physical frames on one side, the user half on the other.

/// Bytes in a base page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes that one level-2 entry covers.
pub const PMD_SIZE: u64 = 1 << 21;
/// First address that no user mapping may reach (Linux's TASK_SIZE_MAX with 4-level paging).
pub const USER_END: u64 = (1 << 47) - PAGE_SIZE;
/// Lowest address that user memory has (vm.mmap_min_addr).
pub const MMAP_MIN_ADDR: u64 = 0x10000;

/// The number of a physical frame. It is no address:
///
/// ```compile_fail,E0308
/// use mm::{Pfn, UserVa};
/// fn map(_: UserVa, _: Pfn) {}
/// map(Pfn(1), UserVa::new(0x1000).unwrap());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pfn(pub u64);

impl Pfn {
    /// The frame's first byte.
    #[inline]
    pub const fn phys(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }
}

/// A physical byte address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The frame that holds this byte.
    #[inline]
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

/// Rounds down to a page.
#[inline]
pub const fn page_down(a: u64) -> u64 {
    a & !(PAGE_SIZE - 1)
}

/// Rounds up to a page, or `None` past the end of the address space.
#[inline]
pub const fn page_up(a: u64) -> Option<u64> {
    match a.checked_add(PAGE_SIZE - 1) {
        Some(b) => Some(page_down(b)),
        None => None,
    }
}

/// A byte in the user half; a kernel or non-canonical address cannot be one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct UserVa(u64);

impl UserVa {
    /// Accepts addresses below [`USER_END`].
    #[inline]
    pub const fn new(a: u64) -> Option<Self> {
        if a < USER_END { Some(Self(a)) } else { None }
    }
    /// The address as a number.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The first byte of its page.
    #[inline]
    pub const fn page(self) -> Self {
        Self(page_down(self.0))
    }
}

/// A page-aligned span of the user half, possibly empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct UserRange {
    start: u64,
    end: u64,
}

impl UserRange {
    /// `None` unless both ends are page aligned and `start <= end <= USER_END`.
    #[inline]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start <= end && end <= USER_END && (start | end) & (PAGE_SIZE - 1) == 0 {
            Some(Self { start, end })
        } else {
            None
        }
    }
    /// `start` must be page aligned; `len` is rounded up. `None` on wrap-around or past the user half.
    #[inline]
    pub const fn from_len(start: u64, len: u64) -> Option<Self> {
        match page_up(len) {
            Some(len) => match start.checked_add(len) {
                Some(end) => Self::new(start, end),
                None => None,
            },
            None => None,
        }
    }
    /// First byte.
    #[inline]
    pub const fn start(self) -> u64 {
        self.start
    }
    /// One past the last byte.
    #[inline]
    pub const fn end(self) -> u64 {
        self.end
    }
    /// Bytes.
    #[inline]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }
    /// Whether it covers nothing.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }
    /// Pages.
    #[inline]
    pub const fn pages(self) -> u64 {
        self.len() >> PAGE_SHIFT
    }
    /// Whether `a` lies inside.
    #[inline]
    pub const fn contains(self, a: u64) -> bool {
        self.start <= a && a < self.end
    }
    /// The part common to both, if any.
    #[inline]
    pub fn intersect(self, o: Self) -> Option<Self> {
        let (start, end) = (self.start.max(o.start), self.end.min(o.end));
        (start < end).then_some(Self { start, end })
    }
}

/// log2 of the pages of a folio; at most [`Order::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Order = Order(0);
    /// 2 MiB.
    pub const PMD: Order = Order(9);
    /// The largest block the frame allocator hands out (4 MiB).
    pub const MAX: Order = Order(10);
    /// `None` above [`Order::MAX`].
    pub const fn new(o: u8) -> Option<Self> {
        if o <= Self::MAX.0 {
            Some(Self(o))
        } else {
            None
        }
    }
    /// The exponent.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }
    /// The page count.
    #[inline]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_and_wrapping_ranges_are_refused() {
        assert!(UserVa::new(USER_END).is_none());
        assert!(UserVa::new(u64::MAX).is_none());
        assert!(UserRange::from_len(0x1000, u64::MAX).is_none());
        assert!(UserRange::from_len(USER_END - PAGE_SIZE, 2 * PAGE_SIZE).is_none());
        assert!(UserRange::from_len(0x1001, PAGE_SIZE).is_none());
        assert_eq!(UserRange::from_len(0x1000, 1).unwrap().pages(), 1);
        assert!(page_up(u64::MAX).is_none());
    }
}
