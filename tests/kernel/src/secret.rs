//! Secret memory: frames that leave the direct map, whose leaves split, and come back clean.

use alloc::vec::Vec;
use core::hint::black_box;
use core::sync::atomic::{AtomicU64, Ordering};

use kernel::arch::{self, X86};
use kernel::ktest;
use kernel::memory::{self, direct, kspace};
use mm::phys::{FolioRef, flag};
use mm::{FileObject, Hw, Pfn};

const PAGES: u64 = 200;

fn free() -> u64 {
    memory::trim();
    X86.phys().free_frames(X86)
}

fn is_mapped(pfn: Pfn) -> bool {
    kspace::translate(direct(pfn.0 << 12)) == Some(pfn.0 << 12)
}

fn secret_pages() -> (alloc::sync::Arc<FileObject<X86>>, Vec<FolioRef<X86>>) {
    let object = FileObject::new_secret(X86);
    object.extend(PAGES * 4096);
    let pages = (0..PAGES).map(|i| object.get_or_create(i).expect("memory"));
    let pages = pages.collect();
    (object, pages)
}

fn hide_and_show() {
    let (object, pages) = secret_pages();
    let pfns: Vec<Pfn> = pages.iter().map(|p| p.pfn()).collect();
    for &pfn in &pfns {
        assert!(!is_mapped(pfn), "{pfn:?} is still in the direct map");
        assert!(X86.desc(pfn).has(flag::SECRET));
    }
    // What stands beside them is where it was, for every CPU.
    static SEEN: AtomicU64 = AtomicU64::new(0);
    for &pfn in &pfns {
        let beside = Pfn(pfn.0 ^ 1);
        if !pfns.contains(&beside) {
            assert!(is_mapped(beside));
            SEEN.store(direct(beside.0 << 12), Ordering::SeqCst);
            arch::run_on_all(|| {
                // SAFETY: mapped, as was just seen; any bytes will do.
                let byte = unsafe { (SEEN.load(Ordering::SeqCst) as *const u8).read_volatile() };
                black_box(byte);
            });
        }
    }
    drop(pages);
    drop(object);
    for &pfn in &pfns {
        assert!(is_mapped(pfn), "{pfn:?} did not come back");
        assert!(!X86.desc(pfn).has(flag::SECRET));
    }
    drop(pfns);
}

ktest!(secret_frames_leave_the_direct_map, {
    // The tables that splitting takes stay, and another round's frames may lie in other leaves. A leak is there each time.
    let keeps = (0..64).any(|_| {
        let before = free();
        hide_and_show();
        free() == before
    });
    assert!(keeps, "frames are lost each time");
});

ktest!(a_reference_keeps_the_secret, {
    let (object, mut pages) = secret_pages();
    let pfn = pages[0].pfn();
    pages.truncate(1);
    drop(object);
    assert!(!is_mapped(pfn));
    drop(pages);
    assert!(is_mapped(pfn));
});

ktest!(touch_secret_memory, alone, {
    let (_object, pages) = secret_pages();
    // SAFETY: none: the point is that the kernel cannot reach it.
    black_box(unsafe { pages[7].ptr().read_volatile() });
});
