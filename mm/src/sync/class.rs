//! The one order of all locks.

/// Classes of locks, in the order in which they may be taken: a later one inside an earlier one,
/// never the other way (DESIGN 6.1; `docs/locks.md` says what each protects, `lockdep` checks).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Class {
    /// A file's or directory's own lock (the kernel's file systems).
    Inode,
    /// A file object's size is being changed.
    Resize,
    /// A space's mmap lock.
    Mmap,
    /// One VMA's read lock.
    Vma,
    /// A folio's lock.
    Folio,
    /// A file object's list of mappers.
    FileEdges,
    /// A file object's page index.
    FileCache,
    /// A family's list of mappers.
    AnonEdges,
    /// A level-1 table.
    Table,
    /// An upper table.
    TableUpper,
    /// One CPU's aging lists.
    Lru,
    /// One CPU's magazine of slab objects.
    Magazine,
    /// A slab's frames.
    Slab,
    /// One CPU's free frames.
    FrameCache,
    /// A zone's free blocks.
    Zone,
    /// A small word that is read or written under it, and nothing else: queue of a sleeping lock, label.
    Wait,
}

impl Class {
    /// All of them, in order.
    pub const ALL: [Class; 16] = [
        Self::Inode,
        Self::Resize,
        Self::Mmap,
        Self::Vma,
        Self::Folio,
        Self::FileEdges,
        Self::FileCache,
        Self::AnonEdges,
        Self::Table,
        Self::TableUpper,
        Self::Lru,
        Self::Magazine,
        Self::Slab,
        Self::FrameCache,
        Self::Zone,
        Self::Wait,
    ];
    /// Whoever waits for it sleeps, and whoever holds it may.
    pub const fn sleeps(self) -> bool {
        matches!(self, Self::Inode | Self::Resize | Self::Mmap | Self::Folio)
    }
    /// Its holders may await other CPUs' acknowledgements; so nobody spins on it with interrupts off.
    pub const fn awaited_under(self) -> bool {
        matches!(
            self,
            Self::Vma | Self::FileEdges | Self::AnonEdges | Self::Table | Self::TableUpper
        )
    }
    /// Two of a kind may be held: directories and spaces parent before child, tables by address.
    pub const fn nests(self) -> bool {
        matches!(self, Self::Inode | Self::Mmap | Self::Table)
    }
}
