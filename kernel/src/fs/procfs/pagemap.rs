//! /proc/PID/pagemap: one word for each page of the address space.
//!
//! The open file knows the space that the process had then, without keeping it: after exit or exec it reads as
//! empty. A chunk of words is made under the mmap lock and one table's lock, and copied out under none; so a read
//! of any length needs no memory, and what it shows is old when it arrives.
#![forbid(unsafe_code)]

use alloc::sync::{Arc, Weak};

use mm::space::{Vma, VmaFlags};
use mm::table::{PtGuard, Pte};
use mm::{Errno, PAGE_SIZE, USER_END};

use super::super::caller;
use super::super::file::File;
use super::super::inode::FileOps;
use super::super::iobuf::IoBuf;
use super::kpage::Page;
use super::opened::{AT_ONCE, put_words};
use super::process::Target;
use crate::SysResult;
use crate::arch::X86;
use crate::task::Space;
use crate::task::space::can_wait;

const PFN: u64 = (1 << 55) - 1;
const SOFT_DIRTY: u64 = 1 << 55;
const EXCLUSIVE: u64 = 1 << 56;
const FILE: u64 = 1 << 61;
const PRESENT: u64 = 1 << 63;

const WORD: u64 = 8;

struct Pagemap {
    space: Weak<Space>,
    /// Frame numbers are for those who had CAP_SYS_ADMIN when they opened it: they help attacks on memory itself.
    frames: bool,
}

/// Opens a process's.
pub fn open(target: &Target) -> Result<Arc<dyn FileOps>, Errno> {
    let process = target.process()?;
    caller::may_look_into(&process)?;
    let space = process.space().ok_or(Errno::ESRCH)?;
    Ok(Arc::new(Pagemap {
        space: Arc::downgrade(&space),
        frames: caller::capable(caller::CAP_SYS_ADMIN),
    }))
}

impl FileOps for Pagemap {
    fn has_end(&self) -> bool {
        false
    }

    fn read(&self, _file: &File, buf: &mut IoBuf<'_>, pos: &mut u64) -> SysResult {
        let Some(space) = self.space.upgrade() else {
            return Ok(0);
        };
        let len = buf.left() as u64;
        if !(*pos | len).is_multiple_of(WORD) {
            return Err(Errno::EINVAL);
        }
        let mut page = *pos / WORD;
        let end = (page + len / WORD).min(USER_END / PAGE_SIZE);
        let mut done = 0;
        while page < end {
            // Within one table.
            let n = (end - page).min(AT_ONCE as u64 - page % AT_ONCE as u64) as usize;
            let mut words = [0; AT_ONCE];
            self.fill(&space, page * PAGE_SIZE, &mut words[..n])?;
            if put_words(buf, &words[..n]) < n {
                return Err(Errno::EFAULT);
            }
            page += n as u64;
            done += n * WORD as usize;
            crate::task::cond_resched();
        }
        *pos += done as u64;
        Ok(done)
    }
}

impl Pagemap {
    /// The words of the pages from `va` on, all below one level-1 table.
    fn fill(&self, space: &Space, va: u64, words: &mut [u64]) -> Result<(), Errno> {
        let mut wait = can_wait();
        let guard = space.mmap_read_killable(&mut wait)?;
        let end = va + words.len() as u64 * PAGE_SIZE;
        let mut next = guard.find_from(va).filter(|v| v.start() < end);
        if next.is_none() {
            return Ok(());
        }
        let table = space.tables.pte_table(va, &guard);
        while let Some(vma) = next {
            for at in (vma.start().max(va)..vma.end().min(end)).step_by(PAGE_SIZE as usize) {
                let pte = table.as_ref().map(|t| t.get(PtGuard::<X86>::index(at)));
                words[((at - va) / PAGE_SIZE) as usize] = self.word(vma, pte.unwrap_or_default());
            }
            next = guard.next(vma).filter(|v| v.start() < end);
        }
        Ok(())
    }

    fn word(&self, vma: &Vma<X86>, pte: Pte) -> u64 {
        let mut word = 0;
        if vma.flags().contains(VmaFlags::SOFTDIRTY) {
            word |= SOFT_DIRTY;
        }
        if !pte.present() {
            return word; // swap: with reclaim
        }
        word |= PRESENT;
        if self.frames {
            word |= pte.pfn().0 & PFN;
        }
        if pte.soft_dirty() {
            word |= SOFT_DIRTY;
        }
        if pte.folio(X86).is_some() {
            let page = Page::of(pte.pfn());
            if !page.is_anon() {
                word |= FILE;
            }
            if page.mappings() == 1 {
                word |= EXCLUSIVE;
            }
        }
        word
    }
}
