//! What the firmware says of units that translate the addresses of devices (VT-d 4.1, chapter 8: the table `DMAR`).

use acpi::sdt::{SdtHeader, Signature};
use acpi::{AcpiHandler, AcpiTable, AcpiTables};
use spin::Once;

/// The table before its entries.
#[repr(C, packed)]
struct Dmar {
    header: SdtHeader,
    width: u8,
    flags: u8,
    reserved: [u8; 10],
}

// SAFETY: it begins as the specification says, and consists of numbers of any value.
unsafe impl AcpiTable for Dmar {
    const SIGNATURE: Signature = Signature::DMAR;

    fn header(&self) -> &SdtHeader {
        &self.header
    }
}

/// The type of an entry that is a unit; its bytes before the list of its devices; it has all devices that no other has.
const UNIT: u16 = 0;
const UNIT_LEN: usize = 16;
const ALL_OTHERS: u8 = 1;
/// Types of an entry in that list: a function; a bridge, and all behind it. Its bytes before the path.
const FUNCTION: u8 = 1;
const BRIDGE: u8 = 2;
const SCOPE_LEN: usize = 6;

/// A unit for devices of the first segment.
#[derive(Clone, Copy)]
pub struct Unit {
    /// Where its registers are.
    pub registers: u64,
    /// Whether it has all devices that no other has.
    pub all_others: bool,
    scopes: &'static [u8],
}

/// A function that a unit has.
#[derive(Clone, Copy)]
pub struct Scope {
    /// It is a bridge, and the unit has all behind it, too.
    pub bridge: bool,
    /// The way to it: from a bus by device and function, and again from the bus behind that.
    pub bus: u8,
    pub path: &'static [[u8; 2]],
}

static ENTRIES: Once<&'static [u8]> = Once::new();

/// Looks for the table, once.
pub(super) fn read(tables: &AcpiTables<impl AcpiHandler>) {
    let Ok(table) = tables.find_table::<Dmar>() else {
        return;
    };
    // SAFETY: its length and its sum have been looked at; it is in the direct map, and nobody gets the memory of such tables.
    let bytes: &'static [u8] = unsafe {
        core::slice::from_raw_parts(
            table.virtual_start().as_ptr().cast::<u8>(),
            table.region_length(),
        )
    };
    ENTRIES.call_once(|| bytes.get(size_of::<Dmar>()..).unwrap_or_default());
}

/// Takes an entry of `len` bytes off the front, unless the list ends before it does.
fn take(rest: &mut &'static [u8], len: usize, least: usize) -> Option<&'static [u8]> {
    let (entry, next) = rest.split_at_checked(len)?;
    *rest = next;
    (len >= least).then_some(entry)
}

/// All units. None: devices reach memory as they like.
pub fn units() -> impl Iterator<Item = Unit> {
    let mut rest = ENTRIES.get().copied().unwrap_or_default();
    let entries = core::iter::from_fn(move || {
        let len = u16::from_le_bytes([*rest.get(2)?, *rest.get(3)?]);
        take(&mut rest, len.into(), 4)
    });
    entries.filter_map(|entry| {
        let (head, scopes) = entry.split_first_chunk::<UNIT_LEN>()?;
        let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let base = head[8..].iter().rev();
        (number(0) == UNIT && number(6) == 0).then_some(Unit {
            registers: base.fold(0, |base, &byte| base << 8 | u64::from(byte)),
            all_others: head[4] & ALL_OTHERS != 0,
            scopes,
        })
    })
}

impl Unit {
    /// The functions that it has by name.
    pub fn scopes(&self) -> impl Iterator<Item = Scope> {
        let mut rest = self.scopes;
        let entries = core::iter::from_fn(move || {
            let len = *rest.get(1)?;
            take(&mut rest, len.into(), SCOPE_LEN)
        });
        entries.filter_map(|entry| {
            let (head, path) = entry.split_first_chunk::<SCOPE_LEN>()?;
            matches!(head[0], FUNCTION | BRIDGE).then_some(Scope {
                bridge: head[0] == BRIDGE,
                bus: head[5],
                path: path.as_chunks().0,
            })
        })
    }
}
