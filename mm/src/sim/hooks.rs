//! What a test makes happen in the middle of mm (K-25): at a pause point, when memory is short, when a page is made
//! accessible. A hook runs as the CPU that came by, which it may leave with [`Sim::on`] and must come back to.

use super::{Machine, Sim, lock};
use crate::addr::Pfn;
use crate::errno::Errno;
use crate::hw::Warning;
use crate::race::Point;
use std::sync::{Arc, Mutex};

type PauseHook = Arc<dyn Fn(Point) + Send + Sync>;
type RoomHook = Arc<dyn Fn() -> bool + Send + Sync>;
type AccessHook = Arc<dyn Fn(Pfn) -> Result<(), Errno> + Send + Sync>;

#[derive(Default)]
pub(crate) struct Hooks {
    pause: Mutex<Option<PauseHook>>,
    room: Mutex<Option<RoomHook>>,
    access: Mutex<Option<AccessHook>>,
    warnings: Mutex<Vec<Warning>>,
}

impl Hooks {
    pub(crate) fn pause(&self, at: Point) {
        let hook = lock(&self.pause).clone();
        if let Some(hook) = hook {
            hook(at);
        }
    }
    pub(crate) fn make_room(&self) -> bool {
        let hook = lock(&self.room).clone();
        hook.is_some_and(|hook| hook())
    }
    pub(crate) fn make_accessible(&self, pfn: Pfn) -> Result<(), Errno> {
        let hook = lock(&self.access).clone();
        hook.map_or(Ok(()), |hook| hook(pfn))
    }
    pub(crate) fn warn(&self, w: Warning) {
        lock(&self.warnings).push(w);
    }
}

impl Sim {
    /// What happens at pause points.
    pub fn on_pause(&'static self, hook: impl Fn(Point) + Send + Sync + 'static) -> Machine {
        *lock(&self.hooks.pause) = Some(Arc::new(hook));
        self
    }
    /// Nothing happens there any more.
    pub fn no_pause(&self) {
        *lock(&self.hooks.pause) = None;
    }
    /// What happens when a thread without locks has found no frame; whether to try again.
    pub fn on_no_frame(&self, hook: impl Fn() -> bool + Send + Sync + 'static) {
        *lock(&self.hooks.room) = Some(Arc::new(hook));
    }
    /// What making a pinned page accessible says.
    pub fn on_access(&self, hook: impl Fn(Pfn) -> Result<(), Errno> + Send + Sync + 'static) {
        *lock(&self.hooks.access) = Some(Arc::new(hook));
    }
    /// What mm has warned of since this was last asked.
    pub fn warnings(&self) -> Vec<Warning> {
        std::mem::take(&mut *lock(&self.hooks.warnings))
    }
}
