//! Signal sets and information, and what is pending. Pure: no lock, no thread.

use alloc::boxed::Box;

use linux_raw_sys::general as sys;
use sys::{
    SIGBUS, SIGCHLD, SIGCONT, SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGSTOP, SIGTRAP, SIGTSTP, SIGTTIN,
    SIGTTOU, SIGURG, SIGWINCH,
};

/// Signals 1 to 64.
pub const NSIG: u32 = 64;
/// `SIG_DFL` and `SIG_IGN`.
pub const SIG_DFL: u64 = 0;
pub const SIG_IGN: u64 = 1;

/// Signal `n` in a set.
pub const fn bit(n: u32) -> u64 {
    1 << (n - 1)
}

/// What no mask can block.
pub const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// What stops by default.
pub const STOPS: u64 = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);
/// What leaves a core file by default.
pub const DUMPS: u64 = bit(sys::SIGQUIT)
    | bit(SIGILL)
    | bit(SIGTRAP)
    | bit(sys::SIGABRT)
    | bit(SIGBUS)
    | bit(SIGFPE)
    | bit(SIGSEGV)
    | bit(sys::SIGXCPU)
    | bit(sys::SIGXFSZ)
    | bit(sys::SIGSYS);
/// What is ignored by default.
pub const IGNORED: u64 = bit(SIGCONT) | bit(SIGCHLD) | bit(SIGWINCH) | bit(SIGURG);
/// What a fault raises: delivered before others.
pub const SYNCHRONOUS: u64 =
    bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGTRAP) | bit(SIGFPE) | bit(sys::SIGSYS);

/// `si_code` values.
pub const SI_USER: i32 = 0;
pub const SI_KERNEL: i32 = 0x80;
pub const SI_QUEUE: i32 = -1;
pub const SI_TIMER: i32 = -2;
pub const SI_TKILL: i32 = -6;
pub const CLD_EXITED: i32 = 1;
pub const CLD_KILLED: i32 = 2;
pub const CLD_DUMPED: i32 = 3;
pub const CLD_TRAPPED: i32 = 4;
pub const CLD_STOPPED: i32 = 5;
pub const CLD_CONTINUED: i32 = 6;

/// Linux's `siginfo_t` without the zeros at its end: words as in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SigInfo {
    words: [u64; 6],
}

impl SigInfo {
    /// Number, code, and nothing else.
    pub const fn new(signo: u32, code: i32) -> SigInfo {
        SigInfo {
            words: [signo as u64, code as u32 as u64, 0, 0, 0, 0],
        }
    }

    /// From the kernel.
    pub const fn kernel(signo: u32) -> SigInfo {
        SigInfo::new(signo, SI_KERNEL)
    }

    /// From a process.
    pub const fn user(signo: u32, code: i32, pid: u32, uid: u32) -> SigInfo {
        let mut i = SigInfo::new(signo, code);
        i.words[2] = pid as u64 | (uid as u64) << 32;
        i
    }

    /// A fault at an address.
    pub const fn fault(signo: u32, code: i32, addr: u64) -> SigInfo {
        let mut i = SigInfo::new(signo, code);
        i.words[2] = addr;
        i
    }

    /// A fault that a protection key caused.
    pub const fn key_fault(signo: u32, code: i32, addr: u64, key: u32) -> SigInfo {
        let mut i = SigInfo::fault(signo, code, addr);
        i.words[4] = key as u64;
        i
    }

    /// A child's change of state.
    pub const fn child(
        signo: u32,
        code: i32,
        pid: u32,
        uid: u32,
        status: i32,
        utime: u64,
        stime: u64,
    ) -> SigInfo {
        let mut i = SigInfo::user(signo, code, pid, uid);
        i.words[3] = status as u32 as u64;
        i.words[4] = utime;
        i.words[5] = stime;
        i
    }

    /// A POSIX timer.
    pub const fn timer(signo: u32, id: u32, overrun: u32, value: u64) -> SigInfo {
        let mut i = SigInfo::new(signo, SI_TIMER);
        i.words[2] = id as u64 | (overrun as u64) << 32;
        i.words[3] = value;
        i
    }

    /// As `rt_sigqueueinfo` brings it.
    pub const fn from_words(words: [u64; 6]) -> SigInfo {
        SigInfo { words }
    }

    pub const fn with_signo(mut self, signo: u32) -> SigInfo {
        self.words[0] = self.words[0] & !0xffff_ffff | signo as u64;
        self
    }

    pub const fn words(&self) -> &[u64; 6] {
        &self.words
    }

    pub const fn signo(&self) -> u32 {
        self.words[0] as u32
    }

    pub const fn code(&self) -> i32 {
        self.words[1] as i32
    }

    /// The sender's pid, the low half of the third word.
    pub const fn pid(&self) -> u32 {
        self.words[2] as u32
    }

    pub const fn uid(&self) -> u32 {
        (self.words[2] >> 32) as u32
    }

    pub const fn status(&self) -> i32 {
        self.words[3] as i32
    }

    /// The 128 bytes user code sees.
    pub fn bytes(&self) -> [u8; 128] {
        let mut b = [0; 128];
        for (i, w) in self.words.iter().enumerate() {
            b[i * 8..i * 8 + 8].copy_from_slice(&w.to_le_bytes());
        }
        b
    }
}

/// A pending signal's information.
pub struct Queued {
    info: SigInfo,
    pub(super) next: Option<Box<Queued>>,
}

impl Queued {
    /// Allocated by the sender before it locks.
    pub fn new(info: SigInfo) -> Box<Queued> {
        Box::new(Queued { info, next: None })
    }

    /// Fills in what was not known when it was allocated.
    pub fn set(&mut self, info: SigInfo) {
        self.info = info;
    }
}

/// Most pieces of information one process or thread has waiting (RLIMIT_SIGPENDING's default).
pub const MAX_QUEUED: u32 = 4096;

/// Pending signals: a set, and information in order of arrival. A signal without information in the
/// queue came from the kernel.
pub struct Pending {
    pub set: u64,
    first: Option<Box<Queued>>,
    count: u32,
}

impl Default for Pending {
    fn default() -> Self {
        Pending::new()
    }
}

impl Pending {
    pub const fn new() -> Pending {
        Pending {
            set: 0,
            first: None,
            count: 0,
        }
    }

    /// Adds a signal; an ordinary one that is pending already is dropped and given back.
    /// So is information beyond [`MAX_QUEUED`]: the signal stays pending without it.
    pub fn add(&mut self, signo: u32, info: Option<Box<Queued>>) -> Option<Box<Queued>> {
        if signo < sys::SIGRTMIN && self.set & bit(signo) != 0 {
            return info;
        }
        self.set |= bit(signo);
        if self.count >= MAX_QUEUED {
            return info;
        }
        if let Some(info) = info {
            let mut at = &mut self.first;
            while let Some(q) = at {
                at = &mut q.next;
            }
            *at = Some(info);
            self.count += 1;
        }
        None
    }

    /// Takes the first signal out of `allowed` (synchronous ones first, then the lowest number).
    /// The emptied node is returned for the caller to free after unlocking.
    pub fn take(&mut self, allowed: u64) -> Option<(SigInfo, Option<Box<Queued>>)> {
        let ready = self.set & allowed;
        if ready == 0 {
            return None;
        }
        let first = if ready & SYNCHRONOUS != 0 {
            ready & SYNCHRONOUS
        } else {
            ready
        };
        let signo = first.trailing_zeros() + 1;
        let mut at = &mut self.first;
        while at.as_ref().is_some_and(|q| q.info.signo() != signo) {
            at = &mut at.as_mut().expect("checked").next;
        }
        let node = at.take().map(|mut q| {
            *at = q.next.take();
            self.count -= 1;
            q
        });
        let mut more = false;
        let mut q = self.first.as_ref();
        while let Some(n) = q {
            more |= n.info.signo() == signo;
            q = n.next.as_ref();
        }
        if !more {
            self.set &= !bit(signo);
        }
        let info = node.as_ref().map_or(SigInfo::kernel(signo), |q| q.info);
        Some((info, node))
    }

    /// Drops every signal of `which`; the nodes are returned to be freed after unlocking.
    pub fn flush(&mut self, which: u64) -> Option<Box<Queued>> {
        if self.set & which == 0 {
            return None;
        }
        self.set &= !which;
        let mut gone: Option<Box<Queued>> = None;
        let mut kept: Option<Box<Queued>> = None;
        let mut tail = &mut kept;
        let mut rest = self.first.take();
        while let Some(mut q) = rest {
            rest = q.next.take();
            if bit(q.info.signo()) & which != 0 {
                q.next = gone;
                gone = Some(q);
                self.count -= 1;
            } else {
                tail = &mut tail.insert(q).next;
            }
        }
        self.first = kept;
        gone
    }

    /// The `n`th pending signal: those with information in order of arrival, then the others.
    pub fn nth(&self, n: u64) -> Option<SigInfo> {
        let (mut left, mut bare) = (n, self.set);
        let mut at = self.first.as_ref();
        while let Some(q) = at {
            if left == 0 {
                return Some(q.info);
            }
            left -= 1;
            bare &= !bit(q.info.signo());
            at = q.next.as_ref();
        }
        (1..=NSIG)
            .filter(|&signo| bare & bit(signo) != 0)
            .nth(usize::try_from(left).ok()?)
            .map(SigInfo::kernel)
    }

    /// Signals with information waiting (RLIMIT_SIGPENDING).
    pub fn queued(&self) -> u32 {
        self.count
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // A long chain must not be freed by recursion.
        let mut next = self.first.take();
        while let Some(mut q) = next {
            next = q.next.take();
        }
    }
}

/// Whether the signal does nothing under this action.
pub fn is_ignored(signo: u32, handler: u64) -> bool {
    handler == SIG_IGN || handler == SIG_DFL && bit(signo) & IGNORED != 0
}
