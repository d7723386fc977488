//! Interrupts between CPUs, time, user copies.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kernel::arch::{self, time, uaccess};
use kernel::dev::pci;
use kernel::ktest;
use kernel::task::{self, Sleep, WaitQueue};

static HEARD: AtomicU64 = AtomicU64::new(0);

fn hear() {
    HEARD.fetch_add(1 << (8 * arch::cpu_id()), Ordering::SeqCst);
}

ktest!(every_cpu_answers_a_call, {
    for round in 1..=100u64 {
        arch::run_on_all(hear);
        let heard = HEARD.load(Ordering::SeqCst);
        for cpu in 0..arch::ncpus() {
            assert_eq!(
                heard >> (8 * cpu) & 0xff,
                round,
                "CPU {cpu} in round {round}"
            );
        }
    }
});

ktest!(shootdowns_of_all_cpus_cross_without_deadlock, {
    static DONE: AtomicUsize = AtomicUsize::new(0);
    fn shooter(_: usize) {
        for _ in 0..200 {
            arch::run_on_all(|| {});
        }
        DONE.fetch_add(1, Ordering::SeqCst);
    }
    let shooters = arch::ncpus() + 1;
    for k in 0..shooters {
        task::spawn_kernel_thread("shooter", shooter, k).unwrap();
    }
    let deadline = time::now_ns() + 60_000_000_000;
    while DONE.load(Ordering::SeqCst) < shooters {
        assert!(
            time::now_ns() < deadline,
            "only {} ended",
            DONE.load(Ordering::SeqCst)
        );
        task::yield_now();
    }
});

// An answer that is so late that the initiator has halted meanwhile, every time.
ktest!(a_late_answer_is_waited_for, {
    static INITIATOR: AtomicUsize = AtomicUsize::new(0);
    static DEAF: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: usize = 50;
    fn deaf(_: usize) {
        for round in 1..=ROUNDS {
            let on = arch::irq_save();
            DEAF.store(round, Ordering::SeqCst);
            let deadline = time::now_ns() + 60_000_000_000;
            while !arch::halts_for_answers(INITIATOR.load(Ordering::SeqCst)) {
                assert!(time::now_ns() < deadline, "it does not halt");
                core::hint::spin_loop();
            }
            arch::irq_restore(on);
            while HEARD_LATE.load(Ordering::SeqCst) != round as u64 {
                core::hint::spin_loop();
            }
        }
    }
    static HEARD_LATE: AtomicU64 = AtomicU64::new(0);
    if arch::ncpus() == 1 {
        return;
    }
    // We do not give up our CPU, so the other thread gets another one.
    INITIATOR.store(arch::cpu_id(), Ordering::SeqCst);
    task::spawn_kernel_thread("deaf", deaf, 0).unwrap();
    for round in 1..=ROUNDS {
        while DEAF.load(Ordering::SeqCst) != round {
            core::hint::spin_loop();
        }
        arch::run_on_all(|| {});
        HEARD_LATE.store(round as u64, Ordering::SeqCst);
    }
});

ktest!(time_goes_forward_and_sleeps_are_long_enough, {
    let mut last = time::now_ns();
    for _ in 0..10_000 {
        let now = time::now_ns();
        assert!(now >= last);
        last = now;
    }
    let queue = WaitQueue::new();
    for ms in [1u64, 5, 20] {
        let start = time::now_ns();
        let end = queue.wait_while(Sleep::Uninterruptible, Some(start + ms * 1_000_000), || {
            true
        });
        assert!(end.is_err() && time::now_ns() - start >= ms * 1_000_000);
    }
});

ktest!(a_waker_is_never_missed, {
    static BALL: AtomicUsize = AtomicUsize::new(0);
    static QUEUE: WaitQueue = WaitQueue::new();
    const ROUNDS: usize = 2000;
    fn other(_: usize) {
        for i in 0..ROUNDS {
            let _ = QUEUE.wait_while(Sleep::Uninterruptible, None, || {
                BALL.load(Ordering::SeqCst) != 2 * i + 1
            });
            BALL.store(2 * i + 2, Ordering::SeqCst);
            QUEUE.wake_all();
        }
    }
    task::spawn_kernel_thread("other", other, 0).unwrap();
    for i in 0..ROUNDS {
        BALL.store(2 * i + 1, Ordering::SeqCst);
        QUEUE.wake_all();
        let limit = time::now_ns() + 20_000_000_000;
        let back = QUEUE.wait_while(Sleep::Uninterruptible, Some(limit), || {
            BALL.load(Ordering::SeqCst) != 2 * i + 2
        });
        assert!(back.is_ok(), "round {i}: a wake-up was lost");
    }
});

ktest!(a_wake_up_for_nothing_costs_nobody_the_next_one, {
    static ROUND: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    static QUEUE: WaitQueue = WaitQueue::new();
    static BACK: WaitQueue = WaitQueue::new();
    const ROUNDS: usize = 2000;
    fn other(_: usize) {
        for i in 1..=ROUNDS {
            let _ = QUEUE.wait_while(Sleep::Uninterruptible, None, || {
                ROUND.load(Ordering::SeqCst) < i
            });
            SEEN.store(i, Ordering::SeqCst);
            BACK.wake_all();
        }
    }
    task::spawn_kernel_thread("other", other, 0).unwrap();
    for i in 1..=ROUNDS {
        // The waiter enters its queue somewhere in here.
        for _ in 0..i % 64 {
            QUEUE.wake_all();
        }
        ROUND.store(i, Ordering::SeqCst);
        QUEUE.wake_all();
        let limit = time::now_ns() + 20_000_000_000;
        let back = BACK.wait_while(Sleep::Uninterruptible, Some(limit), || {
            SEEN.load(Ordering::SeqCst) < i
        });
        assert!(back.is_ok(), "round {i}: a wake-up was lost");
    }
});

ktest!(bad_user_addresses_are_refused, {
    let mut buffer = [0u8; 64];
    for address in [
        0u64,
        8,
        4096,
        0x10_0000_0000,
        (1 << 47) - 64,
        (1 << 47) - 1,
        1 << 47,
        1 << 63,
        u64::MAX - 63,
        u64::MAX,
    ] {
        assert!(
            uaccess::copy_from_user(&mut buffer, address).is_err(),
            "read of {address:#x}"
        );
        assert!(
            uaccess::copy_to_user(address, &buffer).is_err(),
            "write to {address:#x}"
        );
        assert!(uaccess::user_load_u32(address & !3).is_err());
        assert!(uaccess::user_load_u32_nofault(address & !3).is_err());
        assert!(uaccess::user_cmpxchg_u32(address & !3, 0, 1).is_err());
        assert!(uaccess::read_cstr(address, 100).is_err());
        assert_eq!(uaccess::clear_user(address, 64), 64);
    }
    // The kernel's own memory is not the user's.
    let own = buffer.as_ptr() as u64;
    assert!(uaccess::copy_to_user(own, &[1; 8]).is_err());
    assert_eq!(buffer, [0; 64]);
    // Interrupts are still on, and we are still alive.
    assert!(arch::irqs_on());
});

// A line is shared: nobody but drivers' devices may hold it up, and here those have messages.
ktest!(nobody_holds_up_a_line, {
    let (command, no_line) = (4, 1 << 10);
    let mut functions = 0;
    pci::each(|function| {
        functions += 1;
        let told = function.read16(command) & no_line != 0;
        assert!(told, "{function} may");
    });
    assert!(functions > 0);
});

// Numbers of windows come from devices, which may say anything.
ktest!(windows_that_no_function_has, {
    let mut functions = 0;
    pci::each(|function| {
        functions += 1;
        for n in 6..=u8::MAX {
            assert!(function.window(n).is_none(), "{function}: window {n}");
        }
    });
    assert!(functions > 0);
});
