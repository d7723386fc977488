//! File descriptors: a process's small numbers for open files.
//!
//! A plain vector under a spin lock that is never held while a file is dropped: what leaves the table is returned
//! or collected and dropped outside, since a last close may sleep.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;
use spin::Mutex as Spin;

use super::file::File;
use super::records;
use mm::Errno;

/// Most descriptors a process may have, whatever RLIMIT_NOFILE says (Linux: fs.nr_open).
pub const NR_OPEN: usize = 1 << 20;

#[derive(Clone)]
struct Slot {
    file: Arc<File>,
    cloexec: bool,
}

#[derive(Default)]
struct Table {
    slots: Vec<Option<Slot>>,
    /// No free slot is below this.
    free_from: usize,
}

/// The descriptors of a process, or of several that share them.
#[derive(Default)]
pub struct FdTable {
    table: Spin<Table>,
}

impl Table {
    fn lowest_free(&self, from: usize) -> usize {
        let from = from.max(self.free_from);
        (from..self.slots.len())
            .find(|i| self.slots[*i].is_none())
            .unwrap_or(self.slots.len().max(from))
    }

    /// Makes sure slot `fd` exists.
    fn grow(&mut self, fd: usize) -> Result<(), Errno> {
        if fd >= self.slots.len() {
            let want = (fd + 1).next_multiple_of(8);
            self.slots
                .try_reserve_exact(want - self.slots.len())
                .map_err(|_| Errno::ENOMEM)?;
            self.slots.resize(want, None);
        }
        Ok(())
    }

    fn take(&mut self, fd: usize) -> Option<Arc<File>> {
        let slot = self.slots.get_mut(fd)?.take()?;
        self.free_from = self.free_from.min(fd);
        Some(slot.file)
    }
}

impl FdTable {
    pub fn new() -> Self {
        Self::default()
    }

    /// The file behind `fd`. O_PATH files too: reading and writing refuse them themselves.
    #[inline]
    pub fn get(&self, fd: i32) -> Result<Arc<File>, Errno> {
        let table = self.table.lock();
        match table.slots.get(fd as u32 as usize) {
            Some(Some(slot)) => Ok(slot.file.clone()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Puts `file` at the lowest free number from `min` on, below the process's limit.
    pub fn install_from(&self, file: Arc<File>, cloexec: bool, min: usize) -> Result<i32, Errno> {
        let limit = limit();
        let mut t = self.table.lock();
        let fd = t.lowest_free(min);
        if fd >= limit {
            return Err(Errno::EMFILE);
        }
        t.grow(fd)?;
        t.slots[fd] = Some(Slot { file, cloexec });
        if min <= t.free_from {
            t.free_from = fd + 1;
        }
        Ok(fd as i32)
    }

    /// Puts `file` at the lowest free number.
    pub fn install(&self, file: Arc<File>, cloexec: bool) -> Result<i32, Errno> {
        self.install_from(file, cloexec, 0)
    }

    /// Puts two files in, or none.
    pub fn install_pair(
        &self,
        a: Arc<File>,
        b: Arc<File>,
        cloexec: bool,
    ) -> Result<(i32, i32), Errno> {
        let first = self.install(a, cloexec)?;
        match self.install(b, cloexec) {
            Ok(second) => Ok((first, second)),
            Err(e) => {
                let _ = self.close(first);
                Err(e)
            }
        }
    }

    /// Makes `fd` refer to `file`; what it referred to is closed.
    pub fn replace(&self, fd: usize, file: Arc<File>, cloexec: bool) -> Result<(), Errno> {
        if fd >= limit() {
            return Err(Errno::EBADF);
        }
        let mut t = self.table.lock();
        t.grow(fd)?;
        let old = t.slots[fd].replace(Slot { file, cloexec });
        drop(t);
        if let Some(slot) = old {
            self.closed(slot.file);
        }
        Ok(())
    }

    /// close.
    pub fn close(&self, fd: i32) -> Result<(), Errno> {
        let file = self.remove(fd)?;
        self.closed(file);
        Ok(())
    }

    /// Who holds record locks taken through this table.
    pub fn lock_owner(&self) -> records::Owner {
        records::Owner(core::ptr::from_ref(self) as usize)
    }

    /// `file` has left the table; no lock is held.
    fn closed(&self, file: Arc<File>) {
        records::forget(self.lock_owner(), Some(&file));
    }

    /// Takes `fd` out; the caller drops the file with no lock held.
    pub fn remove(&self, fd: i32) -> Result<Arc<File>, Errno> {
        self.table
            .lock()
            .take(fd as u32 as usize)
            .ok_or(Errno::EBADF)
    }

    pub fn cloexec(&self, fd: i32) -> Result<bool, Errno> {
        match self.table.lock().slots.get(fd as u32 as usize) {
            Some(Some(slot)) => Ok(slot.cloexec),
            _ => Err(Errno::EBADF),
        }
    }

    pub fn set_cloexec(&self, fd: i32, on: bool) -> Result<(), Errno> {
        match self.table.lock().slots.get_mut(fd as u32 as usize) {
            Some(Some(slot)) => {
                slot.cloexec = on;
                Ok(())
            }
            _ => Err(Errno::EBADF),
        }
    }

    /// close_range: closes `first..=last`, or marks them close-on-exec.
    pub fn close_range(&self, first: usize, last: usize, only_mark: bool) {
        let mut from = first;
        loop {
            let mut t = self.table.lock();
            let end = t.slots.len().min(last.saturating_add(1));
            if only_mark {
                t.slots
                    .iter_mut()
                    .take(end)
                    .skip(from)
                    .flatten()
                    .for_each(|s| s.cloexec = true);
                return;
            }
            let Some(fd) = (from..end).find(|i| t.slots[*i].is_some()) else {
                return;
            };
            let file = t.take(fd);
            drop(t);
            if let Some(file) = file {
                self.closed(file);
            }
            from = fd + 1;
        }
    }

    /// exec: closes what is marked.
    pub fn close_on_exec(&self) {
        let mut from = 0;
        loop {
            let mut t = self.table.lock();
            let marked = |s: &Option<Slot>| s.as_ref().is_some_and(|s| s.cloexec);
            let Some(fd) = (from..t.slots.len()).find(|i| marked(&t.slots[*i])) else {
                return;
            };
            let file = t.take(fd);
            drop(t);
            if let Some(file) = file {
                self.closed(file);
            }
            from = fd + 1;
        }
    }

    /// fork: a table with the same files.
    pub fn try_clone(&self) -> Result<Self, Errno> {
        let t = self.table.lock();
        let used = t
            .slots
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |i| i + 1);
        let mut slots = Vec::new();
        slots
            .try_reserve_exact(used.next_multiple_of(8))
            .map_err(|_| Errno::ENOMEM)?;
        slots.extend_from_slice(&t.slots[..used]);
        Ok(FdTable {
            table: Spin::new(Table {
                slots,
                free_from: t.free_from.min(used),
            }),
        })
    }

    /// The first descriptor from `from` on, with its file: for /proc/PID/fd.
    pub fn next_from(&self, from: usize) -> Option<(usize, Arc<File>)> {
        let t = self.table.lock();
        t.slots
            .iter()
            .enumerate()
            .skip(from)
            .find_map(|(i, s)| Some((i, s.as_ref()?.file.clone())))
    }

    /// How many slots the table has (`FDSize` of status).
    pub fn size(&self) -> usize {
        self.table.lock().slots.len()
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        records::forget(self.lock_owner(), None);
    }
}

/// RLIMIT_NOFILE of the caller.
fn limit() -> usize {
    super::caller::nofile_limit().min(NR_OPEN)
}
