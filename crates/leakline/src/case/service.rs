//! Starts what a case's server needs beside it: a store, a database. It runs without leakline, on a port of its own, and
//! ends with whoever started it.
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::signal::Signal;

use super::Case;

/// How long a service may take until it accepts connections.
const START: Duration = Duration::from_secs(120);

/// A port of 127.0.0.1 that nobody listens on.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A running service, which is killed when this is dropped.
pub struct Service {
    /// Its port of 127.0.0.1.
    pub port: u16,
    child: Child,
}

impl Case {
    /// Starts the case's service in `folder`, where the case was unpacked, and waits until it accepts connections; `None`
    /// where the case needs none. What it says goes to `service.log` there.
    pub fn start_service(&self, python: &Path, folder: &Path) -> io::Result<Option<Service>> {
        let Some(line) = &self.service else { return Ok(None) };
        let port = free_port()?;
        let words = super::words(line, python, &[("{service_port}", Some(port))]);
        let log = File::create(folder.join("service.log"))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: prctl is async-signal-safe, and nothing else is done between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let mut service = Service { port, child: command.spawn()? };
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = service.child.try_wait()? {
                return Err(io::Error::other(format!("the service ended with {status}; see service.log")));
            }
            if start.elapsed() > START {
                return Err(io::Error::other("the service accepts no connection; see service.log"));
            }
            sleep(Duration::from_millis(100));
        }
        Ok(Some(service))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
