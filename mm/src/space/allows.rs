//! Whether the kernel may take hold of a VMA's pages on somebody's behalf: VMA-2 to VMA-15, in VMA-15's order.

#![forbid(unsafe_code)]

use super::flags::VmaFlags;
use super::vma::Vma;
use crate::errno::Errno;
use crate::phys::Hw;
use crate::race::planted;

/// What somebody wants of a VMA's pages.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Ask {
    /// To write them.
    pub write: bool,
    /// Present permissions do not count, only those that could be given (a debugger's access).
    pub force: bool,
    /// Anonymous memory only.
    pub anon_only: bool,
    /// For another process: this CPU's key register says nothing about it.
    pub foreign: bool,
    /// For as long as it likes, for a device.
    pub lasting: bool,
}

/// What a VMA is, as far as the answer depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kind {
    /// Its flags.
    pub flags: VmaFlags,
    /// Private anonymous memory from the start.
    pub anon: bool,
    /// Of a file whose pages are written back.
    pub tracked: bool,
}

impl Kind {
    /// The first test that fails decides. `key_allows`: what this CPU's key register says of a key.
    pub fn allows(self, ask: Ask, key_allows: impl FnOnce(u32, bool) -> bool) -> Result<(), Errno> {
        let f = self.flags;
        if f.intersects(VmaFlags::IO | VmaFlags::PFNMAP) {
            return Err(Errno::EFAULT);
        }
        if ask.anon_only && !self.anon {
            return Err(Errno::EFAULT);
        }
        if f.is_secret() && !planted(26) {
            return Err(Errno::EFAULT);
        }
        // A write that nobody announces reaches the page behind the file's back (VMA-13). Private copies are the process's.
        if ask.write && ask.lasting && self.tracked && f.contains(VmaFlags::SHARED) {
            return Err(Errno::EFAULT);
        }
        let refused = if ask.write {
            // A shadow stack counts as not writable (VMA-7); then only a debugger may, and only where the write goes
            // to a private copy (VMA-5), which explicit huge pages do not have (VMA-6).
            (!f.contains(VmaFlags::WRITE) || f.is_shadow_stack())
                && (!ask.force || f.contains(VmaFlags::HUGETLB) || !f.is_cow() && !planted(14))
        } else {
            // READ is not asked for by writers (VMA-15).
            !(f.contains(VmaFlags::READ) || ask.force && f.contains(VmaFlags::MAYREAD))
        };
        if refused || (!ask.foreign || planted(29)) && !key_allows(f.key(), ask.write) {
            return Err(Errno::EFAULT);
        }
        Ok(())
    }
}

impl<H: Hw> Vma<H> {
    /// Whether its pages may be taken hold of like that. The caller looks at each VMA once, and again
    /// after the lock was gone.
    #[inline]
    pub fn allows(&self, ask: Ask) -> Result<(), Errno> {
        let kind = Kind {
            flags: self.flags(),
            anon: self.is_anon(),
            tracked: self.object().is_some_and(|o| o.is_tracked()),
        };
        kind.allows(ask, |key, write| self.space().hw().pkey_allows(key, write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BITS: [VmaFlags; 10] = [
        VmaFlags::READ,
        VmaFlags::WRITE,
        VmaFlags::MAYREAD,
        VmaFlags::MAYWRITE,
        VmaFlags::SHARED,
        VmaFlags::IO,
        VmaFlags::PFNMAP,
        VmaFlags::HUGETLB,
        VmaFlags::SHADOW_STACK,
        VmaFlags::GROWSDOWN,
    ];

    fn every(mut f: impl FnMut(Kind, Ask)) {
        for bits in 0..1 << BITS.len() {
            let mut flags = VmaFlags::empty();
            for (i, b) in BITS.iter().enumerate() {
                flags.set(*b, bits >> i & 1 != 0);
            }
            for n in 0..16 {
                let kind = Kind {
                    flags,
                    anon: n & 1 != 0,
                    tracked: false,
                };
                let ask = Ask {
                    write: n & 2 != 0,
                    force: n & 4 != 0,
                    anon_only: n & 8 != 0,
                    foreign: false,
                    lasting: false,
                };
                f(kind, ask);
            }
        }
    }

    /// VMA-14: the formula of machines without an MMU says the same of private mappings without more rules.
    #[test]
    fn vma_14_the_formula_without_an_mmu_agrees() {
        use VmaFlags as V;
        let mut asked = 0;
        every(|kind, ask| {
            let f = kind.flags;
            let more = V::SHARED | V::HUGETLB | V::SHADOW_STACK;
            // What is permitted may be permitted: no mapping has READ without MAYREAD.
            let sane = (f.bits() & 3) & !(f.bits() >> 4) == 0;
            if f.intersects(more) || ask.anon_only || !sane {
                return;
            }
            let both = if ask.write {
                V::WRITE | V::MAYWRITE
            } else {
                V::READ | V::MAYREAD
            };
            let need = both
                & if ask.force {
                    V::MAYREAD | V::MAYWRITE
                } else {
                    V::READ | V::WRITE
                };
            let yes = !f.intersects(V::IO | V::PFNMAP) && f.intersects(need);
            assert_eq!(
                kind.allows(ask, |_, _| true).is_ok(),
                yes,
                "{kind:?} {ask:?}"
            );
            asked += 1;
        });
        assert!(asked > 300);
    }

    /// VMA-3 to VMA-9, VMA-15: each by itself.
    #[test]
    fn vma_15_each_test_refuses_alone() {
        use VmaFlags as V;
        let rw = V::READ | V::WRITE | V::MAYREAD | V::MAYWRITE;
        let ok = |flags: V, anon: bool, ask: Ask| {
            let tracked = false;
            Kind {
                flags,
                anon,
                tracked,
            }
            .allows(ask, |key, write| key != 3 || !write)
        };
        let read = Ask::default();
        let write = Ask {
            write: true,
            ..read
        };
        let force = Ask {
            write: true,
            force: true,
            ..read
        };
        let anon = Ask {
            anon_only: true,
            ..read
        };
        let no = Err(Errno::EFAULT);
        for ask in [read, write, force] {
            assert_eq!(ok(rw, false, ask), Ok(()));
            assert_eq!(ok(rw | V::SECRET, false, ask), no); // VMA-11
            // VMA-10, BUG-29: one's own key register refuses writes of key 3, a debugger's says nothing.
            let keyed = ok(rw.with_key(3), false, ask);
            assert_eq!(keyed.is_err(), ask.write);
            let foreign = Ask {
                foreign: true,
                ..ask
            };
            assert_eq!(ok(rw.with_key(3), false, foreign), Ok(()));
            assert_eq!(ok(rw | V::IO, false, ask), no);
            assert_eq!(ok(rw | V::PFNMAP, true, ask), no);
        }
        assert_eq!((ok(rw, true, anon), ok(rw, false, anon)), (Ok(()), no));
        let ro = rw - V::WRITE;
        assert_eq!((ok(ro, true, write), ok(ro, true, force)), (no, Ok(())));
        assert_eq!(ok(ro | V::HUGETLB, true, force), no);
        assert_eq!(ok(ro | V::SHARED, true, force), no);
        assert_eq!(ok(ro - V::MAYWRITE, true, force), no);
        // A shadow stack, whatever WRITE says.
        let shadow = rw | V::SHADOW_STACK;
        assert_eq!(
            (ok(shadow, true, write), ok(shadow, true, force)),
            (no, Ok(()))
        );
        // VMA-13: a shared mapping of a tracked file, written by a device for long.
        let tracked = |flags: V, write: bool, lasting: bool| {
            let kind = Kind {
                flags,
                anon: false,
                tracked: true,
            };
            let ask = Ask {
                write,
                lasting,
                ..read
            };
            kind.allows(ask, |_, _| true)
        };
        assert_eq!(tracked(rw | V::SHARED, true, true), no);
        assert_eq!(tracked(rw | V::SHARED, true, false), Ok(()));
        assert_eq!(tracked(rw | V::SHARED, false, true), Ok(()));
        assert_eq!(tracked(rw, true, true), Ok(()));
        // A writer needs no READ; a reader does.
        let wo = rw - V::READ;
        assert_eq!((ok(wo, true, write), ok(wo, true, read)), (Ok(()), no));
        let peek = Ask {
            force: true,
            ..read
        };
        assert_eq!(
            (ok(wo, true, peek), ok(wo - V::MAYREAD, true, peek)),
            (Ok(()), no)
        );
    }
}
