//! Interns strings, code objects, stacks, modules and routes: the same thing gets the same id, as long as there is room.
//!
//! Each kind has an index in private memory, open-addressed with linear probing, which holds ids plus the upper bits of
//! the hash. The arenas only grow; a full arena refuses, and the writer counts the loss.

use super::memory::{Carver, Plain};
use crate::layout::{CodeRecord, Loss, ModuleRecord, RouteRecord};

/// A cell of an index: the id, and bits of the hash so that most strangers are told apart without a look at them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Cell {
    id: u32,
    check: u32,
}

// SAFETY: two integers.
unsafe impl Plain for Cell {}

/// What names a code object in memory, and whether it is still the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CodeKey {
    /// Where the code object lies. Never 0.
    pub address: u64,
    /// Changes when another code object comes to lie there: a mix of what it points to.
    pub fingerprint: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct KnownCode {
    key: CodeKey,
    id: u32,
    reserved: u32,
}

// SAFETY: integers.
unsafe impl Plain for KnownCode {}

/// What is to be written down of a code object.
#[derive(Clone, Copy, Debug)]
pub struct CodeText<'t> {
    /// `co_filename`.
    pub file: &'t [u8],
    /// `co_qualname` or `co_name`.
    pub function: &'t [u8],
    /// `co_linetable` or `co_lnotab`.
    pub line_table: &'t [u8],
    /// `co_firstlineno`.
    pub first_line: u32,
}

pub(super) struct Used {
    pub(super) strings: u32,
    pub(super) codes: u32,
    pub(super) stacks: u32,
    pub(super) routes: u32,
    pub(super) modules: u32,
}

pub(super) struct Names<'a> {
    strings: &'a mut [u8],
    codes: &'a mut [CodeRecord],
    stacks: &'a mut [u32],
    pub(super) routes: &'a mut [RouteRecord],
    modules: &'a mut [ModuleRecord],
    used: Used,
    string_index: &'a mut [Cell],
    stack_index: &'a mut [Cell],
    route_index: &'a mut [Cell],
    /// Code records by what they say.
    code_index: &'a mut [Cell],
    /// Code objects by where they lie.
    known_codes: &'a mut [KnownCode],
}

/// Cells of the indices of strings and routes; stacks and codes scale with the samples.
const STRING_CELLS: usize = 1 << 15;
const ROUTE_CELLS: usize = 1 << 12;
const STACK_CELLS_A_SAMPLE: usize = 4;
const CODE_CELLS_A_SAMPLE: usize = 4;
const KNOWN_CODES_A_SAMPLE: usize = 1;
/// Neighbouring cells where a code object may be remembered.
const KNOWN_CODE_WAYS: usize = 4;

impl<'a> Names<'a> {
    pub(super) fn private_bytes(samples: usize) -> usize {
        let samples = samples.next_power_of_two();
        (STRING_CELLS + ROUTE_CELLS + (STACK_CELLS_A_SAMPLE + CODE_CELLS_A_SAMPLE) * samples) * size_of::<Cell>()
            + KNOWN_CODES_A_SAMPLE * samples * size_of::<KnownCode>()
    }

    pub(super) fn new(
        strings: &'a mut [u8],
        codes: &'a mut [CodeRecord],
        stacks: &'a mut [u32],
        routes: &'a mut [RouteRecord],
        modules: &'a mut [ModuleRecord],
        private: &mut Carver<'a>,
        samples: usize,
    ) -> Option<Self> {
        let samples = samples.next_power_of_two();
        Some(Self {
            strings,
            codes,
            stacks,
            routes,
            modules,
            // Offset and index 0 mean "none".
            used: Used { strings: 4, codes: 1, stacks: 1, routes: 1, modules: 1 },
            string_index: private.take(STRING_CELLS)?,
            stack_index: private.take(STACK_CELLS_A_SAMPLE * samples)?,
            route_index: private.take(ROUTE_CELLS)?,
            code_index: private.take(CODE_CELLS_A_SAMPLE * samples)?,
            known_codes: private.take(KNOWN_CODES_A_SAMPLE * samples)?,
        })
    }

    pub(super) fn used(&self) -> Used {
        Used { ..self.used }
    }

    /// The id of a string; `None` where there is no room for it. The empty string is 0.
    pub(super) fn string(&mut self, bytes: &[u8]) -> Option<u32> {
        if bytes.is_empty() {
            return Some(0);
        }
        let (strings, hash) = (&mut *self.strings, hash(bytes));
        let cell = probe(self.string_index, hash, |id| string_at(strings, id) == bytes)?;
        if cell.id == 0 {
            let start = self.used.strings as usize;
            let end = start.checked_add(4)?.checked_add(bytes.len())?;
            strings.get_mut(start..start + 4)?.copy_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
            strings.get_mut(start + 4..end)?.copy_from_slice(bytes);
            self.used.strings = end.next_multiple_of(4) as u32;
            *cell = Cell { id: start as u32, check: check(hash) };
        }
        Some(cell.id)
    }

    /// The id of a string that was written down before.
    pub(super) fn known_string(&mut self, bytes: &[u8]) -> Option<u32> {
        let strings = &*self.strings;
        probe(self.string_index, hash(bytes), |id| string_at(strings, id) == bytes)
            .map(|cell| cell.id)
            .filter(|id| *id != 0)
    }

    /// The id of a code object that has been seen before and is still the same.
    pub(super) fn known_code(&self, key: CodeKey) -> Option<u32> {
        self.known_cells(key).map(|at| self.known_codes[at]).find(|known| known.key == key).map(|known| known.id)
    }

    /// Writes a code object down, or says what is full. One that says what another one says gets its id: a
    /// code object that was forgotten, or made anew by `exec`, costs no second record.
    pub(super) fn code(&mut self, key: CodeKey, text: &CodeText<'_>) -> Result<u32, Loss> {
        let mut string = |bytes| self.string(bytes).ok_or(Loss::StringsFull);
        let record = CodeRecord {
            file: string(text.file)?,
            function: string(text.function)?,
            line_table: string(text.line_table)?,
            first_line: text.first_line,
        };
        let words = |record: &CodeRecord| [record.file, record.function, record.line_table, record.first_line];
        let hash = words(&record).iter().fold(0, |hash, word| mix(hash ^ u64::from(*word)));
        let codes = &mut *self.codes;
        let same = |id: u32| codes.get(id as usize).is_some_and(|known| words(known) == words(&record));
        let cell = probe(self.code_index, hash, same).ok_or(Loss::CodesFull)?;
        if cell.id == 0 {
            *codes.get_mut(self.used.codes as usize).ok_or(Loss::CodesFull)? = record;
            *cell = Cell { id: self.used.codes, check: check(hash) };
            self.used.codes += 1;
        }
        let id = cell.id;
        // Where all ways are taken the newcomer displaces one of them, a different one for different newcomers.
        let is_empty = |at: &usize| self.known_codes[*at].key.address == 0;
        let way = (key.fingerprint % KNOWN_CODE_WAYS as u64) as usize;
        if let Some(at) = self.known_cells(key).find(is_empty).or_else(|| self.known_cells(key).nth(way)) {
            self.known_codes[at] = KnownCode { key, id, reserved: 0 };
        }
        Ok(id)
    }

    /// The cells where a code object may be remembered.
    fn known_cells(&self, key: CodeKey) -> impl Iterator<Item = usize> + use<> {
        // Code objects are some hundred bytes long and aligned to 16.
        let (home, mask) = ((mix(key.address >> 4) >> 32) as usize, self.known_codes.len() - 1);
        (home..home + KNOWN_CODE_WAYS).map(move |at| at & mask)
    }

    /// The id of a module, or what is full. They are few, and whoever asks remembers the answer: no index is needed.
    pub(super) fn module(&mut self, path: &[u8], build_id: &[u8], flags: u32) -> Result<u32, Loss> {
        let mut string = |bytes| self.string(bytes).ok_or(Loss::StringsFull);
        let record = ModuleRecord { path: string(path)?, build_id: string(build_id)?, flags, reserved: 0 };
        let used = self.used.modules as usize;
        let known = self.modules.get(1..used).unwrap_or(&[]);
        let same = |known: &ModuleRecord| (known.path, known.build_id) == (record.path, record.build_id);
        if let Some(at) = known.iter().position(same) {
            return Ok(at as u32 + 1);
        }
        *self.modules.get_mut(used).ok_or(Loss::ModulesFull)? = record;
        self.used.modules += 1;
        Ok(used as u32)
    }

    /// The id of a stack, given as the pairs of words of its frames with the innermost one first.
    pub(super) fn stack(&mut self, frames: &[[u32; 2]]) -> Option<u32> {
        let mut hash = frames.len() as u64;
        for frame in frames {
            hash = mix(hash ^ (u64::from(frame[0]) << 32 | u64::from(frame[1])));
        }
        let stacks = &mut *self.stacks;
        let same = |id: u32| {
            let known = stacks.get(id as usize + 1..id as usize + 1 + 2 * frames.len()).unwrap_or(&[]);
            stacks.get(id as usize) == Some(&(frames.len() as u32)) && known == frames.as_flattened()
        };
        let cell = probe(self.stack_index, hash, same)?;
        if cell.id == 0 {
            let start = self.used.stacks as usize;
            let end = start.checked_add(1)?.checked_add(frames.len().checked_mul(2)?)?;
            let room = stacks.get_mut(start..end)?;
            room[0] = frames.len() as u32;
            room[1..].copy_from_slice(frames.as_flattened());
            self.used.stacks = end as u32;
            *cell = Cell { id: start as u32, check: check(hash) };
        }
        Some(cell.id)
    }

    /// The index of a route by its name; `None` where it is new and may not be added, or the table holds no more.
    pub(super) fn route(&mut self, name: &[u8], may_add: bool) -> Option<u32> {
        let hash = hash(name);
        let (strings, routes) = (&*self.strings, &*self.routes);
        let same = |id: u32| routes.get(id as usize).is_some_and(|route| string_at(strings, route.name) == name);
        if let Some(Cell { id: id @ 1.., .. }) = probe(self.route_index, hash, same) {
            return Some(*id);
        }
        let id = self.used.routes;
        // Half of the index is kept free, so that probing stays short.
        if !may_add || id as usize >= self.routes.len().min(ROUTE_CELLS / 2) {
            return None;
        }
        let name = self.string(name)?;
        self.routes.get_mut(id as usize)?.name = name;
        self.used.routes += 1;
        *probe(self.route_index, hash, |_| false)? = Cell { id, check: check(hash) };
        Some(id)
    }
}

/// The longest run of cells that is searched before an index counts as full.
const LONGEST_PROBE: usize = 128;

/// The cell that holds what `same` accepts, or the empty one where it belongs.
fn probe(index: &mut [Cell], hash: u64, same: impl Fn(u32) -> bool) -> Option<&mut Cell> {
    let mask = index.len() - 1;
    let start = hash as usize;
    let at = (0..LONGEST_PROBE).map(|step| (start + step) & mask).find(|at| {
        let cell = index[*at];
        cell.id == 0 || cell.check == check(hash) && same(cell.id)
    })?;
    index.get_mut(at)
}

fn check(hash: u64) -> u32 {
    (hash >> 32) as u32
}

fn string_at(strings: &[u8], id: u32) -> &[u8] {
    let start = id as usize;
    let length = strings.get(start..start + 4).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
    strings.get(start + 4..start + 4 + length as usize).unwrap_or(&[])
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(word));
    }
    hash
}

/// The finaliser of MurmurHash3 (Appleby): every bit of the input reaches every bit of the output.
pub(super) fn mix(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    word ^= word >> 33;
    word = word.wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    word ^ word >> 33
}
