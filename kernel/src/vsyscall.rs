//! The gate page (GATE-1): three calls at fixed addresses in the kernel's half, as programs made them before the vDSO.
//!
//! As on Linux, `vsyscall=` chooses: `xonly` (unless said otherwise) has no page there, a call is a fetch that faults
//! and is done here, and nobody reads it; `emulate` has a page that everybody may read, `mm::gup` too (GATE-2); with `none`
//! the addresses are like any other.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use linux_raw_sys::general as sys;
use mm::{Errno, Pfn};

use crate::arch::uaccess::get_user;
use crate::arch::{TrapFrame, X86};
use crate::memory::{cmdline, direct, kspace};
use crate::task::signal::{self, SigInfo};
use mm::phys::{Hw, Use};

/// Where it is.
pub const PAGE: u64 = 0xffff_ffff_ff60_0000;
/// Offset of each call, and the number of the system call that does the same.
const CALLS: [(u64, u32); 3] = [
    (0, sys::__NR_gettimeofday),
    (0x400, sys::__NR_time),
    (0x800, sys::__NR_getcpu),
];

static PRESENT: AtomicBool = AtomicBool::new(false);
static READABLE: AtomicBool = AtomicBool::new(false);

/// Before the first user space is made.
pub fn init() {
    let mode = cmdline("vsyscall");
    PRESENT.store(mode != Some("none"), Relaxed);
    if mode == Some("emulate") {
        let page = make_page().expect("the gate page");
        kspace::map_gate(PAGE, page).expect("tables of the gate page");
        READABLE.store(true, Relaxed);
    }
}

/// `mov eax, NUMBER; syscall; ret` for each call, and traps.
fn make_page() -> Option<Pfn> {
    let frame = X86.phys().alloc(X86, Use::Kernel)?.zero(X86).into_pfn();
    // SAFETY: a fresh frame that is never freed; nobody has it yet.
    let bytes = unsafe { core::slice::from_raw_parts_mut(direct(frame.0 << 12) as *mut u8, 4096) };
    bytes.fill(0xcc);
    for (at, number) in CALLS {
        let [a, b, c, d] = number.to_le_bytes();
        let code = [0x48, 0xc7, 0xc0, a, b, c, d, 0x0f, 0x05, 0xc3];
        bytes[at as usize..][..code.len()].copy_from_slice(&code);
    }
    Some(frame)
}

/// Whether there is one, and whether it can be read.
pub fn mode() -> Option<bool> {
    PRESENT.load(Relaxed).then(|| READABLE.load(Relaxed))
}

/// A fetch from `at` faulted: does the call that this is. `false`: not in the page, or a pointer of the program's that
/// leads nowhere.
#[cold]
pub fn call(frame: &mut TrapFrame, at: u64) -> bool {
    if !PRESENT.load(Relaxed) || at & !0xfff != PAGE || frame.rip != at {
        return false;
    }
    let number = CALLS.iter().find(|(offset, _)| at == PAGE + offset);
    let (Some((_, number)), Ok(back)) = (number, get_user::<u64>(frame.rsp)) else {
        signal::force(SigInfo::kernel(sys::SIGSEGV), false);
        return true;
    };
    frame.orig_rax = u64::from(*number);
    crate::syscall::dispatch(frame);
    frame.orig_rax = u64::MAX;
    if frame.rax == Errno::EFAULT.as_ret() {
        return false;
    }
    // Where to is the program's word, and need not be an address at all.
    crate::arch::full_frame_return();
    frame.rip = back;
    frame.rsp = frame.rsp.wrapping_add(8);
    true
}
