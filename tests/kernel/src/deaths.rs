//! What must end the machine, and how: each of these has a machine to itself, and the host reads the report.

use core::hint::black_box;

use kernel::arch::{self, X86};
use kernel::ktest;
use kernel::memory::kspace::LargeStack;
use kernel::sync::IrqLock;
use kernel::task;
use mm::sync::{Class, SpinLock};

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let mut room = [depth; 64];
    black_box(&mut room);
    if depth == u64::MAX {
        0
    } else {
        recurse(depth + 1) + room[(depth % 64) as usize]
    }
}

extern "C" fn recurse_from_zero() {
    black_box(recurse(0));
}

ktest!(overflow_a_kernel_stack, alone, {
    black_box(recurse(0));
});

// It says which stack it is: it must not go on in the next one.
ktest!(overflow_a_large_stack, alone, {
    LargeStack::new().unwrap().run(|| {
        let here = 0u8;
        let top = (&raw const here).addr().next_multiple_of(32 << 10);
        kernel::info!("bottom: {:#x}", top - (112 << 10));
        black_box(recurse(0))
    });
});

#[inline(never)]
fn far_below_the_top() {
    let mut room = [0u8; 20 << 10];
    black_box(&mut room);
    give_up_down_there();
    black_box(&mut room);
}

#[inline(never)]
fn give_up_down_there() {
    panic!("far below")
}

ktest!(panic_in_a_large_stack, alone, {
    LargeStack::new().unwrap().run(far_below_the_top);
});

ktest!(overflow_the_boot_stack, alone, {
    // It is an idle thread's by now; its last page is as good as any.
    let (bottom, _) = kernel::memory::kspace::boot_stack();
    // SAFETY: none: whoever uses the stack is overwritten, and this test never returns.
    unsafe {
        core::arch::asm!(
            "mov rsp, {}",
            "call {}",
            "ud2",
            in(reg) bottom + 4096,
            sym recurse_from_zero,
            options(noreturn),
        )
    }
});

ktest!(fault_with_a_broken_stack, alone, {
    // SAFETY: none: the point is that the stack is unusable when the fault comes.
    unsafe { core::arch::asm!("mov rsp, 0x1000", "ud2", options(noreturn)) }
});

ktest!(panic_on_purpose, alone, panic!("on purpose"));

struct Unspeakable;

impl core::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        panic!("inner")
    }
}

ktest!(panic_while_panicking, alone, panic!("outer {Unspeakable}"));

ktest!(take_locks_in_the_wrong_order, alone, {
    let (zone, table) = (
        SpinLock::new(Class::Zone, ()),
        SpinLock::new(Class::Table, ()),
    );
    let _inner = zone.lock(X86);
    let _outer = table.lock(X86);
});

ktest!(take_one_class_twice, alone, {
    let (one, two) = (
        SpinLock::new(Class::Zone, ()),
        SpinLock::new(Class::Zone, ()),
    );
    let _first = one.lock(X86);
    let _second = two.lock(X86);
});

ktest!(sleep_with_a_spin_lock, alone, {
    let lock = SpinLock::new(Class::Zone, ());
    let _held = lock.lock(X86);
    task::yield_now();
});

ktest!(sleep_with_an_irq_lock, alone, {
    let lock = IrqLock::new(());
    let _held = lock.lock();
    task::yield_now();
});

ktest!(copy_from_user_with_a_spin_lock, alone, {
    let lock = SpinLock::new(Class::Zone, ());
    let _held = lock.lock(X86);
    let _ = arch::uaccess::copy_from_user(&mut [0; 8], 0x1000);
});

ktest!(await_acknowledgements_with_interrupts_off, alone, {
    arch::irq_disable();
    mm::sync::lockdep::may_await(X86);
});

ktest!(touch_user_memory_outside_of_uaccess, alone, {
    // SAFETY: none: with or without SMAP, nothing is mapped there and no fixup is listed.
    let byte = unsafe { (0x5000 as *const u8).read_volatile() };
    black_box(byte);
});
