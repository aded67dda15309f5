//! From a thread of another process to one that is stopped, calls what we tell it to, and goes on as if nothing had
//! happened, even if we are killed meanwhile.
//!
//! Before the thread calls anything, a frame is put on its stack as the kernel puts one there for a signal's handler, with
//! everything that the thread was doing. What it calls returns to code that asks the kernel to take the thread back to what
//! is in the frame, as handlers do. Before it asks we stop it, and take it back ourselves, which knows how to go on with a
//! system call that was interrupted; when we are gone, the kernel does.
//!
//! Two ways lead back. The C library's own is there from the beginning, but it can be watched only by stopping at every
//! system call: by it comes back what does a single one ([`Caller::call_system`]). Our own, for which that has made room
//! (`telling_return`), sends the thread a signal that nobody listens to: whoever is traced stops for it, and for others
//! nothing happens at all. Where a seccomp filter might kill for that, it does not, and is watched like the other one.
//!
//! ```text
//! the thread's stack, from its stack pointer downwards
//!   red zone         128
//!   a text          4096   what is passed to a call, if it is
//!   vector registers  ~2.7 kB, as XSAVE lays them out; at a multiple of 64
//!   frame            312   `Frame`; its first word is where the call returns to
//!   (the call's own frames)
//! ```
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
    /// It begins or ends a system call, as those stop that run by [`Thread::resume_to_system_call`].
    SystemCall,
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
    /// It keeps its return addresses a second time, where we can't write.
    ShadowStack,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::System(doing, error) => write!(f, "cannot {doing}: {error}"),
            Self::Ended => write!(f, "it ended meanwhile"),
            Self::Late(doing) => write!(f, "it took too long to {doing}"),
            Self::Crashed(signal) => write!(f, "{signal} in what it was told to call"),
            Self::ShadowStack => write!(f, "its main thread has a shadow stack"),
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
}

impl Thread {
    /// Begins to trace the thread, which goes on running.
    pub fn seize(id: i32) -> Result<Self, Trouble> {
        let id = Pid::from_raw(id);
        // A thread whose tracer is killed at its system call would else be given the signal by which it was stopped there.
        ptrace::seize(id, Options::PTRACE_O_TRACESYSGOOD).map_err(system("trace it"))?;
        Ok(Self { id, is_stopped: false, is_gone: false })
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
                Event::SystemCall => self.resume(None)?,
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

    /// Lets it run until it begins or ends a system call.
    fn resume_to_system_call(&mut self, signal: Option<Signal>) -> Result<(), Trouble> {
        ptrace::syscall(self.id, signal).map_err(|error| self.lost("let it go on", error))?;
        self.is_stopped = false;
        Ok(())
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
        let _ = ptrace::detach(self.id, None);
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
                Ok(WaitStatus::PtraceSyscall(_)) => {
                    self.is_stopped = true;
                    return Ok(Event::SystemCall);
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

    fn set_signals(&mut self, mut mask: u64) -> Result<(), Trouble> {
        self.request(PTRACE_SETSIGMASK, size_of_val(&mask), (&raw mut mask) as usize, "set its signal mask")
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
/// `NT_X86_SHSTK` (elf.h): there is one only where the thread has a shadow stack.
const SHADOW_STACK: usize = 0x204;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;
/// Bytes below the stack pointer that a function may use without moving it (System V ABI for x86-64).
const RED_ZONE: u64 = 128;
/// Bytes of the longest text that is passed to a call, with its NUL.
const TEXT: u64 = libc::PATH_MAX as u64;

/// Where a signal's handler returns to in the C library (`__restore_rt`): `mov $15, %rax; syscall`, of which 15 is
/// `rt_sigreturn`.
pub const SIGNAL_RETURN: [u8; 9] = [0x48, 0xc7, 0xc0, libc::SYS_rt_sigreturn as u8, 0, 0, 0, 0x0f, 0x05];
/// Most bytes of [`telling_return`], and how many of them have been executed when the signal comes.
pub const TELLING_RETURN: usize = 33;
const TOLD: u64 = 26;

/// Code that does the same, but keeps for us what was returned, and tells us before by a signal, if there is one. Only for
/// the main thread, whose number is that of the process.
#[rustfmt::skip]
fn telling_return(signal: Option<Signal>) -> Vec<u8> {
    let mut code = vec![
        0x49, 0x89, 0xc4,                               // mov %rax, %r12
    ];
    if let Some(signal) = signal {
        code.extend([
            0xb8, libc::SYS_getpid as u8, 0, 0, 0,      // mov $39, %eax
            0x0f, 0x05,                                 // syscall
            0x89, 0xc7,                                 // mov %eax, %edi
            0x89, 0xc6,                                 // mov %eax, %esi
            0xba, signal as u8, 0, 0, 0,                // mov $signal, %edx
            0xb8, libc::SYS_tgkill as u8, 0, 0, 0,      // mov $234, %eax
            0x0f, 0x05,                                 // syscall
        ]);
    }
    code.extend([
        0xb8, libc::SYS_rt_sigreturn as u8, 0, 0, 0,    // mov $15, %eax
        0x0f, 0x05,                                     // syscall
    ]);
    code
}

/// The signal by which a call tells us that it has returned: one that by default does nothing, and for which the process
/// has no handler. Where it has handlers for all of them, the first: it would be called once if we were killed meanwhile.
pub fn quiet_signal(caught: u64) -> Signal {
    let quiet = [Signal::SIGURG, Signal::SIGWINCH, Signal::SIGCONT, Signal::SIGCHLD];
    quiet.into_iter().find(|signal| caught & bit(*signal) == 0).unwrap_or(quiet[0])
}

/// A signal's place in a set of them.
fn bit(signal: Signal) -> u64 {
    1 << (signal as u32 - 1)
}

/// What the kernel finds on the stack of a thread that returns from a signal's handler (`struct rt_sigframe`,
/// arch/x86/include/asm/sigframe.h; asm/ucontext.h and asm/sigcontext.h for its parts).
#[repr(C)]
struct Frame {
    return_address: u64,
    flags: u64,
    link: u64,
    /// Address, flags and bytes of the stack for signals.
    signal_stack: [u64; 3],
    /// r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, flags; cs, gs, fs and ss of 16 bits each; four that tell of
    /// a fault.
    registers: [u64; 23],
    extended_at: u64,
    reserved: [u64; 8],
    signals: u64,
}

const _: () = assert!(size_of::<Frame>() == 312);

impl Frame {
    /// `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS` and `UC_STRICT_RESTORE_SS` (asm/ucontext.h).
    const FLAGS: u64 = 0b111;
    /// Flags that no stack has: what the kernel does about it is to leave the thread's as it is.
    const SAME_SIGNAL_STACK: u64 = 3;

    fn new(return_address: u64, r: &Registers, extended_at: u64, signals: u64) -> Self {
        let (rip, rax) = gone_on(r);
        let segments = r.cs & 0xffff | (r.ss & 0xffff) << 48;
        let registers = [
            r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, rax, r.rcx, r.rsp,
            rip, r.eflags, segments, 0, 0, 0, 0,
        ];
        let signal_stack = [0, Self::SAME_SIGNAL_STACK, 0];
        Self {
            return_address,
            flags: Self::FLAGS,
            link: 0,
            signal_stack,
            registers,
            extended_at,
            reserved: [0; 8],
            signals,
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: integers of eight bytes each, without padding.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }
}

/// Where a thread goes on that was interrupted in a system call, and with what in rax: the kernel, which restarts such a
/// call by itself, does not when it comes from a signal's handler.
fn gone_on(registers: &Registers) -> (u64, u64) {
    /// Not to be seen by programs (linux/errno.h).
    const ERESTARTSYS: i64 = -512;
    const ERESTARTNOINTR: i64 = -513;
    const ERESTARTNOHAND: i64 = -514;
    const ERESTART_RESTARTBLOCK: i64 = -516;
    /// Bytes of the instruction.
    const SYSCALL: u64 = 2;
    let Registers { rip, rax, orig_rax, .. } = *registers;
    if (orig_rax as i64) < 0 {
        return (rip, rax);
    }
    match rax as i64 {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => (rip.wrapping_sub(SYSCALL), orig_rax),
        // How much of its time is left is forgotten when a handler returns. Its caller is told, as after every handler.
        ERESTART_RESTARTBLOCK => (rip, i64::from(-libc::EINTR) as u64),
        _ => (rip, rax),
    }
}

/// From the vector registers as ptrace gives them to the same as the kernel wants them in a frame: it is told how much there
/// is of them, and finds its words before and behind (`struct _fpx_sw_bytes`, asm/sigcontext.h). `None` where they are not
/// what this processor saves.
fn in_frame(extended: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: [u8; 4] = 0x4650_5853_u32.to_le_bytes();
    const MAGIC_BEHIND: [u8; 4] = 0x4650_5845_u32.to_le_bytes();
    /// Where ptrace says what the system saves, and the frame begins to.
    const WORDS: usize = 464;
    /// Where it is said what of it is in use, and the bytes up to the end of that header.
    const IN_USE: usize = 512;
    const LEAST: usize = 576;
    /// AMX's, for which a thread has room only when it has asked for it.
    const TILES: u64 = 0b11 << 17;
    let word = |at: usize| Some(u64::from_le_bytes(extended.get(at..at + 8)?.try_into().ok()?));
    let in_use = word(IN_USE)?;
    let features = word(WORDS)? & (!TILES | in_use);
    let ends = (2..u64::BITS).filter(|feature| features & (1 << feature) != 0).map(|feature| {
        let place = std::arch::x86_64::__cpuid_count(0xd, feature);
        (place.eax + place.ebx) as usize
    });
    let size = ends.fold(LEAST, usize::max);
    let mut bytes = extended.get(..size)?.to_vec();
    let size = size as u32;
    let whole = size + MAGIC_BEHIND.len() as u32;
    let words = [&MAGIC[..], &whole.to_le_bytes(), &features.to_le_bytes(), &size.to_le_bytes()].concat();
    bytes[WORDS..WORDS + words.len()].copy_from_slice(&words);
    bytes.extend(MAGIC_BEHIND);
    Some(bytes)
}

/// A stopped thread that we make call functions. What it was doing it goes on with when this is dropped, or when we are
/// killed.
pub struct Caller<'t> {
    thread: &'t mut Thread,
    memory: &'t Memory,
    registers: Registers,
    extended: Vec<u8>,
    signals: u64,
    /// Where the frame lies.
    frame: u64,
    ways: Ways,
    /// Where [`Self::make_way`] has put the code by which calls return.
    way: Option<u64>,
    /// It is in the midst of a call of which we know no more, and goes back by itself when that is done.
    is_on_its_own: bool,
}

/// The ways back from a call.
#[derive(Clone, Copy)]
pub struct Ways {
    /// Where the C library has [`SIGNAL_RETURN`].
    pub signal_return: u64,
    /// See [`quiet_signal`]; none where the process may not be allowed to send itself one.
    pub quiet: Option<Signal>,
}

impl<'t> Caller<'t> {
    /// Notes what the thread was doing, here and on its stack.
    pub fn new(thread: &'t mut Thread, memory: &'t Memory, ways: Ways) -> Result<Self, Trouble> {
        let registers = thread.registers()?;
        let mut shadow = 0u64;
        let mut vector = libc::iovec { iov_base: (&raw mut shadow).cast(), iov_len: size_of_val(&shadow) };
        if thread.request(libc::PTRACE_GETREGSET, SHADOW_STACK, (&raw mut vector) as usize, "look").is_ok() {
            return Err(Trouble::ShadowStack);
        }
        let mut extended = vec![0; 16 << 10];
        let mut vector = libc::iovec { iov_base: extended.as_mut_ptr().cast(), iov_len: extended.len() };
        let vector_at = (&raw mut vector) as usize;
        thread.request(libc::PTRACE_GETREGSET, EXTENDED_STATE, vector_at, "read its vector registers")?;
        extended.truncate(vector.iov_len);
        let mut signals = 0u64;
        thread.request(PTRACE_GETSIGMASK, 8, (&raw mut signals) as usize, "read its signal mask")?;

        let unknown = || Trouble::System("read its vector registers", io::ErrorKind::Unsupported.into());
        let in_frame = in_frame(&extended).ok_or_else(unknown)?;
        let extended_at = registers.rsp.wrapping_sub(RED_ZONE + TEXT + in_frame.len() as u64) & !63;
        // As a call leaves the stack pointer: eight bytes below a multiple of 16.
        let frame = (extended_at.wrapping_sub(size_of::<Frame>() as u64) & !15).wrapping_sub(8);
        let content = Frame::new(ways.signal_return, &registers, extended_at, signals);
        memory.write(extended_at, &in_frame).map_err(system("write to its stack"))?;
        memory.write(frame, content.bytes()).map_err(system("write to its stack"))?;
        Ok(Self { thread, memory, registers, extended, signals, frame, ways, way: None, is_on_its_own: false })
    }

    /// Puts the code by which [`Self::call`] returns at an address, where there is room for [`TELLING_RETURN`] bytes.
    pub fn make_way(&mut self, at: u64) -> Result<(), Trouble> {
        self.memory.write(at, &telling_return(self.ways.quiet)).map_err(system("write to its code"))?;
        self.way = Some(at);
        Ok(())
    }

    /// Calls a function with up to six integers, and returns what it returns. There must be a way for it.
    pub fn call(&mut self, function: u64, arguments: &[u64]) -> Result<u64, Trouble> {
        let way = self.way.ok_or(Trouble::Late("make a way back from what it is to call"))?;
        self.begin(way, function, arguments)?;
        match self.ways.quiet {
            Some(_) => {
                self.thread.resume(None)?;
                self.follow(Self::await_signal, way)
            }
            None => {
                self.thread.resume_to_system_call(None)?;
                self.follow(Self::await_system_call, way)
            }
        }
    }

    /// The same with a text as the first argument.
    pub fn call_with_text(&mut self, function: u64, text: &[u8], other: &[u64]) -> Result<u64, Trouble> {
        if text.len() as u64 >= TEXT {
            return Err(Trouble::System("write to its stack", io::ErrorKind::InvalidInput.into()));
        }
        let at = self.registers.rsp.wrapping_sub(RED_ZONE + TEXT);
        let text: Vec<u8> = text.iter().copied().chain([0]).collect();
        self.memory.write(at, &text).map_err(system("write to its stack"))?;
        let arguments: Vec<u64> = [at].iter().chain(other).copied().collect();
        self.call(function, &arguments)
    }

    /// Calls a function that does a single system call, and returns what that returned, negative where it failed.
    pub fn call_system(&mut self, function: u64, arguments: &[u64]) -> Result<u64, Trouble> {
        let way = self.ways.signal_return;
        self.begin(way, function, arguments)?;
        self.thread.resume_to_system_call(None)?;
        self.follow(Self::await_system_call, way)
    }

    /// Puts the thread, which does not run yet, at the beginning of a function.
    fn begin(&mut self, way: u64, function: u64, arguments: &[u64]) -> Result<(), Trouble> {
        if self.is_on_its_own {
            return Err(Trouble::Late("return from what it was told to call before"));
        }
        self.memory.write(self.frame, &way.to_le_bytes()).map_err(system("write to its stack"))?;
        let mut registers = self.registers;
        registers.rsp = self.frame;
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
        // From here on the thread goes back to what it was doing by itself.
        self.thread.set_registers(registers)?;
        // Those that a mistake raises must not be blocked: the kernel would change what is done about them.
        let raised = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGSYS];
        let kept = raised.into_iter().chain(self.ways.quiet);
        self.thread.set_signals(kept.fold(u64::MAX, |set, signal| set & !bit(signal)))
    }

    /// Waits until a call has come back.
    fn follow(&mut self, wait: fn(&mut Self, u64) -> Result<u64, Trouble>, way: u64) -> Result<u64, Trouble> {
        self.is_on_its_own = true;
        let returned = wait(self, way);
        // What could not be followed to its end, such as a library that is loaded from a slow disk, must not be left in
        // its midst.
        self.is_on_its_own = !matches!(returned, Ok(_) | Err(Trouble::Crashed(_)));
        returned
    }

    fn await_signal(&mut self, way: u64) -> Result<u64, Trouble> {
        let deadline = Instant::now() + CALL_PATIENCE;
        loop {
            match self.thread.wait(deadline, COME_BACK)? {
                Event::Signal(signal) if self.is_elses(signal) => {
                    let now = self.thread.registers()?;
                    if Some(signal) == self.ways.quiet && now.rip == way + TOLD {
                        return Ok(now.r12);
                    }
                    self.thread.resume(Some(signal))?;
                }
                Event::Signal(signal) => return Err(Trouble::Crashed(signal)),
                // Somebody stops the whole process; that waits until we are done.
                Event::Stopped | Event::SystemCall => self.thread.resume(None)?,
                Event::Ended => return Err(Trouble::Ended),
            }
        }
    }

    fn await_system_call(&mut self, way: u64) -> Result<u64, Trouble> {
        let deadline = Instant::now() + CALL_PATIENCE;
        let mut last = 0;
        loop {
            match self.thread.wait(deadline, COME_BACK)? {
                Event::SystemCall => {
                    let now = self.thread.registers()?;
                    // The stack is as high as this when the call has come back, and not before.
                    if now.orig_rax == libc::SYS_rt_sigreturn as u64 && now.rsp == self.frame + 8 {
                        self.keep_from_returning(way, now)?;
                        // Our own way keeps what the C library's overwrites.
                        return Ok(if way == self.ways.signal_return { last } else { now.r12 });
                    }
                    last = now.rax;
                    self.thread.resume_to_system_call(None)?;
                }
                Event::Signal(signal) if self.is_elses(signal) => self.thread.resume_to_system_call(Some(signal))?,
                Event::Signal(signal) => return Err(Trouble::Crashed(signal)),
                Event::Stopped => self.thread.resume_to_system_call(None)?,
                Event::Ended => return Err(Trouble::Ended),
            }
        }
    }

    /// May this signal have been sent by somebody else? Of those that a call is not kept from, one that stops the whole
    /// process must not end it in its midst either.
    fn is_elses(&self, signal: Signal) -> bool {
        Some(signal) == self.ways.quiet || signal == Signal::SIGSTOP
    }

    /// The call has come back, and the thread is about to ask the kernel to take it back to what is in the frame, which would
    /// lose what only we can restore: how much of an interrupted system call's time is left. Instead it closes a file that is
    /// none, and stands before the same again. (To ask for nothing at all is the call of number -1, for which a seccomp filter
    /// may kill.)
    fn keep_from_returning(&mut self, way: u64, now: Registers) -> Result<(), Trouble> {
        let nothing = Registers { rip: way, orig_rax: libc::SYS_close as u64, rdi: u64::MAX, ..now };
        self.thread.set_registers(nothing)?;
        self.thread.interrupt()?;
        self.thread.resume(None)?;
        self.thread.await_stop()
    }
}

/// What a thread is waited for that was told to call something.
const COME_BACK: &str = "return from what it was told to call";
const DIRECTION: u64 = 1 << 10;
const TRAP: u64 = 1 << 8;

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        if self.thread.is_gone || self.is_on_its_own {
            return;
        }
        // Until its registers are put back it would go back by itself, which it does where one of these is refused.
        let mut vector = libc::iovec { iov_base: self.extended.as_mut_ptr().cast(), iov_len: self.extended.len() };
        let vector_at = (&raw mut vector) as usize;
        let _ = self
            .thread
            .request(libc::PTRACE_SETREGSET, EXTENDED_STATE, vector_at, "set its vector registers")
            .and_then(|()| self.thread.set_signals(self.signals))
            .and_then(|()| self.thread.set_registers(self.registers));
    }
}
