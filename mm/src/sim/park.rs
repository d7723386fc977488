//! Sleeping threads, by the host's.

use crate::hw::{Park, Parked, Waiter};
use std::sync::{Condvar, Mutex};

#[derive(Default)]
struct State {
    token: bool,
    killed: bool,
    signalled: bool,
}

/// One host thread's bed. Leaked, so that a late `unpark` finds it.
#[derive(Default)]
pub struct Parker {
    state: Mutex<State>,
    bell: Condvar,
}

impl Parker {
    /// Nobody sleeps.
    pub fn new() -> Self {
        Self::default()
    }
    /// Its name.
    pub fn waiter(&'static self) -> Waiter {
        Waiter(std::ptr::from_ref(self).expose_provenance())
    }
    /// See [`crate::hw::Cpu::park`].
    pub fn park(&self, how: Park) -> Parked {
        let mut s = self.state.lock().expect("no sleeper panics");
        loop {
            if s.token {
                s.token = false;
                return Parked::Woken;
            }
            if s.killed && how == Park::Killable {
                return Parked::Killed;
            }
            s = self.bell.wait(s).expect("no sleeper panics");
        }
    }
    /// Whether somebody killed this thread.
    pub fn killed(&self) -> bool {
        self.state.lock().expect("no sleeper panics").killed
    }
    /// Whether it has a signal to take, fatal or not.
    pub fn signalled(&self) -> bool {
        let state = self.state.lock().expect("no sleeper panics");
        state.killed || state.signalled
    }
    fn change(&self, f: impl FnOnce(&mut State)) {
        f(&mut self.state.lock().expect("no sleeper panics"));
        self.bell.notify_all();
    }
}

fn parker(w: Waiter) -> &'static Parker {
    // SAFETY: a `Waiter` is made only by `Parker::waiter`, of a parker that is never freed.
    unsafe { &*std::ptr::with_exposed_provenance::<Parker>(w.0) }
}

/// Wakes a thread, or makes its next sleep short.
pub fn unpark(w: Waiter) {
    parker(w).change(|s| s.token = true);
}

/// A fatal signal arrives (or, for a thread that goes on to another test, is forgotten).
pub fn set_killed(w: Waiter, killed: bool) {
    parker(w).change(|s| s.killed = killed);
}

/// A signal arrives that its program handles (or is forgotten).
pub fn set_signalled(w: Waiter, signalled: bool) {
    parker(w).change(|s| s.signalled = signalled);
}
