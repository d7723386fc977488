//! Devices on the PCI bus, and what they are to the rest of the kernel.
//!
//! `pci` functions, their capabilities and registers · `irq` vectors for them · `iommu` what each may reach · `block` what a disk is,
//! and the memory that it may use · `flight` transfers that end by themselves · `slots` requests in flight, of any disk · `bochs` a
//! screen · `edu` QEMU's teaching device · `hotplug` devices that are taken out · `nvme` disks · `virtio` the transport and its queues · `virtio_blk` disks of a virtual machine.
//!
//! Who owns memory that a device writes: a `block::Memory` borrows the pins (or the kernel's own frames) that it is made from,
//! and a transfer keeps it until the device has said that it is done; a `flight::Request` owns them. Nothing is unpinned under a device,
//! and where there is an IOMMU, the device cannot reach it any more when it is.

pub mod block;
pub mod bochs;
pub mod edu;
pub mod flight;
mod hotplug;
pub mod iommu;
mod irq;
pub mod nvme;
pub mod pci;
pub mod slots;
pub mod virtio;
mod virtio_blk;

pub use irq::{Line, dispatch, report as interrupts};
use pci::Function;

/// Nanoseconds that a disk may take to answer: `disk_timeout=SECONDS`; more than any needs, unless it is said.
fn patience() -> u64 {
    let said = crate::memory::cmdline("disk_timeout").and_then(|text| text.parse::<u32>().ok());
    u64::from(said.unwrap_or(60)) * 1_000_000_000
}

/// What a driver makes of a function.
pub trait Driver: Sync {
    /// The device is to be taken out: nobody finds it any more, what it was given is done or has failed, and it touches no memory from then
    /// on. `false`: it cannot go. May be asked again. May sleep.
    fn let_go(&self) -> bool;
}

/// A kind of devices that we drive: what it is called, which are of it, and what starts one.
type Kind = (
    &'static str,
    fn(Function) -> bool,
    fn(Function) -> Option<&'static dyn Driver>,
);

const KINDS: [Kind; 4] = [
    ("screen", bochs::is_one, bochs::start),
    ("edu", edu::is_one, edu::start),
    ("NVMe disk", nvme::is_one, nvme::start),
    ("virtio disk", virtio_blk::is_one, virtio_blk::start),
];

/// Finds the machine's devices. Once, in thread context, before the first program.
pub fn init() {
    iommu::start();
    // A line is shared: nobody but drivers' devices may hold it up. A bridge passes on the lines of what is behind it all the same.
    pci::each(Function::leave_the_line);
    pci::each(|function| {
        hotplug::start(function);
        for (what, is_one, start) in KINDS {
            if !is_one(function) {
                continue;
            }
            match start(function) {
                Some(driver) => hotplug::driven(function, driver),
                None => {
                    function.leave_the_bus();
                    crate::warn!("pci {function}: this {what} is not understood");
                }
            }
        }
    });
    hotplug::listen();
}
