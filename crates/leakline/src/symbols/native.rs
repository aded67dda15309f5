//! From addresses in a program or library to the functions they lie in, outside of the target: by the DWARF of the file
//! or of its debug file where there is some, which knows inlined calls, else by its symbols, else not at all.
//!
//! A file is believed only if it has the build-id that the agent saw in memory: it may have been replaced since.
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use addr2line::gimli::{self, EndianSlice, LittleEndian};
use leakline_table::reader::Module;
use object::{Object, ObjectSection, ObjectSymbol, ReadCache, ReadRef, SymbolKind};

/// A function that an address lies in, the innermost of inlined ones first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, demangled.
    pub name: String,
    /// Where in it the address lies, bytes; for an inlined one, where in the function that it is inlined into.
    pub offset: u64,
}

/// Debug information larger than this is left alone, bytes: names are not worth minutes.
const MOST_DWARF: u64 = 256 << 20;
/// So much is read of one file, bytes: what it says of its own sizes may be anything.
const MOST_READ: u64 = 1 << 30;

/// The functions of the addresses in a module. `root` is where the process that had it loaded sees its `/`.
pub fn functions(module: &Module, root: &Path, addresses: &BTreeSet<u32>) -> BTreeMap<u32, Vec<Function>> {
    let path = within(root, &module.path);
    let own = Bounded::open(&path);
    let own = own.as_ref().and_then(|file| parse(file, &module.build_id));
    // A file that is gone with the container that it was in, or is another one now, may have left its debug file here.
    let named = own.as_ref().map(|object| named_debug_files(object, &path)).unwrap_or_default();
    let separate = debug_files(&module.build_id, root).into_iter().chain(named);
    let separate: Vec<_> = separate.filter_map(|file| Bounded::open(&file)).collect();
    let separate = separate.iter().find_map(|file| parse(file, &module.build_id));
    let objects: Vec<&Elf> = separate.iter().chain(&own).collect();
    let symbols = Symbols::of(&objects);
    let named = |address: u32| Some((address, symbols.function(address.into())?));
    let mut found: BTreeMap<u32, Vec<Function>> = addresses.iter().copied().filter_map(named).collect();
    if let Some(described) = objects.iter().find(|object| has_dwarf(object)) {
        // Damaged debug information costs names, nothing else.
        _ = add_inlined(described, addresses, &mut found);
    }
    found
}

type Elf<'data> = object::File<'data, &'data Bounded>;

/// A file of which no more than [`MOST_READ`] is read.
#[derive(Debug)]
struct Bounded {
    cache: ReadCache<File>,
    /// Bytes that may still be read.
    left: Cell<u64>,
}

impl Bounded {
    /// Opens a file whose name another process chose: what is no file is refused rather than waited for.
    fn open(path: &Path) -> Option<Self> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        file.metadata().ok()?.is_file().then(|| Self { cache: ReadCache::new(file), left: Cell::new(MOST_READ) })
    }

    fn afford(&self, bytes: u64) -> Result<(), ()> {
        self.left.set(self.left.get().checked_sub(bytes).ok_or(())?);
        Ok(())
    }
}

impl<'data> ReadRef<'data> for &'data Bounded {
    fn len(self) -> Result<u64, ()> {
        (&self.cache).len()
    }

    fn read_bytes_at(self, offset: u64, size: u64) -> Result<&'data [u8], ()> {
        self.afford(size)?;
        (&self.cache).read_bytes_at(offset, size)
    }

    fn read_bytes_at_until(self, range: Range<u64>, delimiter: u8) -> Result<&'data [u8], ()> {
        // Of names: what comes before the delimiter is read a little at a time.
        let bytes = (&self.cache).read_bytes_at_until(range, delimiter)?;
        self.afford(bytes.len() as u64)?;
        Ok(bytes)
    }
}

/// The object in a file, if it is the one that was loaded.
fn parse<'data>(file: &'data Bounded, build_id: &[u8]) -> Option<Elf<'data>> {
    let object = object::File::parse(file).ok()?;
    let same = object.build_id().ok()?.unwrap_or_default() == build_id;
    same.then_some(object)
}

fn within(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Where a distribution puts what it strips off files, by build-id: in the process's own root, and in ours.
fn debug_files(build_id: &[u8], root: &Path) -> Vec<PathBuf> {
    let [first, rest @ ..] = build_id else { return Vec::new() };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let file = Path::new("usr/lib/debug/.build-id").join(hex(&[*first])).join(hex(rest) + ".debug");
    [root, Path::new("/")].map(|root| root.join(&file)).into()
}

/// The same by the name that the file itself gives, beside it.
fn named_debug_files(object: &Elf, path: &Path) -> Vec<PathBuf> {
    let link = object.gnu_debuglink().ok().flatten().and_then(|(name, _)| std::str::from_utf8(name).ok());
    match (link.filter(|name| !name.contains('/')), path.parent()) {
        (Some(name), Some(folder)) => vec![folder.join(".debug").join(name), folder.join(name)],
        _ => Vec::new(),
    }
}

fn has_dwarf(object: &Elf) -> bool {
    object.section_by_name(".debug_info").is_some_and(|section| section.size() <= MOST_DWARF)
}

/// Functions by where they lie.
struct Symbols<'data> {
    /// Address, bytes and mangled name, by address.
    all: Vec<(u64, u64, &'data str)>,
}

impl<'data> Symbols<'data> {
    fn of(objects: &[&'data Elf<'data>]) -> Self {
        let symbols = objects.iter().flat_map(|object| object.symbols().chain(object.dynamic_symbols()));
        let functions = symbols.filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition());
        let named = functions.filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?)));
        let mut all: Vec<_> = named.filter(|(_, bytes, _)| *bytes > 0).collect();
        all.sort_unstable();
        Self { all }
    }

    fn function(&self, address: u64) -> Option<Vec<Function>> {
        let behind = self.all.partition_point(|(start, ..)| *start <= address);
        let &(start, bytes, name) = self.all[..behind].last()?;
        let offset = address - start;
        (offset < bytes).then(|| vec![Function { name: demangled(name), offset }])
    }
}

/// What the linker's version script adds to a name is cut off.
fn demangled(name: &str) -> String {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    addr2line::demangle_auto(name.into(), None).into_owned()
}

/// Puts the inlined functions before those that the symbols name.
fn add_inlined(
    object: &Elf,
    addresses: &BTreeSet<u32>,
    found: &mut BTreeMap<u32, Vec<Function>>,
) -> Result<(), gimli::Error> {
    let sections = gimli::DwarfSections::load(|id| {
        let section = object.section_by_name(id.name());
        let data = section.and_then(|section| section.compressed_data().ok());
        // What a section takes when it is unpacked is its own claim.
        let data = data.filter(|data| data.uncompressed_size <= MOST_DWARF);
        Ok::<_, gimli::Error>(data.and_then(|data| data.decompress().ok()).unwrap_or_default())
    })?;
    let context = addr2line::Context::from_dwarf(sections.borrow(|section| EndianSlice::new(section, LittleEndian)))?;
    for &address in addresses {
        let mut frames = context.find_frames(address.into()).skip_all_loads()?;
        let mut names = Vec::new();
        while let Some(frame) = frames.next()? {
            names.extend(frame.function.and_then(|function| Some(function.demangle().ok()?.into_owned())));
        }
        let known = found.entry(address).or_default();
        let offset = known.first().map_or(0, |function| function.offset);
        // The outermost one is the function itself, which its symbol has named already.
        let inlined = names.len().saturating_sub(usize::from(!known.is_empty()));
        known.splice(0..0, names.drain(..inlined).map(|name| Function { name, offset }));
        if known.is_empty() {
            found.remove(&address);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_their_language() {
        for (mangled, name) in [
            ("_ZN4shop4keepEm", "shop::keep(unsigned long)"),
            ("_ZN4core3ptr13drop_in_place17h0123456789abcdefE", "core::ptr::drop_in_place"),
            ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
            ("HPDF_New", "HPDF_New"),
            ("xmlParseDoc@@LIBXML2_2.4.30", "xmlParseDoc"),
        ] {
            assert_eq!(demangled(mangled), name);
        }
    }
}
