//! Turns the bytes of a table, which may be torn, cut short or hostile, into plain values. Nothing that a byte says is
//! used as an index, an offset or a length before it has been checked.
//!
//! The table may be written while it is read: a record can be half new. Such a record costs at most one wrong sample;
//! it can't make the reader fail.

use crate::layout::{
    self, CodeRecord, CollectionRecord, Header, ModuleRecord, PeakRecord, RouteRecord, SampleRecord, SectionEntry,
    SectionKind, SocketRecord, TickRecord,
};
use std::fmt;

/// Why bytes are not a table that this reader can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Fewer bytes than a header.
    TooShort {
        /// How many there are.
        bytes: usize,
    },
    /// It doesn't begin as a table does.
    NotATable,
    /// Written by a newer leakline.
    Newer {
        /// The header's version.
        version: u32,
    },
    /// The header's own numbers contradict each other or the file.
    Damaged {
        /// What is wrong.
        what: &'static str,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { bytes } => write!(f, "cut short: {bytes} bytes are less than a header"),
            Self::NotATable => f.write_str("not a leakline table"),
            Self::Newer { version } => write!(f, "written by a newer leakline, in version {version} of the format"),
            Self::Damaged { what } => write!(f, "damaged: {what}"),
        }
    }
}

impl std::error::Error for Refusal {}

/// A code object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// `co_filename`.
    pub file: String,
    /// `co_qualname`, or `co_name` before 3.11.
    pub function: String,
    /// `co_linetable`, or `co_lnotab` before 3.10.
    pub line_table: Vec<u8>,
    /// `co_firstlineno`.
    pub first_line: u32,
}

/// A program or library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Module {
    /// Where the loader found it, in the process's own view of the file system.
    pub path: String,
    /// Its build-id; empty where it has none.
    pub build_id: Vec<u8>,
    /// `MODULE_INTERPRETER` and its like.
    pub flags: u32,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RawFrame {
    /// Where a function of Python was in its bytecode.
    Python {
        /// Index into [`Snapshot::codes`].
        code: u32,
        /// Offset of the instruction in the code's bytecode, in bytes; `None` where the function had not begun.
        instruction: Option<u32>,
    },
    /// Where native code was.
    Native {
        /// Index into [`Snapshot::modules`].
        module: u32,
        /// The address that the module's own symbols state, bytes.
        offset: u32,
    },
}

impl RawFrame {
    /// The code and the instruction, where it is a frame of Python.
    pub fn python(self) -> Option<(u32, Option<u32>)> {
        match self {
            Self::Python { code, instruction } => Some((code, instruction)),
            Self::Native { .. } => None,
        }
    }
}

/// A live sample.
#[derive(Clone, Debug)]
pub struct RawSample {
    /// The record, its numbers checked: `route` and `outcome` are good indices, `weight` is finite.
    pub record: SampleRecord,
    /// Index into [`Snapshot::stacks`].
    pub stack: Option<u32>,
}

/// A route.
#[derive(Clone, Debug)]
pub struct RawRoute {
    /// `GET /data/<id>`; empty for index 0, which stands for no route.
    pub name: String,
    /// Its counters.
    pub record: RouteRecord,
}

/// Who is at the other end of a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The server's clients.
    Client,
    /// At this address.
    At(String),
    /// All whom there was no room to tell apart.
    Other,
}

/// A whole table as plain values.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The header, verbatim; its counters are only as true as the writer.
    pub header: Header,
    /// The server the shim found.
    pub server: String,
    /// The command line, words separated by NUL.
    pub command: String,
    /// Code objects; index 0 is an empty one.
    pub codes: Vec<Code>,
    /// Programs and libraries; index 0 is an empty one.
    pub modules: Vec<Module>,
    /// Stacks that samples refer to, innermost frame first.
    pub stacks: Vec<Vec<RawFrame>>,
    /// Routes; index 0 is "no route".
    pub routes: Vec<RawRoute>,
    /// Samples that are live; those that lie parked on a free list are left out.
    pub samples: Vec<RawSample>,
    /// Full collections, oldest first.
    pub collections: Vec<CollectionRecord>,
    /// Ticks, oldest first.
    pub ticks: Vec<TickRecord>,
    /// The requests that held most, the highest first, with the stack that had most of it (an index into `stacks`).
    pub peaks: Vec<(PeakRecord, Option<u32>)>,
    /// Requests in flight that hold much: what they hold, and their routes, as far as these are known.
    pub in_flight: Vec<(PeakRecord, String)>,
    /// What requests exchanged over sockets, by route, outcome and peer.
    pub sockets: Vec<(SocketRecord, Peer)>,
    /// Records that contradict the rest of the table and were left out.
    pub damaged_records: u64,
}

/// The frames a stack may have; more than the agent ever writes.
const DEEPEST: usize = 1024;
/// Bytes of text and frames that are made from one byte of a file at most. Names are shared, so a table grows a little
/// when it is read; only a hostile one, where each record points to one huge string, wants more.
const MOST_GROWTH: usize = 8;

impl Snapshot {
    /// Reads a table from all of its bytes.
    pub fn read(file: &[u8]) -> Result<Self, Refusal> {
        let header = header(file)?;
        let section = |kind: SectionKind| Section::find(file, &header, kind);
        let strings = section(SectionKind::Strings)?;
        let mut damaged_records = 0;
        let mut room = file.len().saturating_mul(MOST_GROWTH);
        let mut string = |id| {
            let bytes = strings.string(id);
            let affordable = bytes.len() <= room;
            room -= if affordable { bytes.len() } else { 0 };
            damaged_records += u64::from(!affordable);
            if affordable { bytes } else { &[] }
        };

        let codes: Vec<Code> = section(SectionKind::Codes)?
            .records(CodeRecord::decode)
            .map(|record| Code {
                file: text(string(record.file)),
                function: text(string(record.function)),
                line_table: string(record.line_table).to_vec(),
                first_line: record.first_line,
            })
            .collect();
        let routes: Vec<RawRoute> = section(SectionKind::Routes)?
            .records(RouteRecord::decode)
            .map(|record| RawRoute { name: text(string(record.name)), record })
            .collect();
        let in_use = |record: &SocketRecord| record.live != 0 && record.requests > 0;
        let mut sockets = Vec::new();
        for record in section(SectionKind::Sockets)?.records(SocketRecord::decode).filter(in_use) {
            let peer = match record.peer {
                layout::PEER_CLIENT => Peer::Client,
                layout::PEER_OTHER => Peer::Other,
                id => Peer::At(text(string(id))),
            };
            sockets.push((record, peer));
        }
        let is_sound = |peak: &PeakRecord| {
            [peak.bytes, peak.top_bytes, peak.left_bytes].into_iter().all(is_amount)
                && peak.bytes > 0.0
                && peak.outcome < 3
                && peak.phase < 4
                && (peak.route as usize) < routes.len()
        };
        let (shown, ended): (Vec<PeakRecord>, Vec<PeakRecord>) =
            section(SectionKind::Peaks)?.records(PeakRecord::decode).filter(is_sound).partition(|peak| peak.name != 0);
        let in_flight = shown.into_iter().map(|peak| (peak, text(string(peak.name)))).collect();
        let modules: Vec<Module> = section(SectionKind::Modules)?
            .records(ModuleRecord::decode)
            .map(|record| Module {
                path: text(string(record.path)),
                build_id: string(record.build_id).to_vec(),
                flags: record.flags,
            })
            .collect();
        let (server, command) = (text(string(header.server)), text(string(header.command)));
        if codes.is_empty() || routes.is_empty() {
            return Err(Refusal::Damaged { what: "its code objects or routes lack the first, which stands for none" });
        }
        let totals = |route: &RawRoute| route.record.allocated_bytes.into_iter().chain(route.record.peak_bytes);
        if !routes.iter().flat_map(totals).all(is_amount) {
            return Err(Refusal::Damaged { what: "a route's total is no number" });
        }

        let words = section(SectionKind::Stacks)?;
        let mut stacks = Vec::new();
        let mut known = std::collections::HashMap::new();
        let mut resolve = |id: u32| {
            *known.entry(id).or_insert_with(|| {
                let frames = words.stack(id, codes.len(), modules.len())?;
                room = room.checked_sub(size_of_val(&*frames))?;
                stacks.push(frames);
                Some(stacks.len() as u32 - 1)
            })
        };
        let mut samples = Vec::new();
        for record in section(SectionKind::Samples)?.records(SampleRecord::decode) {
            if record.live == 0 || record.flags & layout::FLAG_PARKED != 0 {
                continue;
            }
            let sound = is_amount(record.weight)
                && record.outcome < 3
                && record.owner <= layout::OWNER_SETTLED
                && (record.route as usize) < routes.len();
            if !sound {
                damaged_records += 1;
                continue;
            }
            let stack = resolve(record.stack);
            damaged_records += u64::from(stack.is_none() && record.stack != 0);
            samples.push(RawSample { record, stack });
        }

        let mut collections: Vec<CollectionRecord> =
            section(SectionKind::Collections)?.records(CollectionRecord::decode).collect();
        collections.sort_by_key(|collection| collection.time_ns);
        let mut peaks: Vec<(PeakRecord, Option<u32>)> =
            ended.into_iter().map(|peak| (peak, resolve(peak.top_stack))).collect();
        peaks.sort_by(|one, other| other.0.bytes.total_cmp(&one.0.bytes));
        let (ticks, broken): (Vec<_>, Vec<_>) =
            section(SectionKind::Ticks)?.records(TickRecord::decode).partition(|tick| is_amount(tick.interval_bytes));
        damaged_records += broken.len() as u64;
        let known = sockets.len();
        sockets.retain(|(record, _)| record.outcome < 3 && (record.route as usize) < routes.len());
        damaged_records += (known - sockets.len()) as u64;
        Ok(Self {
            server,
            command,
            header,
            codes,
            modules,
            stacks,
            routes,
            samples,
            collections,
            ticks,
            peaks,
            in_flight,
            sockets,
            damaged_records,
        })
    }

    /// What was lost by cause, only what happened, by the names of [`layout::LOSS_NAMES`].
    pub fn losses(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        layout::LOSS_NAMES.into_iter().zip(self.header.lost).filter(|(_, count)| *count > 0)
    }
}

/// Reads and checks the header alone: cheap, for listing tables.
pub fn header(file: &[u8]) -> Result<Header, Refusal> {
    if file.len() >= layout::MAGIC.len() && file[..layout::MAGIC.len()] != layout::MAGIC {
        return Err(Refusal::NotATable);
    }
    let Some(header) = Header::decode(file) else {
        return Err(Refusal::TooShort { bytes: file.len() });
    };
    if header.version > layout::VERSION {
        return Err(Refusal::Newer { version: header.version });
    }
    if header.version == 0 {
        return Err(Refusal::Damaged { what: "its version is 0" });
    }
    if ![header.interval_bytes, header.allocated_bytes, header.unattributed_allocated_bytes].into_iter().all(is_amount)
    {
        return Err(Refusal::Damaged { what: "its sampling interval or a total is no number" });
    }
    Ok(header)
}

/// Where the last section of a table ends, by its header: bytes behind it are nobody's.
pub fn extent(header: &Header) -> u64 {
    let sections = header.directory.iter().take_while(|section| section.kind != 0);
    sections.map(|section| section.offset.saturating_add(section.bytes)).max().unwrap_or(0)
}

fn is_amount(bytes: f64) -> bool {
    bytes.is_finite() && bytes >= 0.0
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A section's bytes in use, inside the file for sure.
#[derive(Clone, Copy)]
struct Section<'a> {
    bytes: &'a [u8],
    record_bytes: usize,
}

impl<'a> Section<'a> {
    fn find(file: &'a [u8], header: &Header, kind: SectionKind) -> Result<Self, Refusal> {
        let Some(entry) = header.directory.iter().find(|entry| entry.kind == kind as u32) else {
            return Err(Refusal::Damaged { what: "a section is missing from its directory" });
        };
        Self::within(file, entry).ok_or(Refusal::Damaged { what: "a section lies outside of the file (cut short?)" })
    }

    fn within(file: &'a [u8], entry: &SectionEntry) -> Option<Self> {
        let start = usize::try_from(entry.offset).ok()?;
        let end = start.checked_add(usize::try_from(entry.bytes).ok()?)?;
        let all = file.get(start..end)?;
        let record_bytes = entry.record_bytes as usize;
        let used = (entry.used as usize).checked_mul(record_bytes)?.min(all.len());
        (record_bytes > 0).then_some(Self { bytes: &all[..used], record_bytes })
    }

    /// The records; a longer record of a later version is read by its known beginning.
    fn records<T: 'a>(self, decode: fn(&[u8]) -> Option<T>) -> impl Iterator<Item = T> + 'a {
        self.bytes.chunks_exact(self.record_bytes).filter_map(decode)
    }

    fn word(&self, index: usize) -> Option<u32> {
        let at = index.checked_mul(4)?;
        Some(u32::from_le_bytes(self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    /// The string at an offset; empty for 0 and for what does not lie in the section.
    fn string(&self, id: u32) -> &'a [u8] {
        let find = || {
            let start = (id as usize).checked_add(4)?;
            let length = u32::from_le_bytes(self.bytes.get(id as usize..start)?.try_into().ok()?) as usize;
            self.bytes.get(start..start.checked_add(length)?)
        };
        if id == 0 { &[] } else { find().unwrap_or(&[]) }
    }

    /// The frames of a stack; `None` for 0 and for what is none.
    fn stack(&self, id: u32, codes: usize, modules: usize) -> Option<Vec<RawFrame>> {
        let count = self.word(id as usize)? as usize;
        if id == 0 || count == 0 || count > DEEPEST {
            return None;
        }
        (0..count)
            .map(|index| {
                let first = self.word(id as usize + 1 + 2 * index)?;
                let second = self.word(id as usize + 2 + 2 * index)?;
                let module = first & !layout::NATIVE;
                if module != first {
                    return ((module as usize) < modules).then_some(RawFrame::Native { module, offset: second });
                }
                let instruction = (second != u32::MAX).then_some(second);
                ((first as usize) < codes).then_some(RawFrame::Python { code: first, instruction })
            })
            .collect()
    }
}
