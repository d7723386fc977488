//! The outer two rings: tests inside the kernel, and guest programs that run on the host's Linux and on Pinfold.
//!
//! `cargo test` runs `tests/all.rs`, an ordinary test without a harness: [`runner`] lists every test as a line of its
//! own, [`build`] makes what the selected ones need, [`batch`] boots one machine for each number of CPUs and runs all
//! guest programs in it, [`machines`] holds the tests that need a machine to themselves. [`catalogue`] names the guest
//! programs, [`host`] runs them here, [`mod@bench`] is `make bench`.

pub mod batch;
pub mod bench;
pub mod bugs;
pub mod build;
pub mod catalogue;
pub mod console;
pub mod debuggers;
pub mod diff;
pub mod disks;
pub mod ext4;
pub mod host;
pub mod iommu;
pub mod ktests;
pub mod machines;
mod monitor;
pub mod plug;
pub mod runner;
pub mod screen;
#[cfg(test)]
mod spec;
mod unplug;

use std::path::PathBuf;

/// The root of the workspace.
pub fn root() -> PathBuf {
    launcher::cli::workspace()
}

/// Where guest programs are built.
pub fn guest_dir() -> PathBuf {
    root().join("target/guest")
}
