//! From the beginnings of the C library's functions to jumps to the agent's hooks, and to copies of what was there, by
//! which the hooks reach the functions.
//!
//! Whoever frees a block must be seen: the C library itself, a pointer that was looked up long ago, a library that is
//! loaded later. So it is the functions themselves that are changed, not the ways to them.
//!
//! ```text
//! a function of libc             the page of stubs, within 2 GiB of it: one of these for each function
//!   jmp  ─────────────────────►    0  its address     8
//!   (the rest of the               8  bytes moved     8
//!    instructions moved)          16  its first bytes as they were  5
//!   … ◄───────────────┐           32  jmp to the agent's hook      14
//!                     └─────────  48  the instructions moved, and a jump back   80
//! ```
use std::fmt;
use std::io;
use std::ops::Range;

use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionBlock,
};
use leakline_table::attachment::FUNCTIONS;

use super::memory::Memory;
use super::thread::TELLING_RETURN;

/// Bytes of `jmp rel32`.
pub const JUMP: usize = 5;
/// Bytes of a stub.
const STUB: usize = 112;
/// Where in a stub its parts lie.
const ORIGINAL: usize = 16;
const TO_HOOK: usize = 32;
const MOVED: usize = 48;
/// Bytes of the page of stubs.
pub const PAGE: u64 = 4096;
/// Where on it lies the code by which calls return that we make the process do, behind the stubs.
pub const RETURN: u64 = PAGE - 64;
const _: () = assert!(RETURN as usize + TELLING_RETURN <= PAGE as usize);
const _: () = assert!(FUNCTIONS.len() * STUB <= RETURN as usize);

/// Why a function can't be led to the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its code is not what compilers make of such a function.
    Unusual,
    /// The page of stubs is too far away.
    TooFar,
    /// What is moved has no room in its stub.
    TooLong,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unusual => "its code begins in an unusual way",
            Self::TooFar => "there is no room near its code",
            Self::TooLong => "its beginning has no room elsewhere",
        })
    }
}

/// One function that is led to a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// The function's address.
    pub function: u64,
    /// Its first bytes as they were.
    original: [u8; JUMP],
    /// The stub's address.
    stub: u64,
}

impl Jump {
    /// Prepares the jump from the function at `function`, whose code is given whole, to the hook: returns it with the
    /// bytes of the stub.
    pub fn prepare(function: u64, code: &[u8], hook: u64, stub: u64) -> Result<(Self, Vec<u8>), Obstacle> {
        let moved = beginning(function, code)?;
        let taken = moved.iter().map(Instruction::len).sum::<usize>();
        let mut block = moved;
        let back = Instruction::with_branch(Code::Jmp_rel32_64, function + taken as u64);
        block.push(back.map_err(|_| Obstacle::Unusual)?);
        let block = InstructionBlock::new(&block, stub + MOVED as u64);
        let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).map_err(|_| Obstacle::TooFar)?;
        let encoded = encoded.code_buffer;
        if encoded.len() > STUB - MOVED {
            return Err(Obstacle::TooLong);
        }
        let original: [u8; JUMP] = code[..JUMP].try_into().map_err(|_| Obstacle::Unusual)?;
        let mut bytes = vec![0xcc; STUB];
        let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
        put(0, &function.to_le_bytes());
        put(8, &(taken as u64).to_le_bytes());
        put(ORIGINAL, &original);
        // jmp [rip + 0], and the address behind it.
        put(TO_HOOK, &[0xff, 0x25, 0, 0, 0, 0]);
        put(TO_HOOK + 6, &hook.to_le_bytes());
        put(MOVED, &encoded);
        let jump = Self { function, original, stub };
        jump.bytes().ok_or(Obstacle::TooFar)?;
        Ok((jump, bytes))
    }

    /// The jumps that a page of stubs was made for.
    pub fn on_page(memory: &Memory, page: u64) -> io::Result<Vec<Self>> {
        let mut bytes = vec![0; PAGE as usize];
        memory.read(page, &mut bytes)?;
        let stubs = bytes.chunks_exact(STUB).zip((page..).step_by(STUB)).take(FUNCTIONS.len());
        let jumps = stubs.filter_map(|(bytes, stub)| {
            let function = u64::from_le_bytes(bytes[..8].try_into().ok()?);
            let original = bytes[ORIGINAL..ORIGINAL + JUMP].try_into().ok()?;
            (function != 0).then_some(Self { function, original, stub })
        });
        Ok(jumps.collect())
    }

    /// Where the stub of number `index` on a page lies.
    pub fn stub(page: u64, index: usize) -> u64 {
        page + (index * STUB) as u64
    }

    /// Where the hook goes on to reach the function.
    pub fn next(&self) -> u64 {
        self.stub + MOVED as u64
    }

    /// The jump's bytes, over the function's first; `None` where it does not reach.
    fn bytes(&self) -> Option<[u8; JUMP]> {
        let from = self.function + JUMP as u64;
        let distance = i32::try_from((self.stub + TO_HOOK as u64).wrapping_sub(from) as i64).ok()?;
        let mut bytes = [0xe9; JUMP];
        bytes[1..].copy_from_slice(&distance.to_le_bytes());
        Some(bytes)
    }

    /// Where no thread may be while it is put in or taken out: it would go on in the middle of other instructions.
    pub fn between(&self) -> Range<u64> {
        self.function + 1..self.function + JUMP as u64
    }
}

/// Puts the jumps in place. No thread may be between their bytes, see [`Jump::between`].
pub fn put_in(jumps: &[Jump], memory: &Memory) -> io::Result<()> {
    change(jumps, memory, |jump, found| match jump.bytes() {
        Some(bytes) if *found == jump.original || *found == bytes => Ok(bytes),
        _ => Err(io::Error::other("the allocator's code was changed by somebody else")),
    })
}

/// Takes those out that are in place.
pub fn take_out(jumps: &[Jump], memory: &Memory) -> io::Result<()> {
    change(jumps, memory, |jump, found| Ok(if Some(*found) == jump.bytes() { jump.original } else { *found }))
}

/// Changes the functions' first bytes into those that are said when they are found. The server waits for it, so what lies
/// on one page is read and written at once.
fn change(
    jumps: &[Jump],
    memory: &Memory,
    changed: impl Fn(&Jump, &[u8; JUMP]) -> io::Result<[u8; JUMP]>,
) -> io::Result<()> {
    let mut jumps: Vec<&Jump> = jumps.iter().collect();
    jumps.sort_by_key(|jump| jump.function);
    for neighbours in jumps.chunk_by(|one, next| one.function / PAGE == next.function / PAGE) {
        let start = neighbours[0].function;
        let mut code = vec![0; (neighbours[neighbours.len() - 1].function - start) as usize + JUMP];
        memory.read(start, &mut code)?;
        for jump in neighbours {
            let at = (jump.function - start) as usize;
            let place = &mut code[at..at + JUMP];
            let found = <[u8; JUMP]>::try_from(&*place).expect("as long as a jump");
            place.copy_from_slice(&changed(jump, &found)?);
        }
        memory.write(start, &code)?;
    }
    Ok(())
}

/// The instructions that a jump takes the place of, provided that they can be moved: nothing comes back into their
/// midst, neither a branch of the function's own nor a call that they make.
fn beginning(function: u64, code: &[u8]) -> Result<Vec<Instruction>, Obstacle> {
    let mut decoder = Decoder::with_ip(64, code, function, DecoderOptions::NONE);
    let mut moved = Vec::new();
    let mut taken = 0;
    while taken < JUMP {
        let instruction = decoder.decode();
        taken += instruction.len();
        let goes_on = matches!(instruction.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
        let ends_there = instruction.flow_control() == FlowControl::UnconditionalBranch && taken >= JUMP;
        if instruction.is_invalid() || !(goes_on || ends_there) {
            return Err(Obstacle::Unusual);
        }
        moved.push(instruction);
    }
    let midst = function + 1..function + taken as u64;
    for instruction in moved.iter().copied().chain(decoder.iter()) {
        let branches = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
        );
        if branches && midst.contains(&instruction.near_branch_target()) {
            return Err(Obstacle::Unusual);
        }
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x7f00_0000_1000;
    const STUBS: u64 = 0x7f00_1000_0000;

    #[test]
    fn what_is_moved_does_as_it_did() {
        // cmpb $0, 0x140e71(%rip); je +9; ret
        let code = [0x80, 0x3d, 0x71, 0x0e, 0x14, 0x00, 0x00, 0x74, 0x07, 0xc3];
        let (jump, stub) = Jump::prepare(AT, &code, 0x1234_5678_9abc, STUBS).unwrap();
        assert_eq!(stub[TO_HOOK + 6..TO_HOOK + 14], 0x1234_5678_9abc_u64.to_le_bytes());
        let mut moved = Decoder::with_ip(64, &stub[MOVED..], jump.next(), DecoderOptions::NONE);
        let mut original = Decoder::with_ip(64, &code, AT, DecoderOptions::NONE);
        assert_eq!(moved.decode().ip_rel_memory_address(), original.decode().ip_rel_memory_address());
        assert_eq!(moved.decode().near_branch_target(), AT + 7, "back to what was left");
        let bytes = jump.bytes().unwrap();
        let to = Decoder::with_ip(64, &bytes, AT, DecoderOptions::NONE).decode().near_branch_target();
        assert_eq!(to, STUBS + TO_HOOK as u64);

        // test %rdi, %rdi; je +0xbf: both are moved, and the branch leads where it led.
        let code = [0x48, 0x85, 0xff, 0x0f, 0x84, 0xbf, 0, 0, 0, 0xc3];
        let (jump, stub) = Jump::prepare(AT, &code, 1, STUBS).unwrap();
        let moved: Vec<_> =
            Decoder::with_ip(64, &stub[MOVED..], jump.next(), DecoderOptions::NONE).iter().take(3).collect();
        assert_eq!([moved[1].near_branch_target(), moved[2].near_branch_target()], [AT + 9 + 0xbf, AT + 9]);
    }

    #[test]
    fn code_that_cannot_be_moved_is_refused() {
        let refused = |code: &[u8], stub| Jump::prepare(AT, code, 1, stub).unwrap_err();
        assert_eq!(
            refused(&[0xc3, 0x90, 0x90, 0x90, 0x90, 0x90], STUBS),
            Obstacle::Unusual,
            "ends before the jump would"
        );
        assert_eq!(refused(&[0xe8, 1, 0, 0, 0, 0xc3], STUBS), Obstacle::Unusual, "a call comes back");
        // push ×5; nop; jmp -5: a loop into the midst.
        assert_eq!(refused(&[0x50, 0x50, 0x50, 0x50, 0x50, 0x90, 0xeb, 0xfb], STUBS), Obstacle::Unusual);
        assert_eq!(refused(&[0x50, 0x50, 0x50, 0x50, 0x50, 0xc3], AT + (4 << 30)), Obstacle::TooFar);
        assert_eq!(refused(&[0x50, 0x50], STUBS), Obstacle::Unusual, "cut off");
    }
}
