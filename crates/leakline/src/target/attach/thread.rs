//! From a thread of another process to one that is stopped, calls what we tell it to, and goes on as if nothing had
//! happened.
use std::io;
use std::time::{Duration, Instant};

use libc::user_regs_struct as Registers;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::memory::Memory;

/// What a thread that we trace did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It stopped because we asked for it.
    Stopped,
    /// It is about to be given a signal.
    Signal(Signal),
    /// It ended.
    Ended,
}

/// Why a thread did not do what it was told to.
#[derive(Debug)]
pub enum Trouble {
    /// The system said so.
    System(&'static str, io::Error),
    /// It ended.
    Ended,
    /// It did not come back in time.
    Late(&'static str),
    /// It crashed in what it was told to call.
    Crashed(Signal),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System(doing, error) => write!(f, "cannot {doing}: {error}"),
            Self::Ended => write!(f, "it ended meanwhile"),
            Self::Late(doing) => write!(f, "it took too long to {doing}"),
            Self::Crashed(signal) => write!(f, "{signal} in what it was told to call"),
        }
    }
}

fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Trouble {
    move |error| Trouble::System(doing, error.into())
}

/// How long a thread may take to stop. One that has vforked stops only when its child has started its program.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// How long a call may take, such as loading a library from a slow disk.
const CALL_PATIENCE: Duration = Duration::from_secs(5);

/// A thread that we trace. It is let go of when this is dropped, wherever it is.
pub struct Thread {
    id: Pid,
    is_stopped: bool,
    /// It ended, or we let go of it.
    is_gone: bool,
    /// A signal that it was about to be given when we stopped it.
    owed: Option<Signal>,
}

impl Thread {
    /// Begins to trace the thread, which goes on running.
    pub fn seize(id: i32) -> Result<Self, Trouble> {
        let id = Pid::from_raw(id);
        ptrace::seize(id, Options::empty()).map_err(system("trace it"))?;
        Ok(Self { id, is_stopped: false, is_gone: false, owed: None })
    }

    /// Stops it, wherever it is.
    pub fn stop(&mut self) -> Result<(), Trouble> {
        self.interrupt()?;
        self.await_stop()
    }

    /// Tells it to stop, and does not wait until it has. Then others can be told, too.
    pub fn interrupt(&mut self) -> Result<(), Trouble> {
        ptrace::interrupt(self.id).map_err(|error| self.lost("stop it", error))
    }

    /// Waits until one that was told to stop has done so.
    pub fn await_stop(&mut self) -> Result<(), Trouble> {
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            match self.wait(deadline, "stop")? {
                Event::Stopped => return Ok(()),
                // It gets the signal when it goes on, and has to stop for us first.
                Event::Signal(signal) => self.resume(Some(signal))?,
                Event::Ended => return Err(Trouble::Ended),
            }
        }
    }

    /// Lets it run.
    pub fn resume(&mut self, signal: Option<Signal>) -> Result<(), Trouble> {
        ptrace::cont(self.id, signal).map_err(|error| self.lost("let it go on", error))?;
        self.is_stopped = false;
        Ok(())
    }

    /// Lets it execute one instruction.
    pub fn step(&mut self) -> Result<(), Trouble> {
        ptrace::step(self.id, self.owed.take()).map_err(|error| self.lost("let it go on", error))?;
        self.is_stopped = false;
        match self.wait(Instant::now() + STOP_PATIENCE, "execute an instruction")? {
            Event::Signal(Signal::SIGTRAP) | Event::Stopped => Ok(()),
            Event::Signal(signal) => {
                self.owed = Some(signal);
                Ok(())
            }
            Event::Ended => Err(Trouble::Ended),
        }
    }

    /// Lets go of it; it goes on with what it did.
    pub fn release(mut self) {
        self.let_go();
    }

    fn let_go(&mut self) {
        if self.is_gone {
            return;
        }
        if !self.is_stopped && self.stop().is_err() {
            return;
        }
        // One that was killed meanwhile need not be let go of.
        let _ = ptrace::detach(self.id, self.owed.take());
        self.is_gone = true;
    }

    /// Waits for what it does next. The kernel tells us by SIGCHLD, which we have blocked and wait for.
    fn wait(&mut self, deadline: Instant, doing: &'static str) -> Result<Event, Trouble> {
        loop {
            match waitpid(self.id, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::StillAlive) => {}
                Ok(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_STOP)) => {
                    self.is_stopped = true;
                    return Ok(Event::Stopped);
                }
                Ok(WaitStatus::Stopped(_, signal)) => {
                    self.is_stopped = true;
                    return Ok(Event::Signal(signal));
                }
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => {
                    self.is_gone = true;
                    return Ok(Event::Ended);
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Trouble::System("wait for it", error.into())),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Trouble::Late(doing));
            }
            let left = libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut set = SigSet::empty();
            set.add(Signal::SIGCHLD);
            // SAFETY: a set and a time of our own. Whether the signal came or not, we look again.
            unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &left) };
        }
    }

    fn lost(&mut self, doing: &'static str, error: Errno) -> Trouble {
        if error == Errno::ESRCH {
            self.is_gone = true;
            return Trouble::Ended;
        }
        Trouble::System(doing, error.into())
    }

    /// Its registers, while it is stopped.
    pub fn registers(&mut self) -> Result<Registers, Trouble> {
        ptrace::getregs(self.id).map_err(|error| self.lost("read its registers", error))
    }

    fn set_registers(&mut self, registers: Registers) -> Result<(), Trouble> {
        ptrace::setregs(self.id, registers).map_err(|error| self.lost("set its registers", error))
    }

    /// A request of ptrace for which nix has no function.
    fn request(&self, request: u32, address: usize, data: usize, doing: &'static str) -> Result<(), Trouble> {
        // SAFETY: each caller hands over a buffer of its own that is as long as it tells the kernel.
        match unsafe { libc::ptrace(request, self.id.as_raw(), address, data) } {
            -1 => Err(Trouble::System(doing, io::Error::last_os_error())),
            _ => Ok(()),
        }
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// `NT_X86_XSTATE` (elf.h): the vector registers and whatever else the processor saves with them.
const EXTENDED_STATE: usize = 0x202;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
/// Bytes below the stack pointer that a function may use without moving it (System V ABI for x86-64).
const RED_ZONE: u64 = 128;

/// A stopped thread that we make call functions. What it was doing it goes on with when this is dropped.
pub struct Caller<'t> {
    thread: &'t mut Thread,
    memory: &'t Memory,
    registers: Registers,
    extended: Vec<u8>,
    signals: u64,
}

impl<'t> Caller<'t> {
    /// Notes what the thread was doing, and holds its signals back.
    pub fn new(thread: &'t mut Thread, memory: &'t Memory) -> Result<Self, Trouble> {
        let registers = thread.registers()?;
        let mut extended = vec![0; 16 << 10];
        let mut vector = libc::iovec { iov_base: extended.as_mut_ptr().cast(), iov_len: extended.len() };
        let vector_at = (&raw mut vector) as usize;
        thread.request(libc::PTRACE_GETREGSET, EXTENDED_STATE, vector_at, "read its vector registers")?;
        extended.truncate(vector.iov_len);
        let mut signals = 0u64;
        thread.request(PTRACE_GETSIGMASK, 8, (&raw mut signals) as usize, "read its signal mask")?;
        // Those that a mistake raises must not be blocked: the kernel would change what is done about them.
        let kept = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
        let mut held = kept.iter().fold(u64::MAX, |set, signal| set & !(1 << (signal - 1)));
        thread.request(PTRACE_SETSIGMASK, 8, (&raw mut held) as usize, "set its signal mask")?;
        Ok(Self { thread, memory, registers, extended, signals })
    }

    /// Calls a function with up to four integers, of which one may be the address of the text, which is put on its
    /// stack.
    pub fn call(&mut self, function: u64, arguments: &[u64]) -> Result<u64, Trouble> {
        self.call_below(self.registers.rsp - RED_ZONE, function, arguments)
    }

    /// The same with a text as the first argument.
    pub fn call_with_text(&mut self, function: u64, text: &[u8], other: &[u64]) -> Result<u64, Trouble> {
        let at = (self.registers.rsp - RED_ZONE - text.len() as u64 - 1) & !15;
        let text: Vec<u8> = text.iter().copied().chain([0]).collect();
        self.memory.write(at, &text).map_err(system("write to its stack"))?;
        let arguments: Vec<u64> = [at].iter().chain(other).copied().collect();
        self.call_below(at, function, &arguments)
    }

    fn call_below(&mut self, top: u64, function: u64, arguments: &[u64]) -> Result<u64, Trouble> {
        /// Where nothing is mapped: the kernel tells us when the function returns to it.
        const NOWHERE: u64 = 0;
        let mut registers = self.registers;
        registers.rsp = (top & !15) - 8;
        self.memory.write(registers.rsp, &NOWHERE.to_le_bytes()).map_err(system("write to its stack"))?;
        let places = [
            &mut registers.rdi,
            &mut registers.rsi,
            &mut registers.rdx,
            &mut registers.rcx,
            &mut registers.r8,
            &mut registers.r9,
        ];
        places.into_iter().zip(arguments).for_each(|(place, argument)| *place = *argument);
        registers.rip = function;
        registers.rax = 0;
        // The kernel would restart the system call that it was in.
        registers.orig_rax = u64::MAX;
        registers.eflags &= !(DIRECTION | TRAP);
        self.thread.set_registers(registers)?;
        self.thread.resume(None)?;
        let deadline = Instant::now() + CALL_PATIENCE;
        loop {
            match self.thread.wait(deadline, "return from what it was told to call") {
                Ok(Event::Signal(Signal::SIGSEGV)) => {
                    let after = self.thread.registers()?;
                    if after.rip == NOWHERE {
                        return Ok(after.rax);
                    }
                    return Err(Trouble::Crashed(Signal::SIGSEGV));
                }
                Ok(Event::Signal(signal)) => return Err(Trouble::Crashed(signal)),
                // Somebody stops the whole process; that waits until we are done.
                Ok(Event::Stopped) => self.thread.resume(None)?,
                Ok(Event::Ended) => return Err(Trouble::Ended),
                Err(trouble) => {
                    // Wherever it is, it goes on with what it was doing.
                    self.thread.stop()?;
                    return Err(trouble);
                }
            }
        }
    }
}

const DIRECTION: u64 = 1 << 10;
const TRAP: u64 = 1 << 8;

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.thread.is_gone {
            return;
        }
        // A thread whose registers can't be put back has been killed.
        let _ = self.thread.set_registers(self.registers);
        let mut vector = libc::iovec { iov_base: self.extended.as_mut_ptr().cast(), iov_len: self.extended.len() };
        let vector_at = (&raw mut vector) as usize;
        let _ = self.thread.request(libc::PTRACE_SETREGSET, EXTENDED_STATE, vector_at, "set its vector registers");
        let signals_at = (&raw mut self.signals) as usize;
        let _ = self.thread.request(PTRACE_SETSIGMASK, 8, signals_at, "set its signal mask");
    }
}
