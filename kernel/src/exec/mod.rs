//! Running a program: everything that can fail is done beside the old image; then the other threads
//! end, the new space takes the old one's place, and its stack is written.

pub mod args;
pub mod elf;
pub mod layout;
mod load;
pub mod script;
pub mod stack;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use mm::{Errno, USER_END};

use crate::SysResult;
use crate::arch::uaccess::clear_user;
use crate::arch::{self, TrapFrame};
use crate::fs::File;
use crate::task::process::RLIMIT_STACK;
use crate::task::signal::{self, SIGSEGV};
use crate::task::{Space, Thread, current, dethread, exit, ptrace};
use args::Strings;
use layout::{Layout, Sizes};
use linux_raw_sys::general as sys;
use load::Loaded;
use script::{SCRIPT_LINE, script_line};

/// Paths start from the working directory.
pub const CWD: i32 = sys::AT_FDCWD;
/// Interpreters of interpreters.
const MAX_SCRIPTS: usize = 5;
/// The stack's first size, before it grows.
const STACK_SIZE: u64 = 0x21000;
/// RDFSBASE and its kind work in user mode.
const HWCAP2_FSGSBASE: u64 = 2;
const MAX_ARG_BYTES: u64 = 6 << 20;

/// `execve` and `execveat`, with the strings still in user memory.
pub fn exec_user(
    frame: &mut TrapFrame,
    dirfd: i32,
    path: Vec<u8>,
    argv: u64,
    envp: u64,
    flags: u32,
) -> SysResult {
    let follow = flags & sys::AT_SYMLINK_NOFOLLOW == 0;
    let file = crate::fs::open_exec(dirfd, &path, follow, flags & sys::AT_EMPTY_PATH != 0)?;
    let limit = arg_limit();
    let mut args = Strings::new(limit);
    args.push_user_array(argv)?;
    if args.is_empty() {
        args.push(b"")?;
    }
    let mut env = Strings::new(limit);
    env.push_user_array(envp)?;
    let name = if dirfd != sys::AT_FDCWD && path.first() != Some(&b'/') {
        let mut n = alloc::format!("/dev/fd/{dirfd}").into_bytes();
        if !path.is_empty() {
            n.push(b'/');
            n.extend_from_slice(&path);
        }
        n
    } else {
        path
    };
    exec(frame, file, name, args, env)
}

/// For the first program, started by the kernel.
pub fn exec_kernel(
    frame: &mut TrapFrame,
    path: &[u8],
    argv: &[&[u8]],
    envp: &[&[u8]],
) -> Result<(), Errno> {
    let file = crate::fs::open_exec(sys::AT_FDCWD, path, true, false)?;
    let (mut args, mut env) = (Strings::new(arg_limit()), Strings::new(arg_limit()));
    argv.iter().try_for_each(|a| args.push(a))?;
    envp.iter().try_for_each(|e| env.push(e))?;
    exec(frame, file, path.to_vec(), args, env).map(drop)
}

fn arg_limit() -> usize {
    let stack = current().process.limit(RLIMIT_STACK).soft;
    (stack / 4).clamp(128 << 10, MAX_ARG_BYTES) as usize
}

fn exec(
    frame: &mut TrapFrame,
    mut file: Arc<File>,
    name: Vec<u8>,
    mut args: Strings,
    env: Strings,
) -> SysResult {
    crate::memory::headroom()?;
    let me = current();
    let mut script = name.clone();
    let mut head = [0u8; SCRIPT_LINE];
    let mut scripts = 0;
    let n = loop {
        let n = read_some(&file, 0, &mut head)?;
        if !head[..n].starts_with(b"#!") {
            break n;
        }
        scripts += 1;
        if scripts > MAX_SCRIPTS {
            return Err(Errno::ELOOP);
        }
        let (interp, arg) = script_line(&head[..n])?;
        let mut new = Strings::new(arg_limit());
        new.push(interp)?;
        if let Some(arg) = arg {
            new.push(arg)?;
        }
        new.push(&script)?;
        new.append(&args, 1)?;
        args = new;
        script = interp.to_vec();
        file = crate::fs::open_exec(sys::AT_FDCWD, interp, true, false)?;
    };
    let loaded = load::load(
        &file,
        &head[..n],
        &me.process.limits(),
        stack_need(&args, &env, &name),
    )?;
    me.note_user_regs(frame);
    let old_tid = me.tid();
    commit(me, file, &name, &loaded)?;
    // No way back: what fails now kills.
    let result = fill(me, frame, &loaded, &args, &env, &name);
    if result.is_err() {
        drop(loaded);
        drop((args, env, name, script));
        exit::exit_group(SIGSEGV);
    }
    ptrace::stop::at_exec(frame, old_tid);
    Ok(0)
}

/// Bytes of stack that exec itself will write.
fn stack_need(args: &Strings, env: &Strings, execfn: &[u8]) -> u64 {
    let words = args.count() + env.count() + 2 * 24 + 8;
    (args.len() + env.len() + execfn.len() + words * 8 + 256) as u64
}

fn read_some(file: &File, at: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    file.read_exact_at(at, buf)
}

/// The point of no return: this thread alone is left, and has the new space.
fn commit(me: &Thread, file: Arc<File>, name: &[u8], loaded: &Loaded) -> Result<(), Errno> {
    let files = if Arc::strong_count(me.files()) > 1 {
        Some(Arc::new(me.files().try_clone()?))
    } else {
        None
    };
    dethread::dethread(me)?;
    let p = &*me.process;
    dethread::replace_space(me, loaded.space.clone());
    if let Some(files) = files {
        drop(me.set_files(Some(files)));
    }
    me.files().close_on_exec();
    let actions = {
        let s = p.sig.lock();
        s.actions.clone()
    };
    let fresh = actions.after_exec();
    let old = core::mem::replace(&mut p.sig.lock().actions, fresh);
    drop(old);
    dethread::reset_thread(me);
    let base = name.rsplit(|&b| b == b'/').next().unwrap_or(name);
    me.set_comm(base);
    drop(p.set_exe(Some(file)));
    p.executed();
    Ok(())
}

/// Writes what the new program finds in its memory, and its first registers.
fn fill(
    me: &Thread,
    frame: &mut TrapFrame,
    loaded: &Loaded,
    args: &Strings,
    env: &Strings,
    execfn: &[u8],
) -> Result<(), Errno> {
    for &(start, end) in &loaded.clear {
        if clear_user(start, (end - start) as usize) != 0 {
            return Err(Errno::EFAULT);
        }
    }
    let creds = me.process.creds();
    let mut execfn_z = execfn.to_vec();
    execfn_z.push(0);
    let mut auxv = [(0u64, 0u64); 20];
    let sizes = Sizes {
        argc: args.count(),
        envc: env.count(),
        arg_bytes: args.len(),
        env_bytes: env.len(),
        execfn_bytes: execfn_z.len(),
        auxv: auxv.len(),
    };
    let l: Layout = layout::layout(USER_END, loaded.stack_bottom, &sizes).ok_or(Errno::E2BIG)?;
    let pairs = [
        (
            stack::AT_HWCAP,
            u64::from(core::arch::x86_64::__cpuid(1).edx),
        ),
        (stack::AT_PAGESZ, 4096),
        (stack::AT_CLKTCK, 100),
        (stack::AT_PHDR, loaded.phdr),
        (stack::AT_PHENT, elf::PHDR_SIZE as u64),
        (stack::AT_PHNUM, loaded.phnum as u64),
        (stack::AT_BASE, loaded.interp_base),
        (stack::AT_FLAGS, 0),
        (stack::AT_ENTRY, loaded.program_entry),
        (stack::AT_UID, creds.uid as u64),
        (stack::AT_EUID, creds.euid as u64),
        (stack::AT_GID, creds.gid as u64),
        (stack::AT_EGID, creds.egid as u64),
        (stack::AT_SECURE, 0),
        (stack::AT_RANDOM, l.random),
        (
            stack::AT_HWCAP2,
            if arch::features().fsgsbase() {
                HWCAP2_FSGSBASE
            } else {
                0
            },
        ),
        (stack::AT_EXECFN, l.execfn),
        (stack::AT_PLATFORM, l.platform),
        (stack::AT_MINSIGSTKSZ, signal::frame::min_stack()),
        (stack::AT_NULL, 0),
    ];
    for (slot, (tag, value)) in auxv.iter_mut().zip(pairs) {
        *slot = (tag as u64, value);
    }
    for (to, (tag, value)) in loaded.space.auxv.lock().chunks_exact_mut(2).zip(&auxv) {
        to.copy_from_slice(&[*tag, *value]);
    }
    let mut random = [0u8; 16];
    crate::fs::random::fill(&mut random);
    crate::arch::uaccess::copy_to_user(l.execfn, &execfn_z)?;
    env.write_to(l.env_strings)?;
    args.write_to(l.arg_strings)?;
    stack::write(&l, args.lengths(), env.lengths(), &auxv, &random)?;
    describe(&loaded.space, &l, args, env);
    *frame = TrapFrame::zero();
    frame.rip = loaded.entry;
    frame.rsp = l.sp;
    arch::full_frame_return();
    Ok(())
}

/// What procfs and brk want to know.
fn describe(space: &Space, l: &Layout, args: &Strings, env: &Strings) {
    let s = &space.layout;
    s.start_stack.store(l.sp, Ordering::Relaxed);
    s.arg_start.store(l.arg_strings, Ordering::Relaxed);
    s.arg_end
        .store(l.arg_strings + args.len() as u64, Ordering::Relaxed);
    s.env_start.store(l.env_strings, Ordering::Relaxed);
    s.env_end
        .store(l.env_strings + env.len() as u64, Ordering::Relaxed);
}
