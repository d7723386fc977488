//! Disks, where there are some (`tests/src/iommu.rs`).

use alloc::vec::Vec;

use kernel::arch::X86;
use kernel::dev::block::{self, Bounce, Memory, SECTOR, Way};
use kernel::dev::iommu::Dma;
use kernel::dev::pci::Function;
use kernel::ktest;
use kernel::memory;
use mm::addr::Order;
use mm::phys::{Frame, Use};
use mm::{Hw, Pfn};

fn word(pfn: Pfn) -> *mut u64 {
    X86.frame_ptr(pfn).cast()
}

/// All memory that was left, as a list through the frames themselves.
struct Rest(Pfn);

impl Rest {
    fn take() -> Rest {
        let mut first = Pfn(0);
        while let Some(frame) = X86.phys().alloc(X86, Use::Kernel) {
            let pfn = frame.into_pfn();
            // SAFETY: ours, in the direct map.
            unsafe { word(pfn).write(first.0) };
            first = pfn;
        }
        Rest(first)
    }

    /// Gives one back; whether there is another.
    fn back(&mut self) -> bool {
        let pfn = self.0;
        // SAFETY: written by `take`.
        self.0 = Pfn(unsafe { word(pfn).read() });
        // SAFETY: taken there, order 0, ours alone.
        X86.phys()
            .free(X86, unsafe { Frame::from_raw(pfn, Order::ZERO) });
        self.0.0 != 0
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        while self.back() {}
    }
}

// What is to be written waits for nobody's memory, and each is another piece of memory.
ktest!(a_disk_is_written_without_memory, {
    // Other tests add disks that are none.
    let mut disks = (0..).map_while(block::disk);
    let Some(known) = disks.find(|known| known.disk.name() == "vda") else {
        return;
    };
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
    let rest = Rest::take();
    let written = bounces.iter_mut().enumerate().map(|(n, bounce)| {
        let memory = Memory::of_bounce(bounce, Way::Drain, 4096);
        known.disk.transfer(n as u64 * 4096 / SECTOR, &memory)
    });
    let failed = written.filter(Result::is_err).count();
    drop(rest);
    assert!(bounces.len() > 20, "only {} pieces", bounces.len());
    assert_eq!(failed, 0, "of {} writes", bounces.len());
});

// There are frames for some of its tables.
ktest!(a_domain_that_is_not_made_leaves_nothing, {
    let free = || {
        memory::trim();
        X86.phys().free_frames(X86)
    };
    let mut rest = Rest::take();
    (0..20).for_each(|_| assert!(rest.back()));
    let before = free();
    // Of the bus that the disk is on; nobody drives it.
    let made = Dma::of(Function::of_requester(0xfb));
    let after = free();
    drop(rest);
    if made.is_none_or(Dma::translates) {
        assert!(made.is_none());
        assert_eq!(after, before, "frames are gone");
    }
});
