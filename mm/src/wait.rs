//! The right to wait, and its suspension.
//!
//! `&CanWait`: interrupts are on, shootdowns may be awaited. `&mut CanWait`: no spin lock is held
//! either, so one may sleep. [`IrqOff`] borrows it mutably: whatever waits or sleeps does not compile
//! while interrupts are off.

use crate::hw::Cpu;
use core::marker::PhantomData;

/// The right to wait. One per kernel entry. While interrupts are off nobody sleeps, nor awaits other CPUs'
/// acknowledgements:
///
/// ```compile_fail,E0499
/// fn f<H: mm::Hw>(s: &mm::AddressSpace<H>, w: &mut mm::CanWait<H>) {
///     let irq = w.irq_off();
///     let guard = s.mmap_read(w);
///     drop(irq);
/// }
/// ```
/// ```compile_fail,E0502
/// fn f<H: mm::Hw>(s: &mm::AddressSpace<H>, w: &mut mm::CanWait<H>) {
///     let irq = w.irq_off();
///     s.evict(w);
///     drop(irq);
/// }
/// ```
/// Nor does it go to another CPU:
///
/// ```compile_fail,E0277
/// fn send<T: Send>(_: T) {}
/// fn f<H: mm::hw::Cpu>(w: &mut mm::wait::CanWait<H>) { send(w.irq_off()); }
/// ```
pub struct CanWait<H: Cpu> {
    hw: H,
    _here: PhantomData<*mut ()>,
}

impl<H: Cpu> CanWait<H> {
    /// # Safety
    /// Interrupts are on, and this context holds no spin lock and no other `CanWait`.
    #[inline]
    pub unsafe fn assume(hw: H) -> Self {
        debug_assert!(hw.irqs_on());
        Self {
            hw,
            _here: PhantomData,
        }
    }
    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.hw
    }
    /// Interrupts off until the value is dropped.
    #[inline]
    pub fn irq_off(&mut self) -> IrqOff<'_, H> {
        IrqOff {
            hw: self.hw,
            saved: Some(self.hw.irq_save()),
            _wait: PhantomData,
        }
    }
}

/// Proof that this CPU takes no interrupts, hence acknowledges no shootdown.
#[must_use]
pub struct IrqOff<'w, H: Cpu> {
    hw: H,
    saved: Option<H::IrqState>,
    _wait: PhantomData<(&'w mut CanWait<H>, *mut ())>,
}

impl<H: Cpu> IrqOff<'_, H> {
    /// For code that is entered with interrupts off (trap and interrupt entry). Dropping it leaves
    /// them as they are at the time of this call: off.
    ///
    /// # Safety
    /// Interrupts are off and stay off for the life of the value.
    #[inline]
    pub unsafe fn assume(hw: H) -> Self {
        debug_assert!(!hw.irqs_on());
        Self {
            hw,
            saved: None,
            _wait: PhantomData,
        }
    }
    /// The machine.
    #[inline]
    pub fn hw(&self) -> H {
        self.hw
    }
}

impl<H: Cpu> Drop for IrqOff<'_, H> {
    #[inline]
    fn drop(&mut self) {
        if let Some(saved) = self.saved {
            self.hw.irq_restore(saved);
        }
    }
}
