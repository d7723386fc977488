//! As `mm::phys`: counting, folios and aging lists are its files, the allocator remembers what was freed.

use crate::addr::{Order, Pfn};
use crate::hw::Cpu;
use crate::sync::atomic::{AtomicU32, Ordering::SeqCst};

#[path = "../../src/phys/count.rs"]
pub mod count;
#[path = "../../src/phys/folio.rs"]
pub mod folio;
#[path = "../../src/phys/frame.rs"]
pub mod frame;
#[path = "../../src/phys/lru.rs"]
pub mod lru;

pub use folio::{Folio, FolioRef};
pub use frame::{Frame, FrameDesc, FrameState, Owned, Zeroed, flag};

/// As `mm::Hw`, as far as folios need it.
pub trait Hw: Cpu {
    /// A frame's bytes: none here.
    fn frame_ptr(self, pfn: Pfn) -> *mut u8;
    /// A frame's descriptor.
    fn desc(self, pfn: Pfn) -> &'static FrameDesc;
    /// The allocator.
    fn phys(self) -> &'static Phys;
    /// Fills a frame with zeroes: nothing here.
    fn clear_frame(self, p: *mut u8);
    /// Takes a frame out of the direct map: there is none.
    fn hide_frame(self, pfn: Pfn) -> bool;
    /// Puts it back.
    fn show_frame(self, pfn: Pfn);
}

/// Counts what comes back.
pub struct Phys {
    freed: AtomicU32,
    pub(crate) lru: lru::Lru,
}

impl Default for Phys {
    fn default() -> Self {
        Self {
            freed: AtomicU32::new(0),
            lru: lru::Lru::new(),
        }
    }
}

impl Phys {
    /// Folios on each kind of aging list.
    pub fn aging<H: Hw>(&self, hw: H) -> [u64; lru::LISTS] {
        self.lru.counts(hw)
    }
    /// Takes a frame back.
    pub fn give_back<H: Hw>(&self, hw: H, pfn: Pfn, _: Order) {
        let d = hw.desc(pfn);
        assert_eq!(d.refs.load(SeqCst), 0, "a frame is freed with references");
        self.freed.fetch_add(1, SeqCst);
    }
    /// Frames freed so far.
    pub fn freed(&self) -> u32 {
        self.freed.load(SeqCst)
    }
}
