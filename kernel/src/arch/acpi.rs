//! What the firmware's tables say: CPUs, interrupt controllers, the PM timer; `dmar` reads one that the crate does not know.

use core::ptr::NonNull;

use acpi::fadt::Fadt;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};

use super::{MAX_CPUS, apic, dmar};

/// Tables are read in the direct map.
#[derive(Clone)]
struct DirectMap;

impl AcpiHandler for DirectMap {
    unsafe fn map_physical_region<T>(&self, pa: usize, size: usize) -> PhysicalMapping<Self, T> {
        let va = NonNull::new(crate::memory::direct(pa as u64) as *mut T).expect("direct map");
        // SAFETY: the direct map covers what the firmware's tables lie in, and stays.
        unsafe { PhysicalMapping::new(pa, va, size, size, DirectMap) }
    }

    fn unmap_physical_region<T>(_region: &PhysicalMapping<Self, T>) {}
}

/// What boot needs to know.
pub(super) struct Machine {
    /// APIC ids of the CPUs that may run, at most `MAX_CPUS`; the boot CPU's is the first.
    pub apic_ids: [u32; MAX_CPUS],
    pub ncpus: usize,
    pub pm_timer: Option<u16>,
}

/// Reads MADT and FADT; maps the local APIC and the I/O APIC. Without tables: one CPU, the usual addresses.
pub(super) fn read(rsdp: Option<u64>) -> Machine {
    let mut machine = Machine {
        apic_ids: [u32::MAX; MAX_CPUS],
        ncpus: 0,
        pm_timer: None,
    };
    // SAFETY: the loader's RSDP; `DirectMap` maps as it promises.
    let tables = rsdp.and_then(|at| unsafe { AcpiTables::from_rsdp(DirectMap, at as usize) }.ok());
    if let Some(tables) = &tables {
        dmar::read(tables);
    }
    let madt = tables.as_ref().and_then(|t| t.find_table::<Madt>().ok());
    let mut base = madt
        .as_ref()
        .map_or(0xfee0_0000, |m| u64::from(m.get().local_apic_address));
    if let Some(madt) = &madt {
        for entry in madt.get().entries() {
            if let MadtEntry::LocalApicAddressOverride(e) = entry {
                base = e.local_apic_address;
            }
        }
    }
    apic::map(base);
    apic::init();
    machine.apic_ids[0] = apic::id();
    machine.ncpus = 1;
    if let Some(madt) = &madt {
        for entry in madt.get().entries() {
            match entry {
                MadtEntry::LocalApic(e) if e.flags & 1 != 0 => machine.add(u32::from(e.apic_id)),
                MadtEntry::LocalX2Apic(e) if e.flags & 1 != 0 => machine.add(e.x2apic_id),
                MadtEntry::IoApic(e) => {
                    apic::add_ioapic(u64::from(e.io_apic_address), e.global_system_interrupt_base);
                }
                MadtEntry::InterruptSourceOverride(e) => {
                    apic::override_isa(e.irq, e.global_system_interrupt, e.flags);
                }
                _ => {}
            }
        }
    }
    machine.pm_timer = tables
        .as_ref()
        .and_then(|t| t.find_table::<Fadt>().ok())
        .and_then(|fadt| fadt.pm_timer_block().ok().flatten())
        .map(|block| block.address as u16)
        .filter(|port| *port != 0);
    machine
}

impl Machine {
    fn add(&mut self, apic_id: u32) {
        if self.ncpus < MAX_CPUS && !self.apic_ids[..self.ncpus].contains(&apic_id) {
            self.apic_ids[self.ncpus] = apic_id;
            self.ncpus += 1;
        }
    }
}
