//! Devices on the PCI bus, and what they are to the rest of the kernel.
//!
//! `pci` functions, their capabilities and registers · `irq` vectors for them · `iommu` what each may reach · `block` what a disk is,
//! and the memory that it may use · `flight` transfers that end by themselves · `slots` requests in flight, of any disk · `bochs` a
//! screen · `edu` QEMU's teaching device · `nvme` disks · `virtio` the transport and its queues · `virtio_blk` disks of a virtual machine.
//!
//! Who owns memory that a device writes: a `block::Memory` borrows the pins (or the kernel's own frames) that it is made from,
//! and a transfer keeps it until the device has said that it is done; a `flight::Request` owns them. Nothing is unpinned under a device,
//! and where there is an IOMMU, the device cannot reach it any more when it is.

pub mod block;
pub mod bochs;
pub mod edu;
pub mod flight;
pub mod iommu;
mod irq;
pub mod nvme;
pub mod pci;
pub mod slots;
pub mod virtio;
mod virtio_blk;

pub use irq::{Line, dispatch, report as interrupts};

/// Nanoseconds that a disk may take to answer: `disk_timeout=SECONDS`; more than any needs, unless it is said.
fn patience() -> u64 {
    let said = crate::memory::cmdline("disk_timeout").and_then(|text| text.parse::<u32>().ok());
    u64::from(said.unwrap_or(60)) * 1_000_000_000
}

/// Finds the machine's devices. Once, in thread context, before the first program.
pub fn init() {
    iommu::start();
    pci::each(|function| {
        if bochs::is_one(function) && bochs::start(function).is_none() {
            crate::warn!("pci {function}: this screen is not understood");
        }
        if edu::is_one(function) && edu::start(function).is_none() {
            crate::warn!("pci {function}: this edu is not understood");
        }
        if nvme::is_one(function) && nvme::start(function).is_none() {
            crate::warn!("pci {function}: this NVMe disk is not understood");
        }
        if virtio_blk::is_one(function) && virtio_blk::start(function).is_none() {
            crate::warn!("pci {function}: this virtio disk is not understood");
        }
    });
}
