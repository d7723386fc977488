//! Calls on memory: arguments from registers, the work in `mm::ops`.

use alloc::sync::Arc;

use linux_raw_sys::general as sys;
use mm::addr::page_up;
use mm::ops::{self, FileMap, Key, MmapArgs, MremapArgs};
use mm::{CanWait, Errno, PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::Handler;
use crate::SysResult;
use crate::arch::{TrapFrame, X86, fpu, uaccess};
use crate::fs::{Mappable, Object, mapped, secretmem};
use crate::task::{self, Space};

/// The family.
pub const CALLS: &[(u32, Handler)] = &[
    (sys::__NR_mmap, mmap),
    (sys::__NR_munmap, munmap),
    (sys::__NR_mprotect, mprotect),
    (sys::__NR_pkey_mprotect, pkey_mprotect),
    (sys::__NR_pkey_alloc, pkey_alloc),
    (sys::__NR_pkey_free, pkey_free),
    (sys::__NR_map_shadow_stack, map_shadow_stack),
    (sys::__NR_memfd_secret, memfd_secret),
    (sys::__NR_brk, brk),
    (sys::__NR_mremap, mremap),
    (sys::__NR_madvise, madvise),
    (sys::__NR_mincore, mincore),
    (sys::__NR_msync, msync),
    (sys::__NR_mlock, mlock),
    (sys::__NR_mlock2, mlock2),
    (sys::__NR_munlock, munlock),
    (sys::__NR_mlockall, mlockall),
    (sys::__NR_munlockall, munlockall),
];

fn space() -> Result<&'static Arc<Space>, Errno> {
    task::current().space().ok_or(Errno::EFAULT)
}

fn can_wait() -> CanWait<X86> {
    // SAFETY: a system call holds no spin lock when it begins and has interrupts on; each handler makes one.
    unsafe { CanWait::assume(X86) }
}

fn mmap(f: &mut TrapFrame) -> SysResult {
    let (addr, len, prot, flags) = (f.arg(0), f.arg(1), f.arg(2) as u32, f.arg(3) as u32);
    let (fd, offset) = (f.arg(4) as i32, f.arg(5));
    if offset & (PAGE_SIZE - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut args = MmapArgs {
        addr,
        len,
        prot,
        flags,
        file: None,
    };
    if flags & sys::MAP_ANONYMOUS == 0 {
        let file = task::current().files().get(fd)?;
        let shared_write = flags & sys::MAP_TYPE != sys::MAP_PRIVATE && prot & sys::PROT_WRITE != 0;
        let (mut buffer, mut raw) = (None, None);
        let (object, offset) = match file.mmap(offset, len)? {
            Mappable::Object(object) => (object, offset),
            Mappable::Window(object) => (object, 0),
            Mappable::Buffer(folio) => {
                buffer = Some(folio);
                (Object::new(X86).ok_or(Errno::ENOMEM)?, offset)
            }
            Mappable::Raw {
                first,
                len: most,
                caching,
            } => {
                if page_up(len).is_none_or(|len| len > most) {
                    return Err(Errno::EINVAL);
                }
                raw = Some((Pfn(first >> PAGE_SHIFT), caching));
                (Object::new(X86).ok_or(Errno::ENOMEM)?, offset)
            }
            Mappable::Anonymous => return map(args),
        };
        let sealed = file.ops().mmap_write_denied();
        if shared_write && sealed && file.writable() {
            return Err(Errno::EPERM);
        }
        if raw.is_some() {
            let attr = file.inode().attr();
            mapped::remember(&object, &file, attr.dev, attr.ino);
        }
        args.file = Some(FileMap {
            object,
            pgoff: offset >> PAGE_SHIFT,
            readable: file.readable(),
            writable: file.writable() && !sealed,
            append: file.append(),
            executable: true,
        });
        if let Some((first, caching)) = raw {
            crate::memory::headroom()?;
            let at = ops::mmap_raw(space()?, &mut can_wait(), args, first, caching)?;
            return Ok(at as usize);
        }
        if let Some(folio) = buffer {
            crate::memory::headroom()?;
            let at = ops::mmap_buffer(space()?, &mut can_wait(), args, &folio)?;
            return Ok(at as usize);
        }
    }
    map(args)
}

fn map(args: MmapArgs<X86>) -> SysResult {
    crate::memory::headroom()?;
    let key = match args.prot {
        sys::PROT_EXEC => exec_only_key()?.unwrap_or(0),
        _ => 0,
    };
    ops::mmap_with_key(space()?, &mut can_wait(), args, key).map(|a| a as usize)
}

fn munmap(f: &mut TrapFrame) -> SysResult {
    ops::munmap(space()?, &mut can_wait(), f.arg(0), f.arg(1)).map(|()| 0)
}

fn mprotect(f: &mut TrapFrame) -> SysResult {
    let (addr, len, prot) = (f.arg(0), f.arg(1), f.arg(2) as u32);
    crate::memory::headroom()?;
    let key = match prot {
        sys::PROT_EXEC => exec_only_key()?.map_or(Key::Same, Key::ExecOnly),
        _ => Key::Same,
    };
    ops::pkey_mprotect(space()?, &mut can_wait(), addr, len, prot, key).map(|()| 0)
}

fn pkey_mprotect(f: &mut TrapFrame) -> SysResult {
    let (addr, len, prot, key) = (f.arg(0), f.arg(1), f.arg(2) as u32, f.arg(3) as i32);
    if key == -1 {
        return mprotect(f);
    }
    crate::memory::headroom()?;
    ops::pkey_mprotect(space()?, &mut can_wait(), addr, len, prot, Key::Named(key)).map(|()| 0)
}

/// The key of execute-only memory, which the caller may no longer read or write; `None`: there is none.
fn exec_only_key() -> Result<Option<u32>, Errno> {
    let key = ops::exec_only_key(space()?, &mut can_wait());
    if let Some(key) = key {
        set_rights(key, sys::PKEY_DISABLE_ACCESS);
    }
    Ok(key)
}

/// What the running thread may do with a key.
fn set_rights(key: u32, rights: u32) {
    let at = 2 * key;
    fpu::set_pkru(fpu::pkru() & !(3 << at) | rights << at);
}

fn pkey_alloc(f: &mut TrapFrame) -> SysResult {
    const RIGHTS: u64 = (sys::PKEY_DISABLE_ACCESS | sys::PKEY_DISABLE_WRITE) as u64;
    let (flags, rights) = (f.arg(0), f.arg(1));
    if flags != 0 || rights & !RIGHTS != 0 {
        return Err(Errno::EINVAL);
    }
    let key = ops::pkey_alloc(space()?, &mut can_wait())?;
    set_rights(key, rights as u32);
    Ok(key as usize)
}

fn pkey_free(f: &mut TrapFrame) -> SysResult {
    ops::pkey_free(space()?, &mut can_wait(), f.arg(0) as i32).map(|()| 0)
}

fn brk(f: &mut TrapFrame) -> SysResult {
    Ok(ops::brk(space()?, &mut can_wait(), f.arg(0)) as usize)
}

fn mremap(f: &mut TrapFrame) -> SysResult {
    let args = MremapArgs {
        addr: f.arg(0),
        old_len: f.arg(1),
        new_len: f.arg(2),
        flags: f.arg(3) as u32,
        new_addr: f.arg(4),
    };
    crate::memory::headroom()?;
    ops::mremap(space()?, &mut can_wait(), args).map(|a| a as usize)
}

fn madvise(f: &mut TrapFrame) -> SysResult {
    let (addr, len, advice) = (f.arg(0), f.arg(1), f.arg(2) as u32);
    ops::madvise(space()?, &mut can_wait(), addr, len, advice).map(|()| 0)
}

fn mlock(f: &mut TrapFrame) -> SysResult {
    lock(f.arg(0), f.arg(1), 0)
}

fn mlock2(f: &mut TrapFrame) -> SysResult {
    lock(f.arg(0), f.arg(1), f.arg(2) as u32)
}

fn lock(addr: u64, len: u64, flags: u32) -> SysResult {
    crate::memory::headroom()?;
    ops::mlock(space()?, &mut can_wait(), addr, len, flags).map(|()| 0)
}

fn munlock(f: &mut TrapFrame) -> SysResult {
    ops::munlock(space()?, &mut can_wait(), f.arg(0), f.arg(1)).map(|()| 0)
}

fn mlockall(f: &mut TrapFrame) -> SysResult {
    crate::memory::headroom()?;
    ops::mlockall(space()?, &mut can_wait(), f.arg(0) as u32).map(|()| 0)
}

fn munlockall(_: &mut TrapFrame) -> SysResult {
    ops::munlockall(space()?, &mut can_wait()).map(|()| 0)
}

fn msync(f: &mut TrapFrame) -> SysResult {
    let (addr, len, flags) = (f.arg(0), f.arg(1), f.arg(2) as u32);
    ops::msync(space()?, &mut can_wait(), addr, len, flags).map(|()| 0)
}

fn mincore(f: &mut TrapFrame) -> SysResult {
    let (addr, len, mut out) = (f.arg(0), f.arg(1), f.arg(2));
    if addr & (PAGE_SIZE - 1) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut left = ops::mincore::pages(addr, len)?;
    if out.checked_add(left).is_none_or(|end| end > mm::USER_END) {
        return Err(Errno::EFAULT);
    }
    let mut at = addr;
    let mut some = [0u8; 512];
    while left > 0 {
        let n = some.len().min(left as usize);
        // The lock is not held across the copy: the answer is old when it arrives anyway.
        let n = ops::mincore(space()?, &mut can_wait(), at, &mut some[..n])?;
        uaccess::copy_to_user(out, &some[..n])?;
        at += (n as u64) << PAGE_SHIFT;
        out += n as u64;
        left -= n as u64;
    }
    Ok(0)
}

/// No CPU here has shadow stacks that this kernel turns on.
fn map_shadow_stack(_: &mut TrapFrame) -> SysResult {
    Err(Errno::EOPNOTSUPP)
}

fn memfd_secret(f: &mut TrapFrame) -> SysResult {
    let flags = f.arg(0) as u32;
    if flags & !sys::O_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    crate::memory::headroom()?;
    let file = secretmem::create(sys::O_RDWR | sys::O_LARGEFILE)?;
    let fd = task::current()
        .files()
        .install(file, flags & sys::O_CLOEXEC != 0)?;
    Ok(fd as usize)
}
