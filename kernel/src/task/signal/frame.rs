//! Linux's `rt_sigframe`, pushed for a handler and taken back by `rt_sigreturn`.
//!
//! ```text
//! 8 mod 16 -> +0    pretcode: the restorer's address (the handler's return address)
//!             +8    ucontext: flags, link, stack(24), sigcontext(256), mask
//!             +312  siginfo (128)
//! above, 64-aligned: the XSAVE area with Linux's magic words at its bytes 464.. and at its end
//! ```

use alloc::vec::Vec;

use mm::Errno;

use super::{Action, SigInfo};
use crate::SysResult;
use crate::arch::frame::{USER_CS, USER_DS};
use crate::arch::uaccess::{copy_from_user, copy_to_user, get_user, put_user};
use crate::arch::{TrapFrame, fpu};
use crate::task::current;
use crate::task::switch::with_fpu;
use crate::task::thread::{AltStack, Private};
use linux_raw_sys::general as sys;

const FRAME_SIZE: u64 = 8 + 304 + 128;
const UC_FP_XSTATE: u64 = 1;
const UC_SIGCONTEXT_SS: u64 = 2;
const UC_STRICT_RESTORE_SS: u64 = 4;
const FP_XSTATE_MAGIC1: u32 = 0x4650_5853;
const FP_XSTATE_MAGIC2: u32 = 0x4650_5845;
const REDZONE: u64 = 128;
/// Flags user code may set: AC OF DF TF SF ZF AF PF CF RF.
const USER_FLAGS: u64 = 0x5_0dd5;
const DF_TF_RF: u64 = 0x1_0500;
/// Extended states up to this size are copied by way of the stack.
const STACK_BUF: usize = 2816;
const SW_BYTES: usize = 464;
pub const SS_AUTODISARM: u32 = 1 << 31;
/// The smallest alternate stack (AT_MINSIGSTKSZ reports the real need).
pub const MINSIGSTKSZ: u64 = 2048;

/// What a frame needs at most, for AT_MINSIGSTKSZ.
pub fn min_stack() -> u64 {
    FRAME_SIZE + REDZONE + fpu::FpuState::size() as u64 + 4 + 64 + 16
}

/// Whether `sp` is on the alternate stack.
pub fn on_altstack(alt: &AltStack, sp: u64) -> bool {
    alt.flags & SS_AUTODISARM == 0 && alt.size != 0 && sp > alt.sp && sp - alt.sp <= alt.size
}

/// `ss_flags` as `sigaltstack` reports them.
pub fn altstack_state(alt: &AltStack, sp: u64) -> u32 {
    if alt.size == 0 {
        sys::SS_DISABLE
    } else if on_altstack(alt, sp) {
        sys::SS_ONSTACK
    } else {
        0
    }
}

/// Words of the ucontext and siginfo; the register order is `struct sigcontext_64`.
fn words(
    regs: &TrapFrame,
    own: (&AltStack, [u64; 3]),
    mask: u64,
    fpstate: u64,
    restorer: u64,
    info: &SigInfo,
) -> [u64; 55] {
    let (alt, [trapno, err, cr2]) = own;
    let mut w = [0u64; 55];
    w[0] = restorer;
    w[1] = UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS;
    w[3] = alt.sp;
    w[4] = (altstack_state(alt, regs.rsp) | alt.flags & SS_AUTODISARM) as u64;
    w[5] = alt.size;
    let r = regs;
    let gregs = [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx,
        r.rax, r.rcx, r.rsp, r.rip, r.rflags,
    ];
    w[6..24].copy_from_slice(&gregs);
    w[24] = USER_CS | USER_DS << 48;
    w[25] = err;
    w[26] = trapno;
    w[27] = mask;
    w[28] = cr2;
    w[29] = fpstate;
    w[38] = mask;
    w[39..45].copy_from_slice(info.words());
    w
}

fn as_bytes(w: &[u64]) -> &[u8] {
    // SAFETY: integers as bytes, same extent.
    unsafe { core::slice::from_raw_parts(w.as_ptr().cast(), core::mem::size_of_val(w)) }
}

/// Builds the frame for a handler and points `regs` at it. On error user memory may be half written
/// and `regs` is as it was.
pub fn push(regs: &mut TrapFrame, info: &SigInfo, action: &Action, mask: u64) -> Result<(), Errno> {
    if action.flags & sys::SA_RESTORER as u64 == 0 {
        return Err(Errno::EFAULT);
    }
    let me = current();
    // SAFETY: the running thread's own fields.
    let own = unsafe { me.mine() };
    let alt = own.altstack;
    let was_on_alt = on_altstack(&alt, regs.rsp);
    let switch = action.flags & sys::SA_ONSTACK as u64 != 0 && !was_on_alt && alt.size != 0;
    let mut sp = if switch {
        alt.sp.wrapping_add(alt.size)
    } else {
        regs.rsp.wrapping_sub(REDZONE)
    };
    let size = fpu::FpuState::size();
    sp = sp.wrapping_sub(size as u64 + 4) & !63;
    let fpstate = sp;
    let frame = (sp.wrapping_sub(FRAME_SIZE) & !15).wrapping_sub(8);
    if (was_on_alt || switch) && frame <= alt.sp {
        return Err(Errno::EFAULT);
    }
    if sp > regs.rsp && !switch {
        return Err(Errno::EFAULT);
    }
    // The registers go to memory first; that area changes only if we are switched away from, and then
    // to the same values, all but PKRU.
    with_fpu(|_| ((), false));
    // The stack may have any key: nothing is refused until the handler begins, with a new program's rights.
    let pkru = fpu::FpuState::pkru_at().map(|at| (at as u64, fpu::pkru()));
    if pkru.is_some() {
        fpu::set_pkru(0);
    }
    let pushed = write_frame(regs, info, action, mask, own, fpstate, frame, pkru);
    if pushed.is_err() {
        if let Some((_, rights)) = pkru {
            fpu::set_pkru(rights);
        }
        return pushed;
    }
    if alt.flags & SS_AUTODISARM != 0 {
        own.altstack = AltStack::NONE;
    }
    with_fpu(|st| {
        st.reset();
        ((), true)
    });
    regs.rdi = info.signo() as u64;
    regs.rsi = frame + 312;
    regs.rdx = frame + 8;
    regs.rax = 0;
    regs.rsp = frame;
    regs.rip = action.handler;
    regs.rflags &= !DF_TF_RF;
    regs.cs = USER_CS;
    regs.ss = USER_DS;
    Ok(())
}

/// Extended state to `fpstate`, the rest to `frame`. `pkru`: where that register is, and what it was.
#[allow(clippy::too_many_arguments, reason = "the frame's parts")]
fn write_frame(
    regs: &TrapFrame,
    info: &SigInfo,
    action: &Action,
    mask: u64,
    own: &Private,
    fpstate: u64,
    frame: u64,
    pkru: Option<(u64, u32)>,
) -> Result<(), Errno> {
    let size = fpu::FpuState::size();
    // SAFETY: the running thread's own state; only read here.
    if let Some(state) = unsafe { &*current().fpu.ptr() } {
        let bytes = state.bytes();
        let mut legacy = [0u8; 512];
        legacy.copy_from_slice(&bytes[..512]);
        legacy[SW_BYTES..512].fill(0);
        legacy[SW_BYTES..SW_BYTES + 4].copy_from_slice(&FP_XSTATE_MAGIC1.to_le_bytes());
        legacy[SW_BYTES + 4..SW_BYTES + 8].copy_from_slice(&(size as u32 + 4).to_le_bytes());
        legacy[SW_BYTES + 8..SW_BYTES + 16].copy_from_slice(&fpu::xfeatures().to_le_bytes());
        legacy[SW_BYTES + 16..SW_BYTES + 20].copy_from_slice(&(size as u32).to_le_bytes());
        copy_to_user(fpstate, &legacy)?;
        copy_to_user(fpstate + 512, &bytes[512..fpu::FpuState::front().max(512)])?;
        if let Some((at, rights)) = pkru {
            let mut saved = [0u8; 8];
            saved.copy_from_slice(&bytes[512..520]);
            put_user(fpstate + 512, &(u64::from_le_bytes(saved) | fpu::PKRU_BIT))?;
            put_user(fpstate + at, &u64::from(rights))?;
        }
        put_user(fpstate + size as u64, &FP_XSTATE_MAGIC2)?;
    }
    let w = words(
        regs,
        (&own.altstack, own.trap),
        mask,
        fpstate,
        action.restorer,
        info,
    );
    copy_to_user(frame, as_bytes(&w))
}

/// `rt_sigreturn`: everything back as the frame says; a frame that cannot be read is SIGSEGV.
pub fn sigreturn(regs: &mut TrapFrame) -> SysResult {
    let result = pop(regs);
    crate::arch::full_frame_return();
    match result {
        Ok(()) => Ok(regs.rax as usize),
        Err(_) => {
            super::deliver::force(SigInfo::kernel(super::SIGSEGV), false);
            Ok(0)
        }
    }
}

fn pop(regs: &mut TrapFrame) -> Result<(), Errno> {
    let frame = regs.rsp.wrapping_sub(8);
    let mut w = [0u64; 39];
    {
        // SAFETY: integers as bytes, same extent.
        let bytes = unsafe { core::slice::from_raw_parts_mut(w.as_mut_ptr().cast::<u8>(), 39 * 8) };
        copy_from_user(bytes, frame)?;
    }
    let g = &w[6..24];
    let (flags, segments) = (g[17], w[24]);
    super::send::set_blocked(w[38]);
    // The registers come first: what is wrong with the rest is a fault at the place that the frame names, so that a
    // handler of it can go on.
    [
        regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15, regs.rdi,
        regs.rsi, regs.rbp, regs.rbx, regs.rdx, regs.rax, regs.rcx, regs.rsp, regs.rip,
    ] = g[..17].try_into().map_err(|_| Errno::EFAULT)?;
    regs.rflags = regs.rflags & !USER_FLAGS | flags & USER_FLAGS;
    regs.cs = USER_CS;
    regs.ss = USER_DS;
    regs.orig_rax = u64::MAX;
    // Other segments than a program's own do not exist here.
    let (cs, ss) = (segments & 0xffff | 3, segments >> 48 | 3);
    if cs != USER_CS || w[1] & UC_STRICT_RESTORE_SS != 0 && ss != USER_DS {
        return Err(Errno::EFAULT);
    }
    restore_fpu(w[29])?;
    // A stack description that sigaltstack would refuse is ignored, as Linux does.
    let _ = set_altstack(w[3], w[4] as u32, w[5], regs.rsp);
    Ok(())
}

fn restore_fpu(at: u64) -> Result<(), Errno> {
    if at == 0 {
        with_fpu(|st| {
            st.reset();
            ((), true)
        });
        return Ok(());
    }
    let size = fpu::FpuState::size();
    let mut on_stack = [0u8; STACK_BUF];
    let mut on_heap = Vec::new();
    let buf: &mut [u8] = if size <= STACK_BUF {
        &mut on_stack[..size]
    } else {
        on_heap.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
        on_heap.resize(size, 0);
        &mut on_heap
    };
    copy_from_user(&mut buf[..512], at)?;
    let word = |b: &[u8], at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let (magic1, extended, xsize) = (
        word(buf, SW_BYTES),
        word(buf, SW_BYTES + 4),
        word(buf, SW_BYTES + 16),
    );
    let xsave = magic1 == FP_XSTATE_MAGIC1
        && (576..=size as u32).contains(&xsize)
        && extended >= xsize
        && get_user::<u32>(at + xsize as u64).is_ok_and(|m| m == FP_XSTATE_MAGIC2);
    if xsave {
        // What is in use of it: up to AVX, and PKRU alone.
        let front = (xsize as usize).min(fpu::FpuState::front());
        copy_from_user(&mut buf[512..front], at + 512)?;
        if let Some(pkru) = fpu::FpuState::pkru_at()
            && pkru + 8 <= xsize as usize
        {
            copy_from_user(&mut buf[pkru..pkru + 8], at + pkru as u64)?;
        }
    } else if size >= 576 {
        // An FXSAVE image: x87 and SSE only.
        buf[512..].fill(0);
        buf[512] = 3;
    }
    // Linux keeps its own words in the reserved bytes; the CPU wants none.
    buf[SW_BYTES..512].fill(0);
    with_fpu(|st| {
        let r = st.load_from(buf);
        if r.is_err() {
            st.reset();
        }
        (r, true)
    })
    .unwrap_or(Ok(()))
}

/// Sets the alternate stack of the running thread, whose stack pointer is `sp`.
pub fn set_altstack(base: u64, flags: u32, size: u64, sp: u64) -> Result<(), Errno> {
    let me = current();
    // SAFETY: the running thread's own fields.
    let own = unsafe { me.mine() };
    if on_altstack(&own.altstack, sp) {
        return Err(Errno::EPERM);
    }
    let mode = flags & !SS_AUTODISARM;
    if mode != sys::SS_DISABLE && mode != sys::SS_ONSTACK && mode != 0 {
        return Err(Errno::EINVAL);
    }
    own.altstack = if mode == sys::SS_DISABLE {
        AltStack::NONE
    } else {
        if size < MINSIGSTKSZ {
            return Err(Errno::ENOMEM);
        }
        AltStack {
            sp: base,
            flags: flags & SS_AUTODISARM,
            size,
        }
    };
    Ok(())
}
