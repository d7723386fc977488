//! Disks of a virtual machine (virtio 1.2, 5.2): a queue for each CPU, flush and discard.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use mm::Errno;

use super::Driver;
use super::block::{self, Disk, Family, Memory, PIECES, Reached, SECTOR, Way};
use super::flight::Request;
use super::iommu::Dma;
use super::pci::Function;
use super::slots::{self, Control, Parts};
use super::virtio::{self, Command, Queue, Transport};
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
/// Where those end that a feature stands for.
const ENDS: [(u64, u32); 4] = [
    (SEG_MAX, SEG_MAX_AT + 4),
    (BLK_SIZE, BLK_SIZE_AT + 4),
    (MQ, NUM_QUEUES + 2),
    (DISCARD, MAX_DISCARD + 4),
];

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
    /// Pieces of memory in a request.
    most: usize,
    dma: Dma,
    control: &'static Control,
    queues: Vec<&'static Queue>,
}

pub fn is_one(function: Function) -> bool {
    let (vendor, device) = function.id();
    vendor == virtio::VENDOR && DEVICES.contains(&device)
}

/// `None`: it lacks something that every such device has had for years.
pub fn start(function: Function) -> Option<&'static dyn Driver> {
    let mut transport = Transport::of(function)?;
    let Some(blk) = Blk::of(&mut transport) else {
        transport.abandon();
        return None;
    };
    transport.ready();
    let blk: &Blk = Box::leak(Box::new(blk));
    block::add(blk, Family::Virtio);
    Some(blk)
}

impl Blk {
    fn of(transport: &mut Transport) -> Option<Blk> {
        let wanted = SEG_MAX | RO | BLK_SIZE | FLUSH | MQ | DISCARD;
        let features = transport.negotiate(virtio::INDIRECT, wanted)?;
        let has = |feature: u64| features & feature != 0;
        let c = &transport.device;
        let there = |end| end <= c.len();
        if !there(CAPACITY + 8) || ENDS.iter().any(|&(f, end)| has(f) && !there(end)) {
            return None;
        }
        let capacity = u64::from(c.read32(CAPACITY)) | u64::from(c.read32(CAPACITY + 4)) << 32;
        let block = match has(BLK_SIZE) {
            true => c.read32(BLK_SIZE_AT),
            false => SECTOR as u32,
        };
        let good = block.is_power_of_two() && (SECTOR as u32..=4096).contains(&block);
        if !good || capacity > u64::MAX >> 10 {
            return None;
        }
        let queues = match has(MQ) {
            true => c.read16(NUM_QUEUES).min(transport.queues()),
            false => 1,
        };
        let queues: Option<Vec<_>> = (0..queues.min(arch::ncpus() as u16))
            .map(|n| transport.queue(n, n as usize, features, judge))
            .collect();
        let queues = queues?;
        let most = queues.iter().map(|queue| queue.ring().most()).min()?;
        Some(Blk {
            name: block::next_name("vd")?,
            sectors: capacity,
            block,
            features,
            most_discard: match has(DISCARD) {
                true => c.read32(MAX_DISCARD),
                false => 0,
            },
            // Without it there is one, as in Linux.
            most: match has(SEG_MAX) {
                true => most.min(c.read32(SEG_MAX_AT).max(1) as usize),
                false => 1,
            },
            dma: transport.dma(),
            control: transport.control(),
            queues,
        })
    }

    /// Any will do: this thread may be elsewhere by the time that the answer comes.
    fn queue(&self) -> &'static Queue {
        self.queues[arch::cpu_id() % self.queues.len()]
    }

    fn request(&self, kind: u64, memory: Option<&Reached<'_>>) -> Result<(), Errno> {
        let command = Command {
            header: [kind, 0],
            memory: memory.copied(),
        };
        self.queue().request(command).map(drop)
    }
}

impl Parts<virtio::Ring> for Blk {
    fn part<'a>(
        &self,
        sector: u64,
        memory: Reached<'a>,
        skip: u64,
    ) -> Result<(Command<'a>, u64), Errno> {
        let kind = match memory.way() {
            Way::Fill => IN,
            Way::Drain => OUT,
        };
        let rest = memory.part(skip, memory.bytes() - skip);
        let mut rest = rest.ok_or(Errno::EINVAL)?;
        if self.most < PIECES {
            let pieces = rest.pieces().take(self.most);
            let len = pieces.map(|piece| u64::from(piece.len)).sum();
            rest = rest.part(0, len).ok_or(Errno::EINVAL)?;
        }
        let command = Command {
            header: [kind, sector + skip / SECTOR],
            memory: Some(rest),
        };
        Ok((command, rest.bytes()))
    }
}

fn judge(status: u8) -> Result<(), Errno> {
    match status {
        OK => Ok(()),
        UNSUPPORTED => Err(Errno::EOPNOTSUPP),
        _ => Err(Errno::EIO),
    }
}

impl Driver for Blk {
    fn let_go(&self) -> bool {
        block::depart(self.control, || slots::let_go(self.control, &self.queues))
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
        let memory = memory.map(self.dma)?;
        self.queue().transfer(self, sector, &memory)
    }

    fn begin(&'static self, request: Box<Request>) {
        self.queue().begin(self.dma, self, request);
    }

    fn give_up(&self) {
        for queue in &self.queues {
            queue.give_up();
        }
    }

    fn flush(&self) -> Result<(), Errno> {
        match self.features & FLUSH != 0 {
            true => self.request(FLUSH_OUT, None),
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
            let range = range.map(self.dma)?;
            self.request(DISCARD_OUT, Some(&range))?;
            sector += n;
        }
        Ok(())
    }

    fn control(&self) -> &'static Control {
        self.control
    }
}
