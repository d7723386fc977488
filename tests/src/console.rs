//! Types at `make run` as a user does: the launcher on a pseudo-terminal, which is a terminal to it.

use crate::build;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

type Result<T> = std::result::Result<T, String>;

/// A running machine and the user's end of its terminal.
pub struct Console {
    child: Child,
    user: File,
    /// Kept open: what the launcher leaves the terminal as is looked at when it has ended.
    terminal: File,
    heard: Arc<Mutex<String>>,
    /// Up to where it has been looked at.
    seen: usize,
}

impl Console {
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same, with more words for the launcher.
    pub fn start_with(words: &[&str]) -> Result<Self> {
        build::kernel()?;
        let failed = |error: std::io::Error| format!("pseudo-terminal: {error}");
        let open = || -> std::io::Result<(File, File)> {
            let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
            grantpt(&user)?;
            unlockpt(&user)?;
            let name = ptsname(&user, Vec::new())?;
            let name = name.to_str().map_err(std::io::Error::other)?;
            let terminal = File::options().read(true).write(true).open(name)?;
            Ok((user.into(), terminal))
        };
        let (user, terminal) = open().map_err(failed)?;
        let end = || terminal.try_clone().map_err(failed);
        let child = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["run", "--quiet", "--package", "launcher", "--"])
            .args(["run", "--timeout", "300"])
            .args(words)
            .current_dir(crate::root())
            .stdin(end()?)
            .stdout(end()?)
            .stderr(end()?)
            .spawn()
            .map_err(|error| error.to_string())?;
        let heard = Arc::<Mutex<String>>::default();
        let (mut stream, sink) = (user.try_clone().map_err(failed)?, heard.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..len]);
                sink.lock().unwrap().push_str(&text);
            }
        });
        Ok(Self {
            child,
            user,
            terminal,
            heard,
            seen: 0,
        })
    }

    pub fn type_in(&mut self, text: &str) -> Result<()> {
        self.user
            .write_all(text.as_bytes())
            .map_err(|error| format!("{error}; heard:\n{}", self.text()))
    }

    /// Types `text` and waits for `answer`.
    pub fn types(&mut self, text: &str, answer: &str) -> Result<()> {
        self.type_in(text)?;
        self.expect(answer)
    }

    fn text(&self) -> String {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until `text` is heard after what has been looked at.
    pub fn expect(&mut self, text: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            if let Some(at) = self.text()[self.seen..].find(text) {
                self.seen += at + text.len();
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!("never heard {text:?}; heard:\n{}", self.text()));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The launcher ends by itself with status 0, and leaves the terminal as it was.
    pub fn end(mut self) -> Result<()> {
        let started = Instant::now();
        let status = loop {
            match self.child.try_wait().map_err(|error| error.to_string())? {
                Some(status) => break status,
                None if started.elapsed() > PATIENCE => {
                    return Err(format!("it does not end; heard:\n{}", self.text()));
                }
                None => thread::sleep(Duration::from_millis(20)),
            }
        };
        if !status.success() {
            return Err(format!("it ended with {status}\n{}", self.text()));
        }
        let modes = tcgetattr(&self.terminal)
            .map_err(|error| error.to_string())?
            .local_modes;
        if modes.contains(LocalModes::ICANON | LocalModes::ECHO) {
            Ok(())
        } else {
            Err(format!("it leaves the terminal with {modes:?}"))
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
