//! Devices on the PCI bus, and what they are to the rest of the kernel.
//!
//! `pci` functions, their capabilities and registers · `irq` vectors for them · `block` what a disk is, and the memory
//! that it may use · `edu` QEMU's teaching device · `virtio` the transport and its queues · `virtio_blk` disks of a virtual machine.
//!
//! Who owns memory that a device writes: a `block::Memory` borrows the pins (or the kernel's own frames) that it is made from,
//! and a transfer keeps it until the device has said that it is done. Nothing is unpinned under a device.

pub mod block;
pub mod edu;
mod irq;
mod pci;
mod virtio;
mod virtio_blk;

pub use irq::dispatch;

/// Finds the machine's devices. Once, in thread context, before the first program.
pub fn init() {
    pci::each(|function| {
        if edu::is_one(function) && edu::start(function).is_none() {
            crate::warn!("pci {function}: this edu is not understood");
        }
        if virtio_blk::is_one(function) && virtio_blk::start(function).is_none() {
            crate::warn!("pci {function}: this virtio disk is not understood");
        }
    });
}
