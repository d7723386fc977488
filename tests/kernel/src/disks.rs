//! Disks, where there are some (`tests/src/iommu.rs`).

use alloc::vec::Vec;

use kernel::arch::X86;
use kernel::dev::block::{self, Bounce, Memory, SECTOR, Way};
use kernel::ktest;
use kernel::memory;
use mm::addr::Order;
use mm::phys::{Frame, Use};
use mm::{Hw, Pfn};

fn word(pfn: Pfn) -> *mut u64 {
    X86.frame_ptr(pfn).cast()
}

// What is to be written waits for nobody's memory, and each is another piece of memory.
ktest!(a_disk_is_written_without_memory, {
    let Some(known) = block::disk(0) else {
        return;
    };
    let phys = X86.phys();
    // Of all memory, one for each piece of 2 MiB.
    let mut bounces = Vec::with_capacity(1 << 16);
    while let Ok(bounce) = Bounce::new() {
        bounces.push(bounce);
    }
    let mut n = 0;
    bounces.retain(|_| {
        n += 1;
        n % 64 == 0
    });
    memory::trim();
    let mut first = Pfn(0);
    while let Some(frame) = phys.alloc(X86, Use::Kernel) {
        let pfn = frame.into_pfn();
        // SAFETY: ours, in the direct map.
        unsafe { word(pfn).write(first.0) };
        first = pfn;
    }
    let written = bounces.iter_mut().enumerate().map(|(n, bounce)| {
        let memory = Memory::of_bounce(bounce, Way::Drain, 4096);
        known.disk.transfer(n as u64 * 4096 / SECTOR, &memory)
    });
    let failed = written.filter(Result::is_err).count();
    while first.0 != 0 {
        // SAFETY: written above.
        let next = unsafe { word(first).read() };
        // SAFETY: taken above, order 0, ours alone.
        phys.free(X86, unsafe { Frame::from_raw(first, Order::ZERO) });
        first = Pfn(next);
    }
    assert!(bounces.len() > 20, "only {} pieces", bounces.len());
    assert_eq!(failed, 0, "of {} writes", bounces.len());
});
