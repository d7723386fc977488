//! Simulated memory: bytes, descriptors, and how often each frame has lived.

use crate::addr::Pfn;
use crate::phys::{FrameDesc, flag};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// RAM from frame 0; never given back to the host.
pub struct Ram {
    base: *mut u8,
    frames: u64,
    descs: &'static [FrameDesc],
    /// Odd while a frame is in use; goes up at every birth and death.
    life: Vec<AtomicU32>,
}

// SAFETY: `base` is memory that lives for ever and is only accessed as simulated memory is, by atomics
// or by the frame's owner.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

/// One table entry as the walker sees it.
pub struct Cell<'a>(&'a AtomicU64);

impl Cell<'_> {
    /// One load.
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
    /// The walker's locked update: only if nobody changed the entry.
    pub fn swap_if(&self, seen: u64, new: u64) -> bool {
        self.0
            .compare_exchange(seen, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

impl Ram {
    /// `frames` frames of zeroes.
    pub fn new(frames: u64) -> Self {
        let layout = std::alloc::Layout::from_size_align((frames as usize) << 12, 1 << 21)
            .expect("a sane size");
        // SAFETY: the size is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!base.is_null(), "no host memory for {frames} frames");
        let descs: Vec<FrameDesc> = (0..frames).map(|_| FrameDesc::default()).collect();
        descs.iter().for_each(|d| d.set(flag::RESERVED));
        Self {
            base,
            frames,
            descs: descs.leak(),
            life: (0..frames).map(|_| AtomicU32::new(0)).collect(),
        }
    }
    /// How many.
    pub fn frames(&self) -> u64 {
        self.frames
    }
    /// Whether `pfn` is RAM.
    pub fn contains(&self, pfn: Pfn) -> bool {
        pfn.0 < self.frames
    }
    /// The frame's bytes.
    pub fn ptr(&self, pfn: Pfn) -> *mut u8 {
        assert!(pfn.0 < self.frames, "frame {:#x} is not memory", pfn.0);
        // SAFETY: within the allocation.
        unsafe { self.base.add((pfn.0 as usize) << 12) }
    }
    /// The frame's descriptor.
    pub fn desc(&self, pfn: Pfn) -> &'static FrameDesc {
        &self.descs[pfn.0 as usize]
    }
    /// Entry `i` of the table in frame `table`.
    pub fn entry(&self, table: Pfn, i: u64) -> Cell<'_> {
        let p = self.ptr(table) as *const AtomicU64;
        // SAFETY: 512 aligned words in the frame; simulated RAM is accessed by atomics.
        Cell(unsafe { &*p.add(i as usize) })
    }
    /// The frame's present life: to be compared later.
    pub fn life(&self, pfn: Pfn) -> u32 {
        self.life[pfn.0 as usize].load(Ordering::SeqCst)
    }
    /// Whether the frame is in use and has been since `life` was read.
    pub fn alive(&self, pfn: Pfn, life: u32) -> bool {
        life % 2 == 1 && self.life(pfn) == life
    }
    /// A frame is handed out. False: it was already.
    pub fn birth(&self, pfn: Pfn) -> bool {
        self.life[pfn.0 as usize]
            .fetch_add(1, Ordering::SeqCst)
            .is_multiple_of(2)
    }
    /// A frame comes back. False: it was not out.
    pub fn death(&self, pfn: Pfn) -> bool {
        self.life[pfn.0 as usize].fetch_add(1, Ordering::SeqCst) % 2 == 1
    }
    /// Frames in use.
    pub fn living(&self) -> u64 {
        self.life
            .iter()
            .filter(|l| l.load(Ordering::Relaxed) % 2 == 1)
            .count() as u64
    }
}

/// A byte of simulated memory, loaded as a CPU would.
///
/// # Safety
/// `p` came from a translation of this machine.
pub unsafe fn load(p: *mut u8) -> u8 {
    // SAFETY: simulated RAM is alive for ever; a CPU's access may race, so it is atomic.
    unsafe { (*(p as *const std::sync::atomic::AtomicU8)).load(Ordering::Relaxed) }
}

/// A byte stored as a CPU would.
///
/// # Safety
/// As for [`load`].
pub unsafe fn store(p: *mut u8, v: u8) {
    // SAFETY: as in `load`.
    unsafe { (*(p as *const std::sync::atomic::AtomicU8)).store(v, Ordering::Relaxed) }
}

/// `n` words copied as a CPU would.
///
/// # Safety
/// As for [`load`], of either; aligned, within a frame each.
pub unsafe fn copy_words(from: *const u8, to: *mut u8, n: usize) {
    use std::sync::atomic::AtomicU64;
    for i in 0..n {
        // SAFETY: as in `load`.
        unsafe {
            let v = (*(from as *const AtomicU64).add(i)).load(Ordering::Relaxed);
            (*(to as *const AtomicU64).add(i)).store(v, Ordering::Relaxed);
        }
    }
}
