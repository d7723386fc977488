//! What a futex word is known by: two threads that mean the same word have equal keys.

use super::address_space::AddressSpace;
use super::flags::VmaFlags;
use super::vma::Vma;
use crate::errno::Errno;
use crate::phys::Hw;
use crate::wait::CanWait;

/// A word's identity. Holds no reference: a waiter's own mapping or thread keeps what it names from
/// being confused with another, as numbers are never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FutexKey {
    /// In memory that only this space writes through this address.
    Private {
        /// [`AddressSpace::id`].
        space: u64,
        /// Where.
        va: u64,
    },
    /// In a shared mapping.
    Shared {
        /// `FileObject::id`.
        object: u64,
        /// Byte offset.
        offset: u64,
    },
}

impl<H: Hw> AddressSpace<H> {
    /// The key of the aligned word at `va`. `private`: FUTEX_PRIVATE_FLAG. EFAULT if a shared word is not
    /// mapped, or lies in a window.
    pub fn futex_key(
        &self,
        wait: &mut CanWait<H>,
        va: u64,
        private: bool,
    ) -> Result<FutexKey, Errno> {
        let own = FutexKey::Private {
            space: self.id(),
            va,
        };
        if !va.is_multiple_of(4) {
            return Err(Errno::EINVAL);
        }
        if va >= crate::addr::USER_END {
            return Err(Errno::EFAULT);
        }
        if private {
            return Ok(own);
        }
        let key = |v: &Vma<H>| match v.object() {
            // Its page is what a word is known by, and a window has none (VMA-3).
            _ if v.flags().intersects(VmaFlags::IO | VmaFlags::PFNMAP) => Err(Errno::EFAULT),
            Some(o) if v.flags().contains(VmaFlags::MAYSHARE) => Ok(FutexKey::Shared {
                object: o.id(),
                offset: (v.pgoff() << crate::addr::PAGE_SHIFT) + (va - v.start()),
            }),
            _ => Ok(own),
        };
        if let Some(v) = self.vma_read(&wait.irq_off(), va) {
            return key(&v);
        }
        self.mmap_read(wait)
            .find(va)
            .map_or(Err(Errno::EFAULT), key)
    }
}
