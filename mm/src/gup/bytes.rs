//! Bytes of pinned pages, through the direct map.
//!
//! The process may read and write them meanwhile, and devices as well: bytes are copied as they are, and no
//! reference to them is ever made.

use super::pinned::{Access, HeldPages, PinnedPages, Slots, Write};
use crate::addr::PAGE_SIZE;
use crate::phys::Hw;
use core::ptr::copy_nonoverlapping;

const PAGE: usize = PAGE_SIZE as usize;

impl<H: Hw, A: Access, S: Slots> PinnedPages<H, A, S> {
    /// Where byte `at` (from the first page's start) lies, and how many follow it in its page.
    #[inline]
    pub fn byte(&self, at: usize) -> Option<(*mut u8, usize)> {
        let slot = self.pages().get(at / PAGE)?;
        let in_page = at % PAGE;
        let p = self.hw().frame_ptr(slot.pfn()).wrapping_add(in_page);
        Some((p, PAGE - in_page))
    }
    /// Copies what lies from byte `at` on; returns how much there was.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len() {
            let Some((from, run)) = self.byte(at + done) else {
                break;
            };
            let n = run.min(to.len() - done);
            // SAFETY: `n` bytes of a page that is pinned, hence not freed (`Slots` says now what it said when `adopt`
            // took over the pins); `to` is the kernel's own.
            unsafe { copy_nonoverlapping(from.cast_const(), to[done..].as_mut_ptr(), n) };
            done += n;
        }
        done
    }
}

impl<H: Hw, S: Slots> HeldPages<H, S> {
    /// Copies what byte `at` of the pages and those after it hold now; for core files, whose process stands still.
    pub fn copy_out(&self, at: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len() {
            let at = at + done;
            let Some(slot) = self.pages().get(at / PAGE) else {
                break;
            };
            let run = (PAGE - at % PAGE).min(to.len() - done);
            let from = self.hw().frame_ptr(slot.pfn()).wrapping_add(at % PAGE);
            // SAFETY: `run` bytes of a page that is referenced, hence not freed (`Slots`, as above); `to` is the kernel's own.
            unsafe { copy_nonoverlapping(from.cast_const(), to[done..].as_mut_ptr(), run) };
            done += run;
        }
        done
    }
}

impl<H: Hw, S: Slots> PinnedPages<H, Write, S> {
    /// Copies to byte `at` and on; returns how much found room.
    pub fn copy_in(&self, at: usize, from: &[u8]) -> usize {
        let mut done = 0;
        while done < from.len() {
            let Some((to, run)) = self.byte(at + done) else {
                break;
            };
            let n = run.min(from.len() - done);
            // SAFETY: `n` bytes of a page that is pinned for writing (`Slots`, as above); `from` is the kernel's own.
            unsafe { copy_nonoverlapping(from[done..].as_ptr(), to, n) };
            done += n;
        }
        done
    }
}
