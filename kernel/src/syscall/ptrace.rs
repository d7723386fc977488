//! `ptrace`: the requests' numbers and their user memory. What they do is in `task::ptrace`.

use alloc::vec::Vec;
use linux_raw_sys::general;
use linux_raw_sys::ptrace as sys;

use super::Calls;
use crate::SysResult;
use crate::arch::TrapFrame;
use crate::arch::fpu::FpuState;
use crate::arch::uaccess::{copy_from_user, copy_to_user, get_user, put_user};
use crate::task::ptrace::attach;
use crate::task::ptrace::regs::{self, FPREGS, NT_PRFPREG, NT_PRSTATUS, NT_X86_XSTATE, REGS};
use crate::task::ptrace::request::{self, How};
use crate::task::signal::{NSIG, SigInfo};
use mm::Errno;

pub const CALLS: Calls = &[(general::__NR_ptrace, ptrace)];

fn ptrace(f: &mut TrapFrame) -> SysResult {
    let (request, tid, addr, data) = (f.arg(0), f.arg(1) as u32, f.arg(2), f.arg(3));
    let request = u32::try_from(request).unwrap_or(u32::MAX);
    match request {
        sys::PTRACE_TRACEME => attach::trace_me()?,
        sys::PTRACE_ATTACH => attach::attach(tid, None)?,
        sys::PTRACE_SEIZE => {
            if addr != 0 {
                return Err(Errno::EIO);
            }
            let options = attach::options(data).ok_or(Errno::EIO)?;
            attach::attach(tid, Some(options))?;
        }
        sys::PTRACE_DETACH => attach::detach(tid, signal(tid, data)?)?,
        sys::PTRACE_CONT => request::resume(tid, How::Free, signal(tid, data)?)?,
        sys::PTRACE_SYSCALL => request::resume(tid, How::ToCall, signal(tid, data)?)?,
        sys::PTRACE_SINGLESTEP => request::resume(tid, How::Step, signal(tid, data)?)?,
        sys::PTRACE_KILL => request::kill(tid)?,
        sys::PTRACE_INTERRUPT => request::interrupt(tid)?,
        sys::PTRACE_LISTEN => request::listen(tid)?,
        sys::PTRACE_PEEKTEXT | sys::PTRACE_PEEKDATA => {
            let mut word = [0; 8];
            let space = request::space(tid)?;
            if space.peek(addr, &mut word) != Ok(word.len()) {
                return Err(Errno::EIO);
            }
            put_user(data, &u64::from_le_bytes(word))?;
        }
        sys::PTRACE_POKETEXT | sys::PTRACE_POKEDATA => {
            let word = data.to_le_bytes();
            let space = request::space(tid)?;
            if space.poke(addr, &word) != Ok(word.len()) {
                return Err(Errno::EIO);
            }
        }
        sys::PTRACE_PEEKUSR => put_user(data, &regs::peek(tid, addr)?)?,
        sys::PTRACE_POKEUSR => regs::poke(tid, addr, data)?,
        sys::PTRACE_GETREGS => put_user(data, &regs::get(tid)?)?,
        sys::PTRACE_SETREGS => {
            request::with_stopped(tid, |_, _, _| ())?;
            regs::set(tid, &get_user::<[u64; REGS]>(data)?)?;
        }
        sys::PTRACE_GETFPREGS => copy_to_user(data, &regs::xstate(tid)?[..FPREGS])?,
        sys::PTRACE_SETFPREGS => {
            request::with_stopped(tid, |_, _, _| ())?;
            regs::set_xstate(tid, &get_user::<[u8; FPREGS]>(data)?)?;
        }
        sys::PTRACE_GETREGSET => get_set(tid, addr, data)?,
        sys::PTRACE_SETREGSET => set_set(tid, addr, data)?,
        sys::PTRACE_SETOPTIONS | sys::PTRACE_OLDSETOPTIONS => {
            request::with_stopped(tid, |_, _, _| ())?;
            request::set_options(tid, attach::options(data).ok_or(Errno::EINVAL)?)?;
        }
        sys::PTRACE_GETEVENTMSG => put_user(data, &request::message(tid)?)?,
        sys::PTRACE_GETSIGINFO => copy_to_user(data, &request::siginfo(tid)?.bytes())?,
        sys::PTRACE_SETSIGINFO => {
            request::with_stopped(tid, |_, _, _| ())?;
            request::set_siginfo(tid, SigInfo::from_words(get_user(data)?))?;
        }
        sys::PTRACE_PEEKSIGINFO => return peek_siginfo(tid, addr, data),
        sys::PTRACE_GETSIGMASK => {
            request::with_stopped(tid, |_, _, _| ())?;
            sized_mask(addr)?;
            put_user(data, &request::mask(tid)?)?;
        }
        sys::PTRACE_SETSIGMASK => {
            request::with_stopped(tid, |_, _, _| ())?;
            sized_mask(addr)?;
            request::set_mask(tid, get_user(data)?)?;
        }
        sys::PTRACE_GET_SYSCALL_INFO => {
            let (bytes, len) = request::call_info(tid)?;
            copy_to_user(
                data,
                &bytes[..len.min(usize::try_from(addr).unwrap_or(len))],
            )?;
            return Ok(len);
        }
        _ => {
            request::with_stopped(tid, |_, _, _| ())?;
            return Err(Errno::EIO);
        }
    }
    Ok(0)
}

/// The signal that a tracee goes on with; asked after the tracee itself.
fn signal(tid: u32, data: u64) -> Result<u32, Errno> {
    request::with_stopped(tid, |_, _, _| ())?;
    u32::try_from(data)
        .ok()
        .filter(|&n| n <= NSIG)
        .ok_or(Errno::EIO)
}

fn sized_mask(size: u64) -> Result<(), Errno> {
    if size == 8 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// `struct iovec` of a register set, and how much of the set it takes.
struct Set {
    iov: u64,
    base: u64,
    len: usize,
}

fn set_at(tid: u32, kind: u64, iov: u64) -> Result<(u32, Set), Errno> {
    request::with_stopped(tid, |_, _, _| ())?;
    let [base, len] = get_user::<[u64; 2]>(iov)?;
    let kind = u32::try_from(kind).map_err(|_| Errno::EINVAL)?;
    let whole = match kind {
        NT_PRSTATUS => REGS * 8,
        NT_PRFPREG => FPREGS,
        NT_X86_XSTATE if FpuState::size() > FPREGS => FpuState::size(),
        _ => return Err(Errno::EINVAL),
    };
    if !len.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let len = usize::try_from(len).unwrap_or(whole).min(whole);
    Ok((kind, Set { iov, base, len }))
}

fn get_set(tid: u32, kind: u64, iov: u64) -> Result<(), Errno> {
    let (kind, set) = set_at(tid, kind, iov)?;
    if kind == NT_PRSTATUS {
        let mut bytes = [0; REGS * 8];
        for (to, word) in bytes.chunks_exact_mut(8).zip(regs::get(tid)?) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        copy_to_user(set.base, &bytes[..set.len])?;
    } else {
        copy_to_user(set.base, &regs::xstate(tid)?[..set.len])?;
    }
    put_user(set.iov + 8, &(set.len as u64))
}

fn set_set(tid: u32, kind: u64, iov: u64) -> Result<(), Errno> {
    let (kind, set) = set_at(tid, kind, iov)?;
    if kind == NT_PRSTATUS {
        let mut words = [0; REGS];
        let n = set.len / 8;
        for (i, word) in words[..n].iter_mut().enumerate() {
            *word = get_user(set.base.wrapping_add(8 * i as u64))?;
        }
        regs::set(tid, &words[..n])?;
    } else {
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(FpuState::size())
            .map_err(|_| Errno::ENOMEM)?;
        if kind == NT_PRFPREG {
            // A part replaces a part.
            bytes.extend_from_slice(&regs::xstate(tid)?[..FPREGS]);
        } else {
            bytes.resize(set.len, 0);
        }
        copy_from_user(&mut bytes[..set.len], set.base)?;
        if kind == NT_X86_XSTATE && set.len != FpuState::size() {
            return Err(Errno::EFAULT);
        }
        regs::set_xstate(tid, &bytes)?;
    }
    put_user(set.iov + 8, &(set.len as u64))
}

/// Copies of what is pending, oldest first; how many.
fn peek_siginfo(tid: u32, args: u64, to: u64) -> SysResult {
    request::with_stopped(tid, |_, _, _| ())?;
    let [first, how] = get_user::<[u64; 2]>(args)?;
    let (flags, count) = (how as u32, (how >> 32) as i32);
    if flags & !sys::PTRACE_PEEKSIGINFO_SHARED != 0 || count < 0 {
        return Err(Errno::EINVAL);
    }
    let shared = flags & sys::PTRACE_PEEKSIGINFO_SHARED != 0;
    let mut n = 0;
    while n < count as u64 {
        let Some(info) = request::pending(tid, shared, first.saturating_add(n))? else {
            break;
        };
        if let Err(e) = copy_to_user(to.wrapping_add(n * 128), &info.bytes()) {
            return if n > 0 { Ok(n as usize) } else { Err(e) };
        }
        n += 1;
        if crate::task::signal_pending() {
            break;
        }
        crate::task::cond_resched();
    }
    Ok(n as usize)
}
