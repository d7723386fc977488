//! Frames, heap and stacks: exact accounting, content, zones.

use alloc::vec::Vec;

use kernel::arch::X86;
use kernel::memory::kspace::{KernelStack, LargeStack};
use kernel::memory::{self, Aside};
use mm::addr::Order;
use mm::phys::{Frame, Owned, Use};
use mm::{Hw, Pfn};

use kernel::ktest;

fn free() -> u64 {
    memory::trim();
    X86.phys().free_frames(X86)
}

fn bytes(pfn: Pfn) -> &'static mut [u8] {
    // SAFETY: the caller owns the frame, and the direct map covers it.
    unsafe { core::slice::from_raw_parts_mut(X86.frame_ptr(pfn), 4096) }
}

ktest!(every_frame_comes_back, {
    let phys = X86.phys();
    let before = free();
    let mut held: Vec<Frame<Owned>> = Vec::with_capacity(4096);
    let with_list = phys.free_frames(X86);
    for order in [0u8, 1, 3, 5, 9, 0, 2, 4, 9] {
        for want in [Use::Kernel, Use::Movable] {
            held.push(
                phys.alloc_order(X86, Order::new(order).unwrap(), want)
                    .unwrap(),
            );
        }
    }
    let taken: u64 = held.iter().map(|frame| 1 << frame.order().get()).sum();
    assert_eq!(
        phys.free_frames(X86),
        with_list - taken,
        "what is taken is missing, and no more"
    );
    // No frame twice.
    let mut spans: Vec<(u64, u64)> = held
        .iter()
        .map(|f| (f.pfn().0, 1 << f.order().get()))
        .collect();
    spans.sort_unstable();
    assert!(
        spans
            .windows(2)
            .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
    );
    // A block is aligned to its size.
    assert!(spans.iter().all(|(start, len)| start % len == 0));
    for frame in held.drain(..) {
        phys.free(X86, frame);
    }
    drop(held);
    assert_eq!(free(), before);
});

ktest!(all_memory_can_be_taken_and_given_back, {
    let phys = X86.phys();
    let before = free();
    let mut first = Pfn(0);
    let mut count = 0u64;
    // A list through the frames themselves: nothing else is needed to hold them.
    while let Some(frame) = phys.alloc(X86, Use::Movable) {
        let pfn = frame.into_pfn();
        bytes(pfn)[..8].copy_from_slice(&first.0.to_ne_bytes());
        bytes(pfn)[8..16].copy_from_slice(&(!first.0).to_ne_bytes());
        first = pfn;
        count += 1;
    }
    assert!(count > before * 9 / 10, "{count} of {before} frames");
    while first.0 != 0 {
        let next = u64::from_ne_bytes(bytes(first)[..8].try_into().unwrap());
        let check = u64::from_ne_bytes(bytes(first)[8..16].try_into().unwrap());
        assert_eq!(check, !next, "somebody else wrote to an owned frame");
        // SAFETY: taken above, order 0, ours alone.
        phys.free(X86, unsafe { Frame::from_raw(first, Order::ZERO) });
        first = Pfn(next);
        count -= 1;
    }
    assert_eq!(count, 0);
    assert_eq!(free(), before);
    // Blocks have merged again.
    let block = phys
        .alloc_order(X86, Order::new(9).unwrap(), Use::Kernel)
        .unwrap();
    phys.free(X86, block);
});

ktest!(freed_frames_are_poisoned, {
    let phys = X86.phys();
    let pfn = phys.alloc(X86, Use::Kernel).unwrap().into_pfn();
    bytes(pfn).fill(0xa5);
    // SAFETY: taken above.
    phys.free(X86, unsafe { Frame::from_raw(pfn, Order::ZERO) });
    assert!(
        bytes(pfn).iter().all(|byte| *byte != 0xa5),
        "the old content is still there"
    );
});

ktest!(low_memory_is_low, {
    let phys = X86.phys();
    for _ in 0..50 {
        let frame = phys.alloc(X86, Use::Dma32).unwrap();
        assert!(frame.pfn().0 < 1 << 20);
        phys.free(X86, frame);
    }
});

ktest!(the_heap_gives_everything_back, {
    let before = free();
    for round in 0..3 {
        let mut held: Vec<Vec<u8>> = Vec::new();
        for i in 0..400usize {
            let mut part = Vec::new();
            part.resize(1 + i * 37 % 9000, (i + round) as u8);
            held.push(part);
        }
        for (i, part) in held.iter().enumerate() {
            assert!(part.iter().all(|byte| *byte == (i + round) as u8));
        }
    }
    let after = free();
    assert!(after + 64 >= before, "{} frames are gone", before - after);
});

ktest!(large_objects_are_made_of_single_frames, {
    let before = free();
    let phys = X86.phys();
    let give = |pfn| {
        // SAFETY: taken below, order 0, ours alone.
        phys.free(X86, unsafe { Frame::from_raw(pfn, Order::ZERO) });
    };
    // All memory, as two lists through the frames: those with an odd number and those with an even one.
    let mut lists = [Pfn(0); 2];
    while let Some(frame) = phys.alloc(X86, Use::Kernel) {
        let pfn = frame.into_pfn();
        let list = &mut lists[(pfn.0 & 1) as usize];
        bytes(pfn)[..8].copy_from_slice(&list.0.to_ne_bytes());
        *list = pfn;
    }
    let mut back = |parity: usize| {
        let pfn = lists[parity];
        if pfn.0 == 0 {
            return false;
        }
        lists[parity] = Pfn(u64::from_ne_bytes(bytes(pfn)[..8].try_into().unwrap()));
        give(pfn);
        true
    };
    // No two of them are neighbours.
    (0..2000).for_each(|_| assert!(back(1)));
    let in_pieces = phys
        .alloc_order(X86, Order::new(1).unwrap(), Use::Kernel)
        .is_none();
    let held = memory::heap::frames_held();
    let mut large = Vec::<u64>::new();
    let made = large.try_reserve_exact(5 << 17);
    large.extend(0..if made.is_ok() { 5 << 17 } else { 0 });
    let right = large.iter().enumerate().all(|(i, n)| i as u64 == *n);
    let start = large.as_ptr() as u64;
    let grown = memory::heap::frames_held() - held;
    drop(large);
    let left = memory::heap::frames_held();
    // Those that nobody uses go to who asks next, and back.
    let another = Vec::<u8>::with_capacity(1 << 20);
    let next = another.as_ptr() as u64;
    let there = memory::kspace::translate(next).is_some();
    drop(another);
    memory::trim();
    let gone = memory::kspace::translate(start).is_none();
    while back(0) || back(1) {}
    assert!(in_pieces && made.is_ok() && right);
    assert!(there && gone);
    assert!(
        grown > 5 << 8 && left == held && next == start,
        "{grown} frames, {next:x}"
    );
    // Tables of the kernel half stay.
    assert!(free() + 6 >= before, "{} frames are gone", before - free());
});

ktest!(objects_are_larger_than_any_block, {
    let before = free();
    let large = alloc::vec![7u8; 9 << 20];
    assert!(large.iter().all(|byte| *byte == 7));
    drop(large);
    // More than there are addresses for, or frames.
    for bytes in [1usize << 30, (before as usize) << 12] {
        assert!(Vec::<u8>::new().try_reserve_exact(bytes).is_err());
    }
    assert!(free() + 16 >= before, "{} frames are gone", before - free());
});

ktest!(kernel_stacks_have_guards, {
    let before = free();
    let stacks: Vec<KernelStack> = (0..40).map(|_| KernelStack::new().unwrap()).collect();
    for stack in &stacks {
        assert!(memory::kspace::translate(stack.top() - 8).is_some());
        assert!(memory::kspace::translate(stack.top() - (16 << 10)).is_some());
        assert!(
            memory::kspace::translate(stack.top() - (16 << 10) - 8).is_none(),
            "no guard"
        );
    }
    drop(stacks);
    // Tables of the kernel half stay.
    assert!(free() + 4 >= before);
});

ktest!(a_large_stack_that_is_not_made_leaves_nothing, {
    // Those that are there already do not count.
    let others: Vec<LargeStack> = (0..17).map(|_| LargeStack::new().unwrap()).collect();
    let phys = X86.phys();
    let give = |pfn| {
        // SAFETY: taken below, order 0, ours alone.
        phys.free(X86, unsafe { Frame::from_raw(pfn, Order::ZERO) });
    };
    let mut first = Pfn(0);
    while let Some(frame) = phys.alloc(X86, Use::Kernel) {
        let pfn = frame.into_pfn();
        bytes(pfn)[..8].copy_from_slice(&first.0.to_ne_bytes());
        first = pfn;
    }
    let mut back = || {
        let pfn = first;
        first = Pfn(u64::from_ne_bytes(bytes(pfn)[..8].try_into().unwrap()));
        give(pfn);
        first.0 != 0
    };
    (0..20).for_each(|_| assert!(back()));
    let before = free();
    let made = LargeStack::new().is_some();
    let after = free();
    while back() {}
    assert!(!made);
    // Tables of the kernel half stay.
    assert!(after + 2 >= before, "{} frames are gone", before - after);
    drop(others);
});

ktest!(
    the_image_is_mapped_as_it_should,
    memory::kspace::check_protection()
);

// Several mounts may.
ktest!(what_is_set_aside_is_counted, {
    let reserve = || X86.phys().reserve();
    let before = reserve();
    let first = Aside::new(100).unwrap();
    let second = Aside::new(7).unwrap();
    assert_eq!(reserve(), before + 107);
    drop(first);
    assert_eq!(reserve(), before + 7);
    assert!(Aside::new(free()).is_err());
    assert_eq!(reserve(), before + 7);
    drop(second);
    assert_eq!(reserve(), before);
});
