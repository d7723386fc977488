//! Memory that users have had pinned for as long as they like: by rings, by devices.
#![forbid(unsafe_code)]

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use mm::{Errno, PAGE_SIZE};
use spin::Mutex as Spin;

use super::process::RLIMIT_MEMLOCK;
use super::{Space, current};

const CAP_IPC_LOCK: u32 = 14;

/// Their pages, by user: what RLIMIT_MEMLOCK limits.
static LOCKED: Spin<Vec<(u32, u64)>> = Spin::new(Vec::new());

/// A share of it, and of the process's VmPin.
pub struct Account {
    uid: Option<u32>,
    space: Weak<Space>,
    pages: u64,
}

impl Account {
    /// ENOMEM over the limit; CAP_IPC_LOCK knows none.
    pub fn charge(space: &Arc<Space>, pages: u64) -> Result<Account, Errno> {
        let process = &current().process;
        let creds = process.creds();
        let uid = (!creds.capable(CAP_IPC_LOCK)).then_some(creds.uid);
        if let Some(uid) = uid {
            let limit = process.limit(RLIMIT_MEMLOCK).soft / PAGE_SIZE;
            let mut locked = LOCKED.lock();
            let entry = match locked.iter().position(|(user, _)| *user == uid) {
                Some(i) => i,
                None => {
                    locked.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                    locked.push((uid, 0));
                    locked.len() - 1
                }
            };
            let all = locked[entry].1.checked_add(pages);
            let Some(all) = all.filter(|all| *all <= limit) else {
                locked.retain(|(_, pages)| *pages != 0);
                return Err(Errno::ENOMEM);
            };
            locked[entry].1 = all;
        }
        space.count_pinned(pages as i64);
        Ok(Account {
            uid,
            space: Arc::downgrade(space),
            pages,
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if let Some(space) = self.space.upgrade() {
            space.count_pinned(-(self.pages as i64));
        }
        let Some(uid) = self.uid else { return };
        let mut locked = LOCKED.lock();
        if let Some((_, pages)) = locked.iter_mut().find(|(user, _)| *user == uid) {
            *pages -= self.pages;
        }
        locked.retain(|(_, pages)| *pages != 0);
        if locked.is_empty() {
            *locked = Vec::new();
        }
    }
}
