//! From a server that runs already to one with the agent in it, and back.
//!
//! The process's main thread is stopped where it holds no lock (`safe`), and made to load the agent and to call its
//! functions (`thread`, and the agent's `attach.rs`, which has the sequence). For a moment all other threads are stopped,
//! too (`others`), while jumps to the agent's hooks are put into the allocator's functions (`jumps`). Then everything goes
//! on, and the agent waits for the interpreter to let it in. Whatever fails on the way is undone.
//!
//! What is left in the process after `detach` is the agent's library and a page of stubs, because a thread may have been
//! in the middle of them; nothing leads to them any more.
use std::fs;
use std::io;
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakline_table::attachment::{Attachment, FUNCTIONS, NO_ROOM, State, TABLES_BYTES};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::failure::{Exit, Failure};
use crate::target::python::Mapped;
use crate::target::root::Place;
use agent::Agent;
use examine::{Target, forbidden, gone};
use jumps::Jump;
use memory::{Library, Maps, Memory};
use safe::Places;
use thread::{Caller, SIGNAL_RETURN, Thread, Trouble, Ways, quiet_signal};

mod agent;
pub mod examine;
mod jumps;
pub mod memory;
mod others;
mod safe;
mod thread;

/// What the agent is to do.
pub struct Wishes<'w> {
    /// Its file, by the name by which the process sees it, and by ours.
    pub agent: &'w Place,
    /// The run's folder, in which each process makes its table, as the process sees it.
    pub tables: &'w Path,
    /// Bytes of a table.
    pub table_bytes: u64,
    /// The share of one core that recording may take.
    pub budget: f64,
    /// Record every allocation instead of a sample.
    pub exact: bool,
    /// Walk native code, too.
    pub native: bool,
}

/// What was done to a process.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How long its main thread was stopped.
    pub stopped: Duration,
    /// How many threads it has.
    pub threads: usize,
    /// It is done. Otherwise the interpreter will do the rest as soon as its main thread executes bytecode again.
    pub complete: bool,
}

/// The agent's functions answer so.
const DONE: u64 = 0;
const BUSY: u64 = 1;

/// More of the C library's code is not looked through, bytes.
const MOST_CODE: u64 = 64 << 20;
/// Of a stack that is smaller than this the loader and the agent could come to the end, bytes. A signal's handler may have
/// one that is.
const ROOM: u64 = 64 << 10;
/// How long a thread may take to come to a place where it is safe to stop it.
const SAFE_PATIENCE: Duration = Duration::from_secs(10);
/// How long we wait for the interpreter. It lets the agent in when its main thread wakes up.
const INTERPRETER_PATIENCE: Duration = Duration::from_secs(3);

/// What the agent in this process is doing; `None` where there is none.
pub fn state(target: &Target) -> Option<State> {
    let memory = Memory::open(target.pid).ok()?;
    let states = target.agents.iter().filter_map(|file| Agent::present(target, file)?.state(&memory).ok());
    // An older leakline's agent may have been left behind.
    states.max_by_key(|state| matches!(state, State::Preloaded | State::Asked | State::Recording))
}

/// Brings the agent into the process.
pub fn attach(target: &Target, wishes: &Wishes) -> Result<Outcome, Failure> {
    let _held = HeldSignals::hold();
    let pid = target.pid;
    match state(target) {
        Some(State::Preloaded) => return Err(already(pid, "was started by `leakline run`")),
        Some(State::Asked | State::Recording) => return Err(already(pid, "is being recorded")),
        _ => {}
    }
    let mut session = Session::open(target)?;
    let mut outcome = session.bring_in(wishes)?;
    outcome.complete = match session.await_state(|state| state != State::Asked) {
        Some(State::Refused) => {
            let reason = session.agent.as_ref().map(|agent| agent.reason(&session.memory)).unwrap_or_default();
            session.bring_out(false)?;
            return Err(refused(pid, &reason));
        }
        Some(state) => state != State::Asked,
        None => return Err(gone(pid)),
    };
    Ok(outcome)
}

/// Takes the agent out of the process.
pub fn detach(target: &Target) -> Result<Outcome, Failure> {
    let _held = HeldSignals::hold();
    let pid = target.pid;
    match state(target) {
        Some(State::Asked | State::Recording | State::Leaving) => {}
        Some(State::Preloaded) => {
            return Err(already(pid, "was started by `leakline run`, and is recorded to its end"));
        }
        _ => return Err(already(pid, "is not being recorded")),
    }
    let mut session = Session::open(target)?;
    let mut outcome = session.bring_out(true)?;
    outcome.complete = session.await_state(|state| state == State::Left) == Some(State::Left);
    Ok(outcome)
}

fn already(pid: u32, what: &str) -> Failure {
    Failure::new(Exit::Already, format!("process {pid} {what}"), "see `leakline list` and `leakline report`")
}

fn refused(pid: u32, reason: &str) -> Failure {
    let what = format!("process {pid} goes on without the agent: {reason}");
    match reason {
        NO_ROOM => Failure::new(Exit::Error, what, "make room, or choose another place with --dir"),
        _ => Failure::new(Exit::Unsupported, what, "see what would work with `leakline doctor`"),
    }
}

/// While a process is stopped, nobody may end us: Ctrl-C waits. And nobody comes before us, as far as that is ours to
/// say: each time that we wait for a processor the server waits, too.
struct HeldSignals {
    mask: SigSet,
    niceness: i32,
}

impl HeldSignals {
    fn hold() -> Self {
        // SAFETY: have no preconditions. Only root may raise it; for others it stays as it is.
        let niceness = unsafe {
            let niceness = libc::getpriority(libc::PRIO_PROCESS, 0);
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
            niceness
        };
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD];
        let mask = signals.into_iter().collect::<SigSet>().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        Self { mask: mask.unwrap_or_else(|_| SigSet::empty()), niceness }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, self.niceness) };
        // It was valid before.
        let _ = self.mask.thread_set_mask();
    }
}

/// A process at work on.
struct Session<'t> {
    target: &'t Target,
    memory: Memory,
    places: Places,
    ways: Ways,
    agent: Option<Agent>,
}

impl<'t> Session<'t> {
    fn open(target: &'t Target) -> Result<Self, Failure> {
        let memory = Memory::open(target.pid).map_err(|_| forbidden(target.pid))?;
        let maps = &target.maps;
        // Before glibc 2.34 the waits of threads were in a library of their own.
        let c_library: Vec<&Path> =
            [Some(target.c_library.file.as_path()), maps.named("libpthread")].into_iter().flatten().collect();
        let loader = maps.named("ld-linux").or_else(|| maps.named("ld-2."));
        let places = Places {
            c_library: c_library.iter().flat_map(|file| maps.code(file)).collect(),
            c_data: c_library.iter().copied().chain(loader).flat_map(|file| maps.data(file)).collect(),
            interpreter: target.python.range("_PyEval_EvalFrameDefault"),
        };
        let mut agents = target.agents.iter().filter_map(|file| Agent::present(target, file));
        let agent = agents.rfind(|agent| agent.state(&memory).is_ok());
        let signal_return = maps.code(&target.c_library.file).into_iter().find_map(|code| {
            let mut bytes = vec![0; (code.end - code.start).min(MOST_CODE) as usize];
            memory.read(code.start, &mut bytes).ok()?;
            let at = bytes.windows(SIGNAL_RETURN.len()).position(|bytes| bytes == SIGNAL_RETURN)?;
            Some(code.start + at as u64)
        });
        let Some(signal_return) = signal_return else {
            let what =
                format!("the C library of process {} returns from signals in a way that is not known", target.pid);
            return Err(Failure::new(Exit::Unsupported, what, "start the server with `leakline run` instead"));
        };
        let quiet = (!target.is_filtered).then(|| quiet_signal(target.signals));
        let ways = Ways { signal_return, quiet };
        Ok(Self { target, memory, places, ways, agent })
    }

    fn failed(&self, doing: &str, trouble: &dyn std::fmt::Display) -> Failure {
        let what = format!("cannot {doing} process {}: {trouble}; it goes on as it was", self.target.pid);
        Failure::new(Exit::Error, what, "try again, or start the server with `leakline run`")
    }

    /// The main thread, stopped at a safe place.
    fn main_thread(&self) -> Result<(Thread, Instant), Failure> {
        let mut thread = Thread::seize(self.target.pid as i32).map_err(|trouble| match trouble {
            Trouble::System(_, error) if error.raw_os_error() == Some(libc::EPERM) => forbidden(self.target.pid),
            _ => gone(self.target.pid),
        })?;
        let began = Instant::now();
        let mut pause = Duration::from_micros(500);
        loop {
            let stopped = Instant::now();
            match self.is_at_safe_place(&mut thread) {
                Ok(true) => return Ok((thread, stopped)),
                Ok(false) if began.elapsed() < SAFE_PATIENCE => {}
                Ok(false) => {
                    let why = Trouble::Late("come to a place where it is safe to stop it");
                    return Err(self.failed("stop", &why));
                }
                Err(Trouble::Ended) => return Err(gone(self.target.pid)),
                Err(trouble) => return Err(self.failed("stop", &trouble)),
            }
            thread.resume(None).map_err(|trouble| self.failed("stop", &trouble))?;
            sleep(pause);
            // Neither in step with what it does over and over, nor more than a small part of its time.
            pause = (pause * 5 / 4).min(Duration::from_millis(20));
        }
    }

    fn is_at_safe_place(&self, thread: &mut Thread) -> Result<bool, Trouble> {
        thread.stop()?;
        let registers = thread.registers()?;
        let mut before = [0; 2];
        // Where that can't be read there is no system call.
        let _ = self.memory.read(registers.rip.wrapping_sub(2), &mut before);
        // Where the maps are out of date by now, the next attempt will find room.
        let has_room = self.target.maps.has_room_below(registers.rsp, ROOM);
        Ok(has_room && self.places.is_safe(&registers, before))
    }

    /// Loads the agent where there is none, leads the allocator to it, and makes it ask the interpreter to be let in.
    fn bring_in(&mut self, wishes: &Wishes) -> Result<Outcome, Failure> {
        let Place { ours, theirs, .. } = wishes.agent;
        let file = fs::read(ours).map_err(|error| Failure::io("read", ours, &error))?;
        let fresh = Library::at(&file, 0, theirs)
            .ok_or_else(|| self.failed("attach to", &"the agent is no library for x86-64"))?;
        // Whichever file it came from, only the same agent is used again.
        let present = self.agent.take().filter(|agent| Mapped::agent_name(&agent.0.file) == Mapped::agent_name(theirs));
        let (mut thread, stopped) = self.main_thread()?;
        let done = Caller::new(&mut thread, &self.memory, self.ways)
            .map_err(|trouble| self.failed("attach to", &trouble))
            .and_then(|mut caller| self.bring_in_by(&mut caller, present, fresh, wishes));
        thread.release();
        let stopped = stopped.elapsed();
        let (agent, threads) = done?;
        self.agent = Some(agent);
        Ok(Outcome { stopped, threads, complete: false })
    }

    fn bring_in_by(
        &self,
        caller: &mut Caller,
        present: Option<Agent>,
        fresh: Library,
        wishes: &Wishes,
    ) -> Result<(Agent, usize), Failure> {
        let failed = |error: io::Error| self.failed("attach to", &error);
        let known = present.as_ref().map_or(Ok(0), |agent| agent.stubs(&self.memory)).map_err(failed)?;
        let page = if known == 0 { self.map_page(caller)? } else { known };
        let way = caller.make_way(page + jumps::RETURN).map_err(|trouble| self.failed("attach to", &trouble));
        let loaded = way.and_then(|()| match present {
            Some(agent) => Ok((None, agent)),
            None => self.load(caller, fresh, &wishes.agent.theirs).map(|(handle, agent)| (Some(handle), agent)),
        });
        let (handle, agent) = match loaded {
            Ok(loaded) => loaded,
            Err(failure) => {
                if known == 0 {
                    self.unmap(caller, page);
                }
                return Err(failure);
            }
        };
        let jumps = match self.prepare(caller, &agent, page, wishes) {
            Ok(jumps) => jumps,
            Err(failure) => {
                // Nothing leads to it yet, so it may go again.
                let is_forgotten = known == 0 && agent.put(&self.memory, offset_of!(Attachment, stubs), 0).is_ok();
                if let (Some(handle), Some(close)) = (handle, self.loaders("dlclose")) {
                    let _ = caller.call(close, &[handle]);
                }
                if is_forgotten {
                    self.unmap(caller, page);
                }
                return Err(failure);
            }
        };
        let threads = self.with_others_stopped(&jumps, |memory| {
            let put = jumps::put_in(&jumps, memory);
            if put.is_err() {
                // A failure here is the same one, on what was not changed either.
                let _ = jumps::take_out(&jumps, memory);
            }
            put
        })?;
        let begin = self.function(&agent, "leakline_begin")?;
        if let Err(trouble) = caller.call(begin, &[]) {
            self.with_others_stopped(&jumps, |memory| jumps::take_out(&jumps, memory))?;
            return Err(self.failed("attach to", &trouble));
        }
        Ok((agent, threads))
    }

    /// Makes the process load the agent; the loader's handle, and the library where it lies.
    fn load(&self, caller: &mut Caller, fresh: Library, file: &Path) -> Result<(u64, Agent), Failure> {
        let open = self.loaders("dlopen").ok_or_else(|| self.failed("attach to", &"it has no dlopen"))?;
        let mode = (libc::RTLD_NOW | libc::RTLD_LOCAL) as u64;
        let handle = caller
            .call_with_text(open, file.as_os_str().as_bytes(), &[mode])
            .map_err(|trouble| self.failed("attach to", &trouble))?;
        if handle == 0 {
            let why = self.loaders("dlerror").and_then(|error| caller.call(error, &[]).ok());
            let why = why.map(|text| self.memory.text(text, 400)).unwrap_or_default();
            return Err(self.failed("attach to", &format!("its loader says: {why}")));
        }
        // glibc's handle is its `struct link_map` (link.h), which begins with what to add to addresses in the file.
        let base = self.memory.word(handle).map_err(|error| self.failed("attach to", &error))?;
        let agent = Agent(fresh.moved_to(base));
        // One that the command does not understand goes again.
        if let Err(error) = agent.state(&self.memory) {
            if let Some(close) = self.loaders("dlclose") {
                let _ = caller.call(close, &[handle]);
            }
            return Err(self.failed("attach to", &error));
        }
        Ok((handle, agent))
    }

    /// A function of the loader's, which before glibc 2.34 was in a library of its own.
    fn loaders(&self, name: &str) -> Option<u64> {
        self.target.c_library.address(name).or_else(|| {
            let maps = &self.target.maps;
            maps.library("libdl.so.2").or_else(|| maps.library("libdl-2."))?.address(name)
        })
    }

    fn function(&self, agent: &Agent, name: &str) -> Result<u64, Failure> {
        agent.0.address(name).ok_or_else(|| self.failed("attach to", &format!("its agent has no {name}")))
    }

    /// Fills the page of stubs where that is to be done, and tells the agent what it has to know.
    fn prepare(&self, caller: &mut Caller, agent: &Agent, page: u64, wishes: &Wishes) -> Result<Vec<Jump>, Failure> {
        let failed = |error: io::Error| self.failed("attach to", &error);
        let tables = wishes.tables.as_os_str().as_bytes();
        if tables.len() >= TABLES_BYTES {
            return Err(self.failed("attach to", &"the folder's name is too long"));
        }
        let text: Vec<u8> = tables.iter().copied().chain([0]).collect();
        self.memory.write(agent.field(offset_of!(Attachment, tables)).map_err(failed)?, &text).map_err(failed)?;
        for (offset, word) in [
            (offset_of!(Attachment, table_bytes), wishes.table_bytes),
            (offset_of!(Attachment, budget), wishes.budget.to_bits()),
            (offset_of!(Attachment, exact), u64::from(wishes.exact)),
            (offset_of!(Attachment, native), u64::from(wishes.native)),
        ] {
            agent.put(&self.memory, offset, word).map_err(failed)?;
        }
        let jumps = match agent.stubs(&self.memory).map_err(failed)? {
            0 => {
                let jumps = self.fill_stubs(agent, page).map_err(failed)?;
                agent.put(&self.memory, offset_of!(Attachment, stubs), page).map_err(failed)?;
                jumps
            }
            page => Jump::on_page(&self.memory, page).map_err(failed)?,
        };
        let prepare = self.function(agent, "leakline_prepare")?;
        match caller.call(prepare, &[]) {
            Ok(DONE) => Ok(jumps),
            Ok(_) => Err(refused(self.target.pid, &agent.reason(&self.memory))),
            Err(trouble) => Err(self.failed("attach to", &trouble)),
        }
    }

    /// Maps a page near the C library.
    fn map_page(&self, caller: &mut Caller) -> Result<u64, Failure> {
        // Never writable for the process itself; we write to it from outside.
        const PROTECTION: u64 = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        const FLAGS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        // Where the process has mapped something since we looked, there is another hole.
        const TRIES: u32 = 5;
        let c_library = &self.target.c_library;
        let malloc = c_library.address("malloc").ok_or_else(|| self.failed("attach to", &"it has no malloc"))?;
        let map = c_library.address("mmap").ok_or_else(|| self.failed("attach to", &"it has no mmap"))?;
        let mut looked;
        let mut maps = &self.target.maps;
        for _ in 0..TRIES {
            let hole = maps.hole_near(malloc, jumps::PAGE);
            let hole = hole.ok_or_else(|| self.failed("attach to", &jumps::Obstacle::TooFar))?;
            let page = caller
                .call_system(map, &[hole, jumps::PAGE, PROTECTION, FLAGS, u64::MAX, 0])
                .map_err(|trouble| self.failed("attach to", &trouble))?;
            if page == hole {
                return Ok(page);
            }
            looked = Maps::of(self.target.pid).map_err(|_| gone(self.target.pid))?;
            maps = &looked;
        }
        Err(self.failed("attach to", &"it can map no page near its C library"))
    }

    fn fill_stubs(&self, agent: &Agent, page: u64) -> io::Result<Vec<Jump>> {
        let mut jumps = Vec::<Jump>::new();
        for (index, name) in FUNCTIONS.iter().enumerate() {
            let function = self.target.c_library.range(name);
            let function = function.ok_or_else(|| io::Error::other(format!("its C library has no {name}")))?;
            let next = offset_of!(Attachment, next) + 8 * index;
            // There is no hook of malloc_usable_size; ours only ask it. glibc has one function under two names.
            let Some(hook) = agent.0.address(name) else {
                agent.put(&self.memory, next, function.start)?;
                continue;
            };
            if let Some(twin) = jumps.iter().find(|jump| jump.function == function.start) {
                agent.put(&self.memory, next, twin.next())?;
                continue;
            }
            let mut code = vec![0; (function.end - function.start) as usize];
            self.memory.read(function.start, &mut code)?;
            let (jump, stub) = Jump::prepare(function.start, &code, hook, Jump::stub(page, index))
                .map_err(|obstacle| io::Error::other(format!("{name}: {obstacle}")))?;
            self.memory.write(Jump::stub(page, index), &stub)?;
            agent.put(&self.memory, next, jump.next())?;
            jumps.push(jump);
        }
        Ok(jumps)
    }

    fn unmap(&self, caller: &mut Caller, page: u64) {
        // A page that stays is nobody's harm.
        if let Some(unmap) = self.target.c_library.address("munmap") {
            let _ = caller.call_system(unmap, &[page, jumps::PAGE]);
        }
    }

    /// Does something to the process's code while no thread of it runs, and none is in the middle of what changes.
    fn with_others_stopped(
        &self,
        jumps: &[Jump],
        act: impl FnOnce(&Memory) -> io::Result<()>,
    ) -> Result<usize, Failure> {
        let others = others::stopped(self.target.pid, jumps);
        let others = others.map_err(|trouble| self.failed("stop the threads of", &trouble))?;
        act(&self.memory).map_err(|error| self.failed("change the allocator of", &error))?;
        Ok(others.len() + 1)
    }

    /// Makes the agent end its recording, if there is one, and takes the jumps out.
    fn bring_out(&mut self, records: bool) -> Result<Outcome, Failure> {
        const TRIES: u32 = 100;
        let agent = self.agent.as_ref().ok_or_else(|| already(self.target.pid, "is not being recorded"))?;
        let page = agent.stubs(&self.memory).map_err(|error| self.failed("detach from", &error))?;
        let jumps = match page {
            0 => Vec::new(),
            page => Jump::on_page(&self.memory, page).map_err(|error| self.failed("detach from", &error))?,
        };
        let leave = self.function(agent, "leakline_leave")?;
        for _ in 0..TRIES {
            let (mut thread, stopped) = self.main_thread()?;
            let done = Caller::new(&mut thread, &self.memory, self.ways)
                .and_then(|mut caller| {
                    if !records {
                        return Ok(DONE);
                    }
                    caller.make_way(page + jumps::RETURN)?;
                    caller.call(leave, &[])
                })
                .map_err(|trouble| self.failed("detach from", &trouble))?;
            if done == BUSY {
                thread.release();
                sleep(Duration::from_millis(1));
                continue;
            }
            let threads = self.with_others_stopped(&jumps, |memory| jumps::take_out(&jumps, memory))?;
            thread.release();
            return Ok(Outcome { stopped: stopped.elapsed(), threads, complete: false });
        }
        Err(self.failed("detach from", &"its recorder was busy each time"))
    }

    /// Waits until the agent is in a state of this kind; the last state, `None` where the process is gone.
    fn await_state(&self, enough: impl Fn(State) -> bool) -> Option<State> {
        let agent = self.agent.as_ref()?;
        let began = Instant::now();
        loop {
            let state = agent.state(&self.memory).ok()?;
            if enough(state) || began.elapsed() > INTERPRETER_PATIENCE {
                return Some(state);
            }
            sleep(Duration::from_millis(2));
        }
    }
}
