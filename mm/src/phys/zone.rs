//! Zones: what an allocation may stand on.

/// Where a frame lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Zone {
    /// Below 4 GiB: for devices with 32-bit addresses, and the last resort of everybody else.
    Dma32 = 0,
    /// Above 4 GiB.
    Normal = 1,
    /// Only what can be moved or given back: user pages. Long-term pins may not stand here.
    Movable = 2,
}

/// Zones.
pub const ZONES: usize = 3;

/// What a frame is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// User pages: the movable zone first.
    Movable,
    /// Kernel objects, tables, user pages that will be pinned long: never the movable zone.
    Kernel,
    /// Below 4 GiB.
    Dma32,
}

impl Use {
    /// Zones to try, best first.
    pub const fn zones(self) -> &'static [Zone] {
        match self {
            Use::Movable => &[Zone::Movable, Zone::Normal, Zone::Dma32],
            Use::Kernel => &[Zone::Normal, Zone::Dma32],
            Use::Dma32 => &[Zone::Dma32],
        }
    }
}
