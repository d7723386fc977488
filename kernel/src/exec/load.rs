//! Mapping a program and its interpreter into a new space.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use mm::ops::{self, FileMap, MmapArgs};
use mm::{Errno, USER_END};

use super::STACK_SIZE;
use super::elf::{EHDR_SIZE, Header, Image, PF_W, PF_X, Segment};
use crate::arch::X86;
use crate::fs::{File, Mappable, Object};
use crate::task::Space;
use crate::task::process::{Limit, NRLIMITS, RLIMIT_STACK};
use crate::task::space::can_wait;
use linux_raw_sys::general as sys;

const PAGE: u64 = 4096;
const ELIBBAD: Errno = Errno::new(linux_raw_sys::errno::ELIBBAD).unwrap();
/// Where a position-independent program goes (Linux's ELF_ET_DYN_BASE without randomisation).
const PIE_BASE: u64 = 0x5555_5555_4000;
/// What Linux keeps free below the stack for its random offset: programs place fixed mappings by it.
const STACK_PAD: u64 = 0x3f_ffff << 12;
/// Least room kept for the stack below its top.
const MIN_STACK_ROOM: u64 = 128 << 20;
const GUARD: u64 = 256 * PAGE;

/// A new space with everything mapped.
pub struct Loaded {
    pub space: Arc<Space>,
    /// Where the first instruction is: the interpreter's, or the program's.
    pub entry: u64,
    pub program_entry: u64,
    pub phdr: u64,
    pub phnum: u16,
    /// 0 without an interpreter.
    pub interp_base: u64,
    pub stack_bottom: u64,
    /// Parts of file pages behind the end of file data, to be zeroed in the new space.
    pub clear: Vec<(u64, u64)>,
}

fn page_down(n: u64) -> u64 {
    n & !(PAGE - 1)
}

fn page_up(n: u64) -> u64 {
    (n + PAGE - 1) & !(PAGE - 1)
}

/// Reads and checks a file's headers; `head` is its beginning.
fn read_image(file: &File, head: &[u8]) -> Result<Image, Errno> {
    let header = Header::parse(head)?;
    let size = header.phdr_bytes();
    let in_head = header
        .phoff
        .checked_add(size as u64)
        .ok_or(Errno::ENOEXEC)?
        <= head.len() as u64;
    let image = if in_head {
        Image::parse(header, &head[header.phoff as usize..])?
    } else {
        let mut buf = [0u8; 1024];
        let mut big = Vec::new();
        let ph: &mut [u8] = if size <= buf.len() {
            &mut buf[..size]
        } else {
            big.try_reserve_exact(size).map_err(|_| Errno::ENOMEM)?;
            big.resize(size, 0);
            &mut big
        };
        if file.read_exact_at(header.phoff, ph)? != size {
            return Err(Errno::ENOEXEC);
        }
        Image::parse(header, ph)?
    };
    let end = file.inode().attr().size;
    if image.segments.iter().any(|s| s.offset + s.filesz > end) {
        return Err(Errno::ENOEXEC);
    }
    Ok(image)
}

fn object_of(file: &File) -> Result<Arc<Object>, Errno> {
    match file.mmap(0, 0)? {
        Mappable::Object(o) => Ok(o),
        Mappable::Window(_) | Mappable::Buffer(_) | Mappable::Raw { .. } | Mappable::Anonymous => {
            Err(Errno::ENOEXEC)
        }
    }
}

fn read_interp(file: &File, at: u64, len: usize) -> Result<Vec<u8>, Errno> {
    if at > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    let mut path = Vec::new();
    path.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
    path.resize(len, 0);
    if file.read_exact_at(at, &mut path)? != len {
        return Err(Errno::EIO);
    }
    if path.pop() != Some(0) || path.contains(&0) {
        return Err(Errno::ENOEXEC);
    }
    Ok(path)
}

/// Maps `file` (whose first bytes are `head`) into a new space with a stack for `stack_need` bytes.
pub fn load(
    file: &Arc<File>,
    head: &[u8],
    limits: &[Limit; NRLIMITS],
    stack_need: u64,
) -> Result<Loaded, Errno> {
    let image = read_image(file, head)?;
    let object = object_of(file)?;
    let interp = match image.interp {
        Some((at, len)) => {
            let path = read_interp(file, at, len)?;
            let f = crate::fs::open_exec(sys::AT_FDCWD, &path, true, false)?;
            let mut head = [0u8; 512];
            let n = f.read_exact_at(0, &mut head)?;
            if n < EHDR_SIZE {
                return Err(Errno::EIO);
            }
            let bad_interp = |e| if e == Errno::ENOEXEC { ELIBBAD } else { e };
            let image = read_image(&f, &head[..n]).map_err(bad_interp)?;
            Some((image, object_of(&f)?))
        }
        None => None,
    };
    let space = Space::create(limits).ok_or(Errno::ENOMEM)?;
    let room = limits[RLIMIT_STACK as usize]
        .soft
        .saturating_add(STACK_PAD)
        .clamp(MIN_STACK_ROOM, USER_END / 6 * 5);
    space
        .layout
        .mmap_base
        .store(page_down(USER_END - room - GUARD), Ordering::Relaxed);
    let stack_size = STACK_SIZE.max(page_up(stack_need) + 0x10000);
    let stack_bottom = USER_END - stack_size;
    let mut prot = sys::PROT_READ | sys::PROT_WRITE;
    if image.exec_stack {
        prot |= sys::PROT_EXEC;
    }
    map(
        &space,
        stack_bottom,
        stack_size,
        prot,
        sys::MAP_PRIVATE
            | sys::MAP_ANONYMOUS
            | sys::MAP_FIXED
            | sys::MAP_GROWSDOWN
            | sys::MAP_STACK,
        None,
    )?;
    let mut clear = Vec::new();
    let (first, last) = image.span();
    let bias = if image.header.dynamic {
        let base = PIE_BASE.next_multiple_of(image.align);
        base.wrapping_sub(first)
    } else {
        0
    };
    if last.wrapping_add(bias) > USER_END {
        return Err(Errno::ENOMEM);
    }
    map_segments(&space, &image, bias, &object, &mut clear)?;
    let program_entry = image.header.entry.wrapping_add(bias);
    let mut entry = program_entry;
    let mut interp_base = 0;
    if let Some((image, object)) = &interp {
        let (first, last) = image.span();
        let bias = if image.header.dynamic {
            // Find a place for all of it, then map the segments over it.
            let at = map(
                &space,
                0,
                last - first,
                sys::PROT_NONE,
                sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_NORESERVE,
                None,
            )?;
            ops::munmap(&space, &mut can_wait(), at, last - first)?;
            at.wrapping_sub(first)
        } else {
            0
        };
        map_segments(&space, image, bias, object, &mut clear)?;
        interp_base = bias;
        entry = image.header.entry.wrapping_add(bias);
    }
    if entry >= USER_END {
        return Err(Errno::ENOEXEC);
    }
    let l = &space.layout;
    let end = last.wrapping_add(bias);
    for (field, value) in [(&l.start_brk, end), (&l.brk, end)] {
        field.store(value, Ordering::Relaxed);
    }
    let code = image.segments.iter().find(|s| s.flags & PF_X != 0);
    let data = image.segments.iter().rev().find(|s| s.flags & PF_W != 0);
    if let Some(s) = code {
        l.start_code.store(s.vaddr + bias, Ordering::Relaxed);
        l.end_code
            .store(s.vaddr + s.filesz + bias, Ordering::Relaxed);
    }
    if let Some(s) = data {
        l.start_data.store(s.vaddr + bias, Ordering::Relaxed);
        l.end_data
            .store(s.vaddr + s.filesz + bias, Ordering::Relaxed);
    }
    Ok(Loaded {
        space,
        entry,
        program_entry,
        phdr: if image.phdr == 0 {
            0
        } else {
            image.phdr.wrapping_add(bias)
        },
        phnum: image.header.phnum,
        interp_base,
        stack_bottom,
        clear,
    })
}

fn map(
    space: &Space,
    addr: u64,
    len: u64,
    prot: u32,
    flags: u32,
    file: Option<FileMap<X86>>,
) -> Result<u64, Errno> {
    ops::mmap(
        space,
        &mut can_wait(),
        MmapArgs {
            addr,
            len,
            prot,
            flags,
            file,
        },
    )
}

fn map_segments(
    space: &Space,
    image: &Image,
    bias: u64,
    object: &Arc<Object>,
    clear: &mut Vec<(u64, u64)>,
) -> Result<(), Errno> {
    image
        .segments
        .iter()
        .try_for_each(|s| map_segment(space, s, bias, object, clear))
}

fn map_segment(
    space: &Space,
    s: &Segment,
    bias: u64,
    object: &Arc<Object>,
    clear: &mut Vec<(u64, u64)>,
) -> Result<(), Errno> {
    let start = s.vaddr.wrapping_add(bias);
    let mut anon_from = page_down(start);
    if s.filesz != 0 {
        let file_end = start + s.filesz;
        map(
            space,
            page_down(start),
            page_up(file_end) - page_down(start),
            s.prot(),
            sys::MAP_PRIVATE | sys::MAP_FIXED,
            Some(FileMap {
                object: object.clone(),
                pgoff: page_down(s.offset) / PAGE,
                readable: true,
                writable: false,
                append: false,
                executable: true,
            }),
        )?;
        anon_from = page_up(file_end);
        if s.memsz > s.filesz && !file_end.is_multiple_of(PAGE) && s.flags & PF_W != 0 {
            clear.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            // To the end of the page: the dynamic loader allocates from what follows its bss.
            clear.push((file_end, anon_from));
        }
    }
    let end = page_up(start + s.memsz);
    if end > anon_from {
        // Pages of zeros only are writable whatever the segment says, as they are on Linux.
        let prot = sys::PROT_READ | sys::PROT_WRITE | s.prot() & sys::PROT_EXEC;
        map(
            space,
            anon_from,
            end - anon_from,
            prot,
            sys::MAP_PRIVATE | sys::MAP_ANONYMOUS | sys::MAP_FIXED,
            None,
        )?;
    }
    Ok(())
}
