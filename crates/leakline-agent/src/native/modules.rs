//! Programs and libraries: from an address of code to the module that it lies in, its unwind tables and its name.
//!
//! `_dl_find_object` (glibc 2.35 and later) answers without a lock, also while another thread loads or unloads a library,
//! and so it is asked for every frame in what may be unloaded: a module that has gone, or another one in its place, cannot be
//! taken for the one that was there. Only at the first sight of a module does `dl_iterate_phdr` tell the rest. It waits for
//! nobody but a thread that changes the loader's list in that moment, which allocates nothing meanwhile. The tables
//! themselves stay where they are: `.eh_frame_hdr` is sorted, so nothing is parsed ahead and nothing is copied.

use super::unwind::Unwinder;
use crate::config;
use crate::python::api;
use framehop::{ExplicitModuleSectionInfo, Module as Unwindable, Unwinder as _};
use leakline_table::layout::{MODULE_ALLOCATOR, MODULE_INTERPRETER};
use leakline_table::writer::Writer;
use std::ffi::{CStr, c_int, c_void};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// `struct dl_find_object` (<dlfcn.h>).
#[repr(C)]
struct FoundObject {
    flags: u64,
    map_start: usize,
    map_end: usize,
    /// `struct link_map *`
    link_map: *const LinkMap,
    /// `.eh_frame_hdr`
    unwind_table: usize,
    reserved: [u64; 7],
}

/// The public beginning of `struct link_map` (<link.h>).
#[repr(C)]
struct LinkMap {
    /// Where the module was loaded, less where its own addresses begin.
    base: usize,
    name: *const std::ffi::c_char,
}

type FindObject = unsafe extern "C" fn(*const c_void, *mut FoundObject) -> c_int;

static FIND_OBJECT: OnceLock<FindObject> = OnceLock::new();
/// Is it asked for the modules on stacks?
static ARE_WALKED: AtomicBool = AtomicBool::new(false);
/// Where the allocator below has its malloc.
static ALLOCATOR: AtomicUsize = AtomicUsize::new(0);

/// Looks `_dl_find_object` up, outside of any hook. Without it there are no native stacks.
pub(crate) fn prepare() {
    // SAFETY: a C string; the symbol has this signature wherever it exists.
    let found: Option<FindObject> =
        unsafe { std::mem::transmute(libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr())) };
    // SAFETY: a C string. Hooks that were put in by jumps go on in a copy of malloc's beginning; this is malloc itself.
    let allocator = unsafe { libc::dlsym(libc::RTLD_NEXT, c"malloc".as_ptr()) };
    ALLOCATOR.store(allocator as usize, Ordering::Relaxed);
    if let Some(found) = found {
        _ = FIND_OBJECT.set(found);
    }
    let are_wanted = config::get().is_some_and(|config| config.native);
    ARE_WALKED.store(found.is_some() && are_wanted, Ordering::Relaxed);
}

/// Are native stacks walked? Not where modules can't be told from each other, or where nobody wants to know.
pub(super) fn are_walked() -> bool {
    ARE_WALKED.load(Ordering::Relaxed)
}

/// The agent's own module: its frames stand innermost on every stack, and are left out.
const IS_AGENT: u32 = 1 << 31;

/// A module that has been seen.
pub(super) struct Module {
    /// Where it is mapped, from the first segment to the last.
    range: Range<usize>,
    unwind_table: usize,
    pub(super) base: usize,
    flags: u32,
    /// Its id in the table, 0 for none yet.
    id: u32,
    name: &'static CStr,
    build_id: &'static [u8],
}

impl Module {
    pub(super) fn is_agent(&self) -> bool {
        self.flags & IS_AGENT != 0
    }

    /// Is it never unloaded? The agent, CPython and malloc stay: what they lie at need not be asked for again.
    pub(super) fn is_lasting(&self) -> bool {
        self.flags != 0
    }

    /// CPython itself, or malloc's own library.
    pub(super) fn is_plumbing(&self) -> bool {
        self.flags & (MODULE_INTERPRETER | MODULE_ALLOCATOR) != 0
    }

    /// Its id in the table; it is written down at first sight.
    pub(super) fn id(&mut self, writer: &mut Writer<'_>) -> u32 {
        if self.id == 0 {
            let mut program = [0; 4096];
            let path = match self.name.to_bytes() {
                // The loader has no name for the program itself.
                [] => program_path(&mut program),
                name => name,
            };
            self.id = writer.module(path, self.build_id, self.flags & !IS_AGENT);
        }
        self.id
    }
}

fn program_path(buffer: &mut [u8]) -> &[u8] {
    // SAFETY: a C string, and a buffer of known length.
    let length = unsafe { libc::readlink(c"/proc/self/exe".as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    &buffer[..length.max(0) as usize]
}

/// The modules that have been seen, and what the unwinder needs of them.
pub(super) struct Modules {
    /// Those that last come first.
    known: Vec<Module>,
    /// How many were found to be unloaded.
    removed: u32,
}

impl Modules {
    pub(super) const fn new() -> Self {
        Self { known: Vec::new(), removed: 0 }
    }

    /// A new table knows none of the modules.
    pub(super) fn forget_ids(&mut self) {
        self.known.iter_mut().for_each(|module| module.id = 0);
    }

    /// How many modules were found to be unloaded so far: what is remembered of places in code does not outlast this number.
    pub(super) fn removed(&self) -> u32 {
        self.removed
    }

    /// Is the module that has been seen at this address still there?
    pub(super) fn is_there(&self, address: usize) -> bool {
        object_at(address).is_some_and(|found| self.known.iter().any(|module| found.is(module)))
    }

    /// The module that code lies in; at first sight the unwinder is told of it. `None` where the loader knows of none, as
    /// for code that was made at run time.
    pub(super) fn find(&mut self, address: usize, unwinder: &mut Unwinder) -> Option<&mut Module> {
        let mut lasting = self.known.iter().take_while(|module| module.is_lasting());
        let at = match lasting.position(|module| module.range.contains(&address)) {
            Some(at) => at,
            None => self.find_passing(address, unwinder)?,
        };
        self.known.get_mut(at)
    }

    /// The same for code that may be unloaded.
    fn find_passing(&mut self, address: usize, unwinder: &mut Unwinder) -> Option<usize> {
        let found = object_at(address)?;
        Some(self.known.iter().position(|module| found.is(module)).unwrap_or_else(|| self.add(&found, unwinder)))
    }

    #[cold]
    fn add(&mut self, found: &FoundObject, unwinder: &mut Unwinder) -> usize {
        // SAFETY: `link_map` is that of a module which has code on this thread's stack: it stays loaded meanwhile.
        let (base, name) = unsafe { ((*found.link_map).base, CStr::from_ptr((*found.link_map).name)) };
        let mut image = Image { base, start: found.map_start, unwind_table: found.unwind_table, ..Image::default() };
        // SAFETY: the callback gets the pointer that is handed over here, and only while the call lasts.
        unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut image).cast()) };
        let range = found.map_start..found.map_end;
        // What was loaded here before has been unloaded.
        for module in self.known.iter().filter(|module| overlap(&module.range, &range)) {
            unwinder.remove_module(module.range.start as u64);
        }
        let before = self.known.len();
        self.known.retain(|module| !overlap(&module.range, &range));
        self.removed += (before - self.known.len()) as u32;
        // Without tables the unwinder goes by frame pointers, and gets as far as it gets.
        if let Some(unwindable) = image.unwindable(range.clone()) {
            unwinder.add_module(unwindable);
        }
        let (flags, unwind_table) = (flags(&range), found.unwind_table);
        let module = Module { range, unwind_table, base, flags, id: 0, name, build_id: image.build_id };
        let at = if module.is_lasting() { 0 } else { self.known.len() };
        self.known.insert(at, module);
        at
    }
}

impl FoundObject {
    /// Is it this module?
    fn is(&self, module: &Module) -> bool {
        module.range == (self.map_start..self.map_end) && module.unwind_table == self.unwind_table
    }
}

fn overlap(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What the loader knows of an address.
fn object_at(address: usize) -> Option<FoundObject> {
    let mut found = std::mem::MaybeUninit::<FoundObject>::zeroed();
    // SAFETY: the function fills the struct in where it answers 0.
    unsafe {
        let is_known = FIND_OBJECT.get()?(address as *const c_void, found.as_mut_ptr()) == 0;
        is_known.then(|| found.assume_init())
    }
}

/// Is this code CPython's, malloc's library or the agent? What they map, they give away in blocks, which are seen by
/// themselves. `None` where nobody knows.
pub(crate) fn is_of_an_allocator(code: usize) -> Option<bool> {
    object_at(code).map(|found| flags(&(found.map_start..found.map_end)) != 0)
}

/// What a module is, by what lies in it.
fn flags(range: &Range<usize>) -> u32 {
    let holds = |address: usize, flag| if range.contains(&address) { flag } else { 0 };
    holds(visit as *const () as usize, IS_AGENT)
        | holds(api::get().map_or(0, |api| api.is_initialized as usize), MODULE_INTERPRETER)
        | holds(ALLOCATOR.load(Ordering::Relaxed), MODULE_ALLOCATOR)
}

/// What the program headers say of the module that is looked for.
#[derive(Default)]
struct Image {
    base: usize,
    start: usize,
    unwind_table: usize,
    unwind_table_bytes: usize,
    /// The segment that the unwind tables lie in.
    segment: Range<usize>,
    build_id: &'static [u8],
}

/// Of the module that begins where `Image::start` says, notes the segments.
///
/// # Safety
/// As `dl_iterate_phdr` calls it, with a pointer to an [`Image`].
unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _bytes: usize, image: *mut c_void) -> c_int {
    // SAFETY: the loader's own description of a module that is loaded, and the caller's Image.
    let (info, image) = unsafe { (&*info, &mut *image.cast::<Image>()) };
    if info.dlpi_addr as usize != image.base || info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: as above: so many headers begin there.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let range = |header: &libc::Elf64_Phdr| {
        let start = image.base + header.p_vaddr as usize;
        start..start + header.p_memsz as usize
    };
    let of_kind = |kind| headers.iter().filter(move |header| header.p_type == kind).map(range);
    // Modules without relocation share a base of 0, so the beginning, which is a page's, has to fit as well.
    let begins = |segment: Range<usize>| (segment.start & !0xFFF..segment.end).contains(&image.start);
    if !of_kind(libc::PT_LOAD).any(begins) {
        return 0;
    }
    let table = image.unwind_table;
    let segment = of_kind(libc::PT_LOAD).find(|segment| segment.contains(&table));
    let table_bytes = of_kind(libc::PT_GNU_EH_FRAME).find(|range| range.start == table).map(|range| range.len());
    let notes = of_kind(libc::PT_NOTE).find_map(|notes| {
        // SAFETY: notes lie in a segment that is mapped for as long as the module is, which outlives each use: an id is
        // only written down for a module that is on this thread's stack.
        build_id(unsafe { std::slice::from_raw_parts(notes.start as *const u8, notes.len()) })
    });
    (image.segment, image.unwind_table_bytes) = (segment.unwrap_or_default(), table_bytes.unwrap_or(0));
    image.build_id = notes.unwrap_or(&[]);
    1
}

/// The note `NT_GNU_BUILD_ID` among the notes of a segment (elf(5)): lengths of name and contents, type, name, contents,
/// padded to 4 bytes.
fn build_id(notes: &'static [u8]) -> Option<&'static [u8]> {
    const BUILD_ID: u32 = 3;
    let mut rest = notes;
    loop {
        let word = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        let (name, contents, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
        let start = 12 + name.next_multiple_of(4);
        if kind == BUILD_ID && rest.get(12..12 + name)? == b"GNU\0" {
            return rest.get(start..start + contents);
        }
        rest = rest.get(start + contents.next_multiple_of(4)..)?;
    }
}

impl Image {
    /// The module as the unwinder wants it. `None` where it has no table.
    fn unwindable(&self, range: Range<usize>) -> Option<Unwindable<&'static [u8]>> {
        // SAFETY: the table and the frames that it leads to lie in one segment, which is mapped while the module is; a
        // module's tables are read only for an address that `_dl_find_object` has just said to lie in it, and which is on
        // this thread's stack.
        let (table, frames) = unsafe {
            let bytes = |start: usize, end: usize| {
                (start != 0 && start < end && self.segment.contains(&start) && end <= self.segment.end)
                    .then(|| std::slice::from_raw_parts(start as *const u8, end - start))
            };
            let table = bytes(self.unwind_table, self.unwind_table + self.unwind_table_bytes)?;
            (table, bytes(frames_start(table, self.unwind_table)?, self.segment.end)?)
        };
        let svma = |bytes: &[u8]| {
            let start = (bytes.as_ptr() as usize - self.base) as u64;
            start..start + bytes.len() as u64
        };
        let sections = ExplicitModuleSectionInfo {
            eh_frame_hdr_svma: Some(svma(table)),
            eh_frame_svma: Some(svma(frames)),
            eh_frame_hdr: Some(table),
            eh_frame: Some(frames),
            ..ExplicitModuleSectionInfo::default()
        };
        Some(Unwindable::new(String::new(), range.start as u64..range.end as u64, self.base as u64, sections))
    }
}

/// Where `.eh_frame` begins: the first pointer of `.eh_frame_hdr` (LSB 5.0, 10.6.2). Every linker writes it relative to
/// itself in four bytes, and a table that may be searched.
fn frames_start(table: &[u8], address: usize) -> Option<usize> {
    const VERSION_AND_ENCODINGS: [u8; 4] = [1, 0x1B, 0x03, 0x3B];
    let relative = i32::from_le_bytes(table.get(4..8)?.try_into().ok()?);
    (table.get(..4)? == VERSION_AND_ENCODINGS).then(|| (address + 4).wrapping_add_signed(relative as isize))
}

/// A new table knows none of the modules.
///
/// The recorder it takes is the proof that nobody else unwinds.
pub(crate) fn forget_ids(_held: &crate::recorder::Recorder) {
    super::unwind::with(|state| {
        state.modules.forget_ids();
        state.steps.forget();
    });
}
