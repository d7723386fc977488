//! Atomics for the model checker, with mm's two habits: `const` constructors (the watched atomic is made
//! at first use, which for loom is a write: a model uses everything once before its threads begin), and SeqCst as the machine gives it.
//!
//! loom treats a SeqCst operation as acquire-release (its documentation says so), so store-and-load protocols
//! would fail there though they are right. A SeqCst operation of this module is therefore surrounded by
//! SeqCst fences, which loom does model: a locked instruction or `xchg` on x86.

use core::cell::UnsafeCell;
use loom::sync::atomic as model;
pub use loom::sync::atomic::{Ordering, fence};

fn before(o: Ordering) {
    if o == Ordering::SeqCst {
        fence(Ordering::SeqCst);
    }
}
use before as after;

/// Made at first use.
struct Late<M>(UnsafeCell<Option<M>>);

// SAFETY: loom runs the threads of a model one at a time on one host thread.
unsafe impl<M> Send for Late<M> {}
// SAFETY: as above.
unsafe impl<M> Sync for Late<M> {}

impl<M> Late<M> {
    const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }
    fn get(&self, make: impl FnOnce() -> M) -> &M {
        // SAFETY: no other thread runs meanwhile, and the value is never replaced.
        let slot = unsafe { &*self.0.get() };
        if slot.is_none() {
            let made = make();
            // SAFETY: as above; no reference to the value exists while there is none.
            unsafe { *self.0.get() = Some(made) };
        }
        slot_of(self)
    }
}

fn slot_of<M>(l: &Late<M>) -> &M {
    // SAFETY: `get` has filled it, and it is never replaced.
    unsafe { (*l.0.get()).as_ref().unwrap() }
}

macro_rules! common {
    ($name:ident, $ty:ty) => {
        impl $name {
            #[doc = "As core's."]
            pub const fn new(v: $ty) -> Self {
                Self {
                    first: v,
                    late: Late::new(),
                }
            }
            fn model(&self) -> &model::$name {
                self.late.get(|| model::$name::new(self.first))
            }
            #[doc = "As core's."]
            #[track_caller]
            pub fn load(&self, o: Ordering) -> $ty {
                before(o);
                let v = self.model().load(if o == Ordering::SeqCst {
                    Ordering::Acquire
                } else {
                    o
                });
                v
            }
            #[doc = "As core's."]
            #[track_caller]
            pub fn store(&self, v: $ty, o: Ordering) {
                self.model().store(
                    v,
                    if o == Ordering::SeqCst {
                        Ordering::Release
                    } else {
                        o
                    },
                );
                after(o);
            }
            #[doc = "As core's."]
            #[track_caller]
            pub fn compare_exchange(
                &self,
                old: $ty,
                new: $ty,
                ok: Ordering,
                err: Ordering,
            ) -> Result<$ty, $ty> {
                before(ok);
                let v = self.model().compare_exchange(old, new, ok, err);
                after(ok);
                v
            }
            #[doc = "As core's, and never fails without need: that would only be one more round."]
            #[track_caller]
            pub fn compare_exchange_weak(
                &self,
                old: $ty,
                new: $ty,
                ok: Ordering,
                err: Ordering,
            ) -> Result<$ty, $ty> {
                self.compare_exchange(old, new, ok, err)
            }
        }
        impl Default for $name {
            fn default() -> Self {
                Self::new(Default::default())
            }
        }
        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

macro_rules! int {
    ($name:ident, $ty:ty) => {
        #[doc = "As core's."]
        pub struct $name {
            first: $ty,
            late: Late<model::$name>,
        }
        common!($name, $ty);
        int!(@rmw $name, $ty, swap fetch_add fetch_sub fetch_and fetch_or fetch_xor fetch_max);
    };
    (@rmw $name:ident, $ty:ty, $($op:ident)*) => {
        impl $name {
            $(
                #[doc = "As core's."]
                #[track_caller]
                pub fn $op(&self, v: $ty, o: Ordering) -> $ty {
                    before(o);
                    let v = self.model().$op(v, o);
                    after(o);
                    v
                }
            )*
        }
    };
}

int!(AtomicI32, i32);
int!(AtomicI64, i64);
int!(AtomicU32, u32);
int!(AtomicU64, u64);
int!(AtomicUsize, usize);

/// As core's.
pub struct AtomicBool {
    first: bool,
    late: Late<model::AtomicBool>,
}
common!(AtomicBool, bool);

impl AtomicBool {
    /// As core's, but that what stands there already is not written again: a spinner's writes of `true`
    /// over `true` make loom consider orders of writes that cannot be, in which it spins for ever.
    #[track_caller]
    pub fn swap(&self, v: bool, o: Ordering) -> bool {
        match self.compare_exchange(!v, v, o, Ordering::Relaxed) {
            Ok(old) | Err(old) => old,
        }
    }
}
