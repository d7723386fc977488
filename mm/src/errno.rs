//! Linux error numbers, and nothing else.

use core::num::NonZeroU16;
use linux_raw_sys::errno;

/// An error number as Linux has it; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(NonZeroU16);

impl Errno {
    /// `None` for zero or anything above 4095.
    pub const fn new(n: u32) -> Option<Self> {
        if n == 0 || n > 4095 {
            return None;
        }
        match NonZeroU16::new(n as u16) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }
    /// The positive number.
    #[inline]
    pub const fn raw(self) -> i32 {
        self.0.get() as i32
    }
    /// What a system call returns in its register: `-errno`.
    #[inline]
    pub const fn as_ret(self) -> u64 {
        -(self.0.get() as i64) as u64
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`")]
            pub const $name: Errno = Errno::new(errno::$name).unwrap();)*

            /// The constant's name; none for the internal codes.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}
errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT ENOTBLK
    EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE
    EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENODATA ETIME
    EOVERFLOW EILSEQ ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT
    ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ECONNABORTED
    ECONNRESET ENOBUFS EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED EALREADY EINPROGRESS ECANCELED
    EREMOTEIO EHWPOISON ENOTUNIQ EBADFD EUSERS EDQUOT EUCLEAN
}

impl Errno {
    /// Internal: restart unless a handler without SA_RESTART runs. Never reaches user mode.
    pub const ERESTARTSYS: Errno = Errno::new(512).unwrap();
    /// Internal: always restart.
    pub const ERESTARTNOINTR: Errno = Errno::new(513).unwrap();
    /// Internal: restart if no handler runs.
    pub const ERESTARTNOHAND: Errno = Errno::new(514).unwrap();
    /// Internal: restart through `restart_syscall`.
    pub const ERESTART_RESTARTBLOCK: Errno = Errno::new(516).unwrap();
}
