//! Memory that a ring and its program share: the pages of an object, which the program maps and the kernel reaches here.
//!
//! The program writes any of it at any time. So a word is loaded once, checked, and not looked at again.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::arch::X86;
use crate::fs::Object;
use mm::phys::FolioRef;
use mm::{Errno, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;

/// All pages of one object, held.
pub struct Region {
    object: Arc<Object>,
    pages: Vec<FolioRef<X86>>,
}

impl Region {
    /// `bytes` of zeroes; ENOMEM.
    pub fn new(bytes: usize) -> Result<Region, Errno> {
        let object = Object::new(X86).ok_or(Errno::ENOMEM)?;
        let count = bytes.div_ceil(PAGE);
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        object.extend(count as u64 * PAGE_SIZE);
        for index in 0..count as u64 {
            pages.push(object.get_or_create(index).map_err(|_| Errno::ENOMEM)?);
            crate::task::cond_resched();
        }
        Ok(Region { object, pages })
    }

    /// What the program maps.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// The four bytes at `at`, a multiple of 4.
    ///
    /// # Panics
    /// Past the end.
    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4));
        // SAFETY: aligned, within a page that `pages` holds for as long as the reference lasts. The kernel reaches it by
        // atomics only; a program's plain accesses are another machine's to this one.
        unsafe { AtomicU32::from_ptr(self.pages[at / PAGE].ptr().add(at % PAGE).cast()) }
    }

    /// `N` times eight bytes at `at`, a multiple of as many. `N` is a power of two.
    ///
    /// # Panics
    /// Past the end.
    pub fn doubles<const N: usize>(&self, at: usize) -> &[AtomicU64; N] {
        const { assert!(N.is_power_of_two() && 8 * N <= PAGE) };
        assert!(at.is_multiple_of(8 * N));
        // SAFETY: as in `word`, and they end where the page does or before, of whose size theirs is a part.
        unsafe { &*self.pages[at / PAGE].ptr().add(at % PAGE).cast() }
    }
}
