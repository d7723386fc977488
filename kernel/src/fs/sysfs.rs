//! /sys: the CPUs, and no more than programs look for at their start.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;

use super::attr::anonymous_dev;
use super::dentry::Dentry;
use super::inode::Inode;
use super::pseudo::{FixedDir, Kindred, Text, TextInode, lasting_ino};
use mm::Errno;

/// `cpu0` to the last CPU there can be.
const CPU_NAMES: [&str; 8] = [
    "cpu0", "cpu1", "cpu2", "cpu3", "cpu4", "cpu5", "cpu6", "cpu7",
];

/// A new tree.
pub fn new_root() -> Result<Arc<Dentry>, Errno> {
    let kin = Kindred {
        dev: anonymous_dev(),
        magic: 0x6265_6572,
    };
    let text = |s: Box<dyn Fn(&mut Text) -> core::fmt::Result + Send + Sync>| {
        TextInode::inode(kin, lasting_ino(), 0o444, move |out: &mut Text| s(out))
    };
    let [root, devices, system, cpu, node, node0, fs, kernel, debug] =
        [(); 9].map(|()| lasting_ino());
    let dir = |parent, ino, entries| FixedDir::inode(kin, parent, ino, entries);
    let n = crate::arch::ncpus().clamp(1, CPU_NAMES.len());
    let range = move || text(Box::new(move |out: &mut Text| write_range(out, n)));
    let mut cpus: Vec<(&'static str, Arc<dyn Inode>)> = Vec::from([
        ("online", range()),
        ("possible", range()),
        ("present", range()),
        (
            "kernel_max",
            text(Box::new(|out: &mut Text| {
                writeln!(out, "{}", CPU_NAMES.len() - 1)
            })),
        ),
        ("offline", text(Box::new(|out: &mut Text| writeln!(out)))),
    ]);
    for (i, name) in CPU_NAMES.iter().enumerate().take(n) {
        let ino = lasting_ino();
        let topology = lasting_ino();
        let core = text(Box::new(move |out: &mut Text| writeln!(out, "{i}")));
        let package = text(Box::new(|out: &mut Text| writeln!(out, "0")));
        let topology = dir(
            ino,
            topology,
            Vec::from([("core_id", core), ("physical_package_id", package)]),
        );
        cpus.push((name, dir(cpu, ino, Vec::from([("topology", topology)]))));
    }
    let zero = || text(Box::new(|out: &mut Text| writeln!(out, "0")));
    let node0 = dir(node, node0, Vec::from([("cpulist", range())]));
    let nodes = Vec::from([
        ("online", zero()),
        ("possible", zero()),
        ("has_normal_memory", zero()),
        ("has_memory", zero()),
        ("has_cpu", zero()),
        ("node0", node0),
    ]);
    let system = dir(
        devices,
        system,
        Vec::from([
            ("cpu", dir(system, cpu, cpus)),
            ("node", dir(system, node, nodes)),
        ]),
    );
    let devices = dir(root, devices, Vec::from([("system", system)]));
    // Where debugfs goes.
    let debug = dir(kernel, debug, Vec::new());
    let own = Vec::from([
        ("debug", debug),
        #[cfg(feature = "test")]
        (
            "race",
            TextInode::inode(kin, lasting_ino(), 0o600, crate::race::Script),
        ),
    ]);
    let tree = Vec::from([
        ("devices", devices),
        ("fs", dir(root, fs, Vec::new())),
        ("kernel", dir(root, kernel, own)),
    ]);
    Ok(Dentry::root(dir(root, root, tree)))
}

fn write_range(out: &mut Text, n: usize) -> core::fmt::Result {
    if n == 1 {
        writeln!(out, "0")
    } else {
        writeln!(out, "0-{}", n - 1)
    }
}
