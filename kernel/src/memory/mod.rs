//! The kernel's own memory: what the loader says there is, the kernel half of every root, the heap.
//!
//! Boot order: `regions` copies the loader's memory map; `kspace` makes the kernel's root from the loader's;
//! `vmemmap` gives every frame of RAM its descriptor; then all that is left goes to `mm::phys` and the
//! early allocator is closed.

pub mod frames;
pub mod heap;
pub mod initrd;
pub mod kspace;
mod regions;
mod vmemmap;

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bootloader_api::BootInfo;
use mm::phys::{Phys, Zone};
use mm::{Errno, Hw, Pfn};

use crate::arch::X86;

pub use initrd::{boot_file, cmdline, ramdisk};

/// Where physical memory is mapped.
pub const DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
/// The frame descriptors, indexed by frame number.
pub const VMEMMAP: u64 = 0xffff_ea00_0000_0000;
/// Kernel stacks, frames in a row and device registers.
pub const KSPACE: u64 = 0xffff_c900_0000_0000;

/// All RAM.
pub static PHYS: Phys = Phys::new();

/// Free frames that a system call leaves to the kernel itself; a user leaves as many again.
const RESERVE: u64 = 256;

static ASKED: AtomicU32 = AtomicU32::new(0);
static SHORT: AtomicBool = AtomicBool::new(false);

/// Free frames that system calls and users leave alone while this is there: for work that nobody can be refused.
pub struct Aside(u64);

impl Aside {
    pub fn new(frames: u64) -> Result<Self, Errno> {
        headroom_for(frames)?;
        PHYS.grow_reserve(frames);
        let aside = Aside(frames);
        // Somebody may have taken them meanwhile, or set them aside, too.
        headroom_for(0)?;
        Ok(aside)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        PHYS.shrink_reserve(self.0);
    }
}

/// The direct map's address of a physical byte.
#[inline(always)]
pub const fn direct(pa: u64) -> u64 {
    DIRECT_MAP + pa
}

/// Takes over from the loader: regions, root, descriptors, frame allocator. Boot CPU, once.
pub fn init(info: &'static BootInfo) {
    let offset = info.physical_memory_offset.into_option();
    assert!(
        offset == Some(DIRECT_MAP),
        "the loader put physical memory elsewhere: {offset:x?}"
    );
    initrd::init(info);
    regions::remember(&info.memory_regions);
    let mut early = regions::Early::new(&info.memory_regions);
    kspace::init(
        &mut early,
        (info.kernel_stack_bottom, info.kernel_stack_len),
    );
    vmemmap::init(&mut early, &info.memory_regions);
    let movable = cmdline("movable").and_then(parse_size).unwrap_or(0);
    early.hand_over(movable, |start, end, zone| {
        PHYS.add_memory(X86, Pfn(start >> 12), Pfn(end >> 12), zone);
    });
    PHYS.make_zero_page(X86).expect("the zero page");
    crate::vsyscall::init();
    PHYS.grow_reserve(2 * RESERVE);
}

/// ENOMEM when free frames are under the kernel's reserve: asked before a call creates objects. Counting is
/// slow, so it is done every so often, and always once memory was short.
#[inline]
pub fn headroom() -> Result<(), Errno> {
    let n = ASKED.load(Ordering::Relaxed);
    ASKED.store(n.wrapping_add(1), Ordering::Relaxed);
    if n & 31 != 0 && !SHORT.load(Ordering::Relaxed) {
        Ok(())
    } else {
        count_headroom()
    }
}

#[cold]
fn count_headroom() -> Result<(), Errno> {
    let room = headroom_for(0);
    SHORT.store(room.is_err(), Ordering::Relaxed);
    room
}

/// The same for a call that may take as many frames more; always counted.
pub fn headroom_for(frames: u64) -> Result<(), Errno> {
    let short = || PHYS.free_frames(X86) + RESERVE < PHYS.reserve() + frames;
    if !short() {
        return Ok(());
    }
    heap::trim();
    if short() { Err(Errno::ENOMEM) } else { Ok(()) }
}

/// A free page below 1 MiB, for the trampoline; it is never given to the allocator.
pub(crate) fn low_page() -> Option<u64> {
    regions::low_page()
}

/// "64M", "1G", "4096".
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

/// How many bytes of the pages from `start` to `end` are RAM's, whoever has it.
pub fn ram_between(start: u64, end: u64) -> u64 {
    regions::ram_between(start, end)
}

/// One past the last frame of RAM.
pub fn frames_end() -> u64 {
    vmemmap::frames_end()
}

/// Whether a frame has a descriptor of its own: memory, or beside it.
pub fn has_descriptor(pfn: Pfn) -> bool {
    vmemmap::has(pfn)
}

/// Frames under management and free ones, for `/proc/meminfo` and the tests.
pub fn totals() -> (u64, u64) {
    (PHYS.managed_frames(X86), PHYS.free_frames(X86))
}

/// Gives back what caches of the kernel proper hold: heap magazines and rows, kernel stacks, tables for devices. Thread context.
pub fn trim() {
    crate::dev::iommu::trim();
    kspace::trim();
    heap::trim();
    heap::give_back();
}

/// Frames of a zone: free in its lists, and managed.
pub fn zone(zone: Zone) -> (u64, u64) {
    X86.phys().zone_frames(X86, zone)
}
