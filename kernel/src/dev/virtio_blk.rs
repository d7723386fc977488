//! Disks of a virtual machine (virtio 1.2, 5.2): a queue for each CPU, flush and discard.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use mm::Errno;

use super::block::{self, Disk, Family, Memory, PIECES, Reached, SECTOR, Way};
use super::flight::Request;
use super::pci::Function;
use super::virtio::{self, Queue, Transport};
use crate::arch;

/// Old and new number of the device.
const DEVICES: [u16; 2] = [0x1001, 0x1042];

/// Features: how many pieces, read-only, blocks larger than a sector, flush, several queues, discard.
const SEG_MAX: u64 = 1 << 2;
const RO: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const MQ: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;

/// The configuration's fields.
const CAPACITY: u32 = 0;
const SEG_MAX_AT: u32 = 12;
const BLK_SIZE_AT: u32 = 20;
const NUM_QUEUES: u32 = 34;
const MAX_DISCARD: u32 = 36;

/// Requests.
const IN: u64 = 0;
const OUT: u64 = 1;
const FLUSH_OUT: u64 = 4;
const DISCARD_OUT: u64 = 11;

const OK: u8 = 0;
const UNSUPPORTED: u8 = 2;

struct Blk {
    name: String,
    sectors: u64,
    block: u32,
    features: u64,
    most_discard: u32,
    queues: Vec<&'static Queue>,
    /// It is used by way of the queues from now on.
    transport: Transport,
}

pub fn is_one(function: Function) -> bool {
    let (vendor, device) = function.id();
    vendor == virtio::VENDOR && DEVICES.contains(&device)
}

/// `None`: it lacks something that every such device has had for years.
pub fn start(function: Function) -> Option<()> {
    let mut transport = Transport::of(function)?;
    let wanted = SEG_MAX | RO | BLK_SIZE | FLUSH | MQ | DISCARD;
    let features = transport.negotiate(virtio::INDIRECT, wanted)?;
    let has = |feature: u64| features & feature != 0;
    let c = &transport.device;
    if has(SEG_MAX) && (c.read32(SEG_MAX_AT) as usize) < PIECES {
        return None;
    }
    let capacity = || u64::from(c.read32(CAPACITY)) | u64::from(c.read32(CAPACITY + 4)) << 32;
    let block = match has(BLK_SIZE) {
        true => c.read32(BLK_SIZE_AT),
        false => SECTOR as u32,
    };
    let good = block.is_power_of_two() && (SECTOR as u32..=4096).contains(&block);
    if !good || capacity() > u64::MAX >> 10 {
        return None;
    }
    let queues = match has(MQ) {
        true => c.read16(NUM_QUEUES).min(transport.queues()),
        false => 1,
    };
    let queues: Option<Vec<_>> = (0..queues.min(arch::ncpus() as u16))
        .map(|n| transport.queue(n, n as usize, features))
        .collect();
    let queues = queues.filter(|queues| !queues.is_empty())?;
    let disk = Box::leak(Box::new(Blk {
        name: block::next_name("vd")?,
        sectors: capacity(),
        block,
        features,
        most_discard: if has(DISCARD) {
            c.read32(MAX_DISCARD)
        } else {
            0
        },
        queues,
        transport,
    }));
    disk.transport.ready();
    block::add(disk, Family::Virtio);
    Some(())
}

impl Blk {
    /// Any will do: this thread may be elsewhere by the time that the answer comes.
    fn queue(&self) -> &'static Queue {
        self.queues[arch::cpu_id() % self.queues.len()]
    }

    fn request(&self, kind: u64, sector: u64, memory: Option<&Reached<'_>>) -> Result<(), Errno> {
        let status = self.queue().request(&[kind, sector], memory);
        status.map_or(Err(Errno::EIO), judge)
    }
}

fn judge(status: u8) -> Result<(), Errno> {
    match status {
        OK => Ok(()),
        UNSUPPORTED => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EIO),
    }
}

fn kind(way: Way) -> u64 {
    match way {
        Way::Fill => IN,
        Way::Drain => OUT,
    }
}

impl Disk for Blk {
    fn name(&self) -> &str {
        &self.name
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn block(&self) -> u32 {
        self.block
    }

    fn read_only(&self) -> bool {
        self.features & RO != 0
    }

    fn transfer(&self, sector: u64, memory: &Memory<'_>) -> Result<(), Errno> {
        let memory = memory.map(self.transport.dma())?;
        self.request(kind(memory.way()), sector, Some(&memory))
    }

    fn begin(&self, request: Box<Request>) -> Result<(), Box<Request>> {
        let header = [kind(request.way()), request.sector];
        self.queue().begin(&header, request, judge);
        Ok(())
    }

    fn give_up(&self) {
        for queue in &self.queues {
            queue.give_up();
        }
    }

    fn flush(&self) -> Result<(), Errno> {
        match self.features & FLUSH != 0 {
            true => self.request(FLUSH_OUT, 0, None),
            // Without it, what is done is written.
            false => Ok(()),
        }
    }

    fn discard(&self, sector: u64, sectors: u64) -> Result<(), Errno> {
        if self.most_discard == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (mut sector, end) = (sector, sector + sectors);
        let mut bounce = block::Bounce::new()?;
        while sector < end {
            let n = (end - sector).min(u64::from(self.most_discard));
            bounce.bytes()[..8].copy_from_slice(&sector.to_le_bytes());
            bounce.bytes()[8..16].copy_from_slice(&n.to_le_bytes());
            let range = Memory::of_bounce(&mut bounce, Way::Drain, 16);
            let range = range.map(self.transport.dma())?;
            self.request(DISCARD_OUT, 0, Some(&range))?;
            sector += n;
        }
        Ok(())
    }
}
