//! QEMU's monitor, by a socket (QMP), and who speaks to it while the machine runs.

use crate::guest_dir;
use crate::machines::Verdict;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// A file that is gone when the test is over.
pub(crate) struct Gone(pub(crate) PathBuf);

impl Gone {
    pub(crate) fn named(name: &str) -> Self {
        let gone = Gone(guest_dir().join(name));
        let _ = fs::remove_file(&gone.0);
        gone
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Calls `act` again and again until it has acted, while a machine runs. What came of the machine, and of that.
pub(crate) fn meanwhile<T>(
    mut act: impl FnMut() -> Result<bool, String> + Send,
    machine: impl FnOnce() -> T,
) -> (T, Verdict) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let actor = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if act()? {
                    return Ok(());
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err("the machine was over first".into())
        });
        let outcome = machine();
        over.store(true, Ordering::Relaxed);
        (outcome, actor.join().expect("no panic"))
    })
}

pub(crate) struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// QEMU's words for one that listens at `socket`.
    pub(crate) fn words(socket: &Path) -> [String; 2] {
        let place = format!("unix:{},server=on,wait=off", socket.display());
        ["-qmp".into(), place]
    }

    /// Of a machine with these [words](Monitor::words); it has been greeted.
    pub(crate) fn of(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.says(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    /// The next line of the machine's that `wanted` wants.
    fn hears(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String, String> {
        loop {
            let mut line = String::new();
            let read = self.0.read_line(&mut line);
            if read.map_err(|error| format!("{what}: {error}"))? == 0 {
                return Err(format!("{what}: no answer"));
            }
            if wanted(&line) {
                return Ok(line);
            }
        }
    }

    /// Says a command; events may come before the answer, which is returned.
    pub(crate) fn says(&mut self, command: &str) -> Result<String, String> {
        writeln!(self.0.get_mut(), "{command}").map_err(|error| format!("{command}: {error}"))?;
        let answer = self.hears(command, |line| {
            line.starts_with("{\"return\"") || line.starts_with("{\"error\"")
        })?;
        match answer.starts_with("{\"return\"") {
            true => Ok(answer),
            false => Err(format!("{command}: {answer}")),
        }
    }

    /// Takes a device out, and waits until the guest has let go of it.
    pub(crate) fn takes_out(&mut self, id: &str) -> Verdict {
        self.says(&format!(
            r#"{{"execute":"device_del","arguments":{{"id":"{id}"}}}}"#
        ))?;
        self.has_lost(id)
    }

    /// Waits until the guest has let go of a device.
    pub(crate) fn has_lost(&mut self, id: &str) -> Verdict {
        let of_it = format!("\"device\": \"{id}\"");
        self.hears(&format!("device_del {id}"), |line| {
            line.contains("\"DEVICE_DELETED\"") && line.contains(&of_it)
        })
        .map(drop)
    }
}
