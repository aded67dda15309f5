//! From addresses in another process to the bytes there, and to the files that lie there.
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use object::elf::{PT_LOAD, SHN_UNDEF};
use object::read::elf::{ElfFile64, ProgramHeader, Sym};
use object::{Object, RelocationTarget};
use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps, Process};

/// The memory of a process whose threads we may trace. Protections are no obstacle, as for every debugger: pages that are
/// shared with a file are copied when they are written to.
pub struct Memory(File);

impl Memory {
    /// Opens it. Wants the permission to trace the process.
    pub fn open(pid: u32) -> io::Result<Self> {
        let path = format!("/proc/{pid}/mem");
        File::options().read(true).write(true).open(path).map(Self)
    }

    /// The bytes from an address on.
    pub fn read(&self, address: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(into, address)
    }

    /// A word.
    pub fn word(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Half a word.
    pub fn half(&self, address: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The text from an address up to its NUL, or as much of it as there is within so many bytes.
    pub fn text(&self, address: u64, most: usize) -> String {
        let mut bytes = vec![0; most];
        let read = self.0.read_at(&mut bytes, address).unwrap_or(0);
        let end = bytes[..read].iter().position(|byte| *byte == 0).unwrap_or(read);
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// Writes bytes.
    pub fn write(&self, address: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, address)
    }
}

/// What is mapped where in a process.
pub struct Maps {
    pid: u32,
    maps: Vec<MemoryMap>,
}

impl Maps {
    /// As it is now.
    pub fn of(pid: u32) -> procfs::ProcResult<Self> {
        Ok(Self::new(pid, crate::target::process::mappings(&Process::new(pid as i32)?, "maps")?))
    }

    /// As the kernel's words for it say.
    pub fn new(pid: u32, maps: MemoryMaps) -> Self {
        Self { pid, maps: maps.into_iter().collect() }
    }

    /// The files that are mapped, each once.
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = self.maps.iter().filter_map(path).collect();
        files.dedup();
        files
    }

    /// Where a file's code lies.
    pub fn code(&self, file: &Path) -> Vec<Range<u64>> {
        let is_code = |map: &&MemoryMap| map.perms.contains(MMPermissions::EXECUTE) && path(map) == Some(file);
        self.maps.iter().filter(is_code).map(|map| map.address.0..map.address.1).collect()
    }

    /// Where its variables lie: behind those with a value in the file are those that begin as zero.
    pub fn data(&self, file: &Path) -> Vec<Range<u64>> {
        let is_data = |map: &&MemoryMap| map.perms.contains(MMPermissions::WRITE) && path(map) == Some(file);
        let with_zeros = |map: &MemoryMap| {
            let is_behind =
                |next: &&MemoryMap| next.address.0 == map.address.1 && matches!(next.pathname, MMapPath::Anonymous);
            map.address.0..self.maps.iter().find(is_behind).map_or(map.address.1, |next| next.address.1)
        };
        self.maps.iter().filter(is_data).map(with_zeros).collect()
    }

    /// The file whose code or data is at an address.
    pub fn file_at(&self, address: u64) -> Option<&Path> {
        let map = self.maps.iter().find(|map| (map.address.0..map.address.1).contains(&address))?;
        path(map)
    }

    /// The file whose name begins so.
    pub fn named(&self, prefix: &str) -> Option<&Path> {
        let is_it = |file: &&Path| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        self.files().into_iter().find(is_it)
    }

    /// The library whose file's name begins so.
    pub fn library(&self, prefix: &str) -> Option<Library> {
        self.named(prefix).and_then(|file| self.load(file))
    }

    /// The program itself or the library in this file.
    pub fn load(&self, file: &Path) -> Option<Library> {
        let first = self.first(file)?;
        // What the process has mapped, even if its file was replaced, deleted, or lies in another mount namespace.
        let mapped = format!("/proc/{}/map_files/{:x}-{:x}", self.pid, first.address.0, first.address.1);
        let inside = Path::new("/proc").join(self.pid.to_string()).join("root").join(file.strip_prefix("/").ok()?);
        let bytes = read(Path::new(&mapped)).or_else(|_| read(&inside)).ok()?;
        Library::at(&bytes, self.start(file)?, file)
    }

    fn first(&self, file: &Path) -> Option<&MemoryMap> {
        self.maps.iter().find(|map| path(map) == Some(file))
    }

    /// Where a file's beginning lies, or would.
    pub fn start(&self, file: &Path) -> Option<u64> {
        let first = self.first(file)?;
        first.address.0.checked_sub(first.offset)
    }

    /// Is there room for so many bytes more of a stack that has grown down to an address? The main thread's own grows into
    /// the hole beneath it by itself.
    pub fn has_room_below(&self, address: u64, bytes: u64) -> bool {
        let map = self.maps.iter().find(|map| address < map.address.1);
        map.is_some_and(|map| {
            matches!(map.pathname, MMapPath::Stack) || address.checked_sub(map.address.0) >= Some(bytes)
        })
    }

    /// The start of a hole of so many bytes, as near to an address as there is one.
    pub fn hole_near(&self, address: u64, bytes: u64) -> Option<u64> {
        /// A jump reaches 2 GiB, less what lies between the address and the farthest place that has to reach the hole.
        const REACH: u64 = 0x7000_0000;
        /// Where the kernel may refuse to map anything.
        const LEAST: u64 = 0x1_0000;
        let below = std::iter::once(LEAST).chain(self.maps.iter().map(|map| map.address.1));
        let above = self.maps.iter().map(|map| map.address.0).chain([0x7fff_ffff_f000]);
        below
            .zip(above)
            .filter(|(start, end)| end.saturating_sub(*start) >= bytes)
            // A hole's ends: what lies nearest is one of them.
            .flat_map(|(start, end)| [start, end - bytes])
            .filter(|start| start.abs_diff(address) < REACH)
            .min_by_key(|start| start.abs_diff(address))
    }
}

/// Reads a file whose name and size the target has chosen.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MOST_LIBRARY {
        return Err(io::Error::other("it is no library"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_LIBRARY).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn path(map: &MemoryMap) -> Option<&Path> {
    match &map.pathname {
        MMapPath::Path(path) => Some(path),
        _ => None,
    }
}

/// Programs and libraries that are larger are not looked into, bytes.
const MOST_LIBRARY: u64 = 1 << 30;

/// A loaded program or library, and the names that it exports.
pub struct Library {
    /// Its file, as the process sees it.
    pub file: PathBuf,
    /// What to add to addresses in the file.
    base: u64,
    /// Name, address and bytes.
    symbols: Vec<(String, u64, u64)>,
    /// Where the loader puts the address of the malloc that this one calls.
    malloc: Option<u64>,
}

impl Library {
    /// From a file's bytes and the address at which its beginning is mapped; `None` where that is no ELF of 64 bits.
    pub fn at(bytes: &[u8], start: u64, file: &Path) -> Option<Self> {
        let elf = ElfFile64::<object::Endianness>::parse(bytes).ok()?;
        let endian = elf.endian();
        // The file's beginning belongs to the first segment that is loaded.
        let mut segments = elf.elf_program_headers().iter().filter(|segment| segment.p_type(endian) == PT_LOAD);
        let first = segments.next()?;
        let base = start.wrapping_sub(first.p_vaddr(endian).wrapping_sub(first.p_offset(endian)));
        let table = elf.elf_dynamic_symbol_table();
        let symbols = table.iter().filter(|symbol| symbol.st_shndx(endian) != SHN_UNDEF).filter_map(|symbol| {
            let name = std::str::from_utf8(symbol.name(endian, table.strings()).ok()?).ok()?;
            Some((name.to_owned(), symbol.st_value(endian), symbol.st_size(endian)))
        });
        let mut places = elf.dynamic_relocations().into_iter().flatten();
        let malloc = places.find_map(|(place, relocation)| match relocation.target() {
            RelocationTarget::Symbol(symbol) => {
                let symbol = table.symbol(symbol).ok()?;
                (symbol.name(endian, table.strings()).ok()? == b"malloc").then_some(place)
            }
            _ => None,
        });
        Some(Self { file: file.to_owned(), base, symbols: symbols.collect(), malloc })
    }

    /// The same library at another address, that of the beginning of its file.
    pub fn moved_to(self, base: u64) -> Self {
        Self { base, ..self }
    }

    /// The malloc that this one calls, where that is known: its own, or another's that the loader has found.
    pub fn malloc(&self, memory: &Memory) -> Option<u64> {
        let found = || self.malloc.and_then(|place| memory.word(self.base.wrapping_add(place)).ok());
        self.address("malloc").or_else(found)
    }

    /// The address of a name.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.range(name).map(|range| range.start)
    }

    /// The addresses that belong to a name.
    pub fn range(&self, name: &str) -> Option<Range<u64>> {
        let (_, start, bytes) = self.symbols.iter().find(|(known, ..)| known == name)?;
        let start = self.base.wrapping_add(*start);
        Some(start..start.saturating_add(*bytes))
    }
}
