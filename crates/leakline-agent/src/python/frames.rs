//! Reads the Python stack of the calling thread by raw loads at known offsets.

use super::api::ThreadState;
use super::layout::{self, Entry, Instruction, Layout, Loop};
use super::{api, text};
use crate::native::{Evaluator, mix};
use leakline_table::writer::{CodeKey, CodeText, Writer};
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Frames that are kept of a stack, from the innermost on.
pub(crate) const DEPTH: usize = 64;
/// Frames that are passed at most, those without code of their own too.
const STEPS: usize = 3 * DEPTH;
/// Bytes that are kept of a file's or function's name.
const NAME_BYTES: usize = 512;
/// Bytes that are kept of a line table; a longer one is cut, and lines behind the cut are not known.
const LINE_TABLE_BYTES: usize = 16 << 10;

/// A frame: its code object's address, and where it is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) code: usize,
    /// Offset in the bytecode, bytes; `u32::MAX` where the function has not begun.
    pub(super) instruction: u32,
}

/// Walks the frames of a thread from the innermost on.
///
/// # Safety
/// The thread state is the calling thread's own, and the layout is this Python's.
pub(super) unsafe fn walk(layout: &Layout, thread: ThreadState, mut visit: impl FnMut(Frame) -> bool) {
    // SAFETY: the frames of the calling thread live as long as it does not run, and they are linked by these offsets;
    // null ends the chain.
    unsafe {
        let mut frame = innermost(layout, thread);
        for _ in 0..STEPS {
            if frame == 0 {
                return;
            }
            let code = text::word(frame + layout.frame_code) & ADDRESS;
            if !is_owned_by_c(layout, frame)
                && code != 0
                && !visit(Frame { code, instruction: instruction(layout, frame, code) })
            {
                return;
            }
            frame = text::word(frame + layout.frame_previous);
        }
    }
}

/// The address of a thread's innermost frame, 0 where it has none.
///
/// # Safety
/// As for [`walk`].
unsafe fn innermost(layout: &Layout, thread: ThreadState) -> usize {
    let thread = thread as usize;
    // SAFETY: the caller's promise.
    unsafe {
        match layout.entry {
            Entry::Direct(offset) => text::word(thread + offset),
            Entry::Through(first, second) => match text::word(thread + first) {
                0 => 0,
                middle => text::word(middle + second),
            },
        }
    }
}

/// # Safety
/// As for [`walk`]: a live frame.
unsafe fn is_owned_by_c(layout: &Layout, frame: usize) -> bool {
    // SAFETY: the caller's promise.
    layout.frame_owner.is_some_and(|owner| unsafe { *((frame + owner) as *const u8) } >= FRAME_OWNED_BY_C)
}

/// Where on the calling thread's C stack its innermost frame of Python is run.
///
/// # Safety
/// As for [`walk`].
pub(crate) unsafe fn evaluator(thread: ThreadState) -> Evaluator {
    let layout = layout::chosen();
    // SAFETY: the caller's promise; a frame of C's is followed by a live one or by null.
    unsafe {
        match layout.evaluator {
            Loop::ByCode => api::get().map_or(Evaluator::None, |api| Evaluator::Code(api.evaluator.0, api.evaluator.1)),
            Loop::Holds(offset) => Evaluator::Holding(text::word(thread as usize + offset)),
            Loop::HoldsFrame => {
                let mut frame = innermost(layout, thread);
                for _ in 0..STEPS {
                    if frame == 0 || is_owned_by_c(layout, frame) {
                        break;
                    }
                    frame = text::word(frame + layout.frame_previous);
                }
                Evaluator::Holding(frame)
            }
        }
    }
}

/// May the chain be followed at all? Asked before the layout has been verified: the kernel says of each address whether
/// it is readable, instead of a crash.
pub(super) fn is_walkable(layout: &Layout, thread: ThreadState) -> bool {
    let thread = thread as usize;
    let first = match layout.entry {
        Entry::Direct(offset) => readable_word(thread + offset),
        Entry::Through(first, second) => {
            readable_word(thread + first).and_then(|middle| readable_word(middle + second))
        }
    };
    let mut frame = first;
    for _ in 0..4 {
        let Some(address) = frame.filter(|address| *address != 0) else { return false };
        let Some(code) = readable_word(address + layout.frame_code).map(|code| code & ADDRESS) else { return false };
        let owner = layout.frame_owner.map_or(Some(0), |owner| readable_word(address + owner));
        let Some(owner) = owner else { return false };
        if (owner as u8) < FRAME_OWNED_BY_C
            && code != 0
            && [layout.code_file, layout.code_function, layout.code_line_table].iter().any(|offset| {
                // Strings and bytes are read up to their 80th byte at most before they are known to be any.
                readable_word(code + offset).and_then(|object| readable_word(object + 72)).is_none()
            })
        {
            return false;
        }
        frame = readable_word(address + layout.frame_previous);
        if frame == Some(0) {
            return true;
        }
    }
    true
}

/// A word of this process's memory, if it can be read.
pub(crate) fn readable_word(address: usize) -> Option<usize> {
    let mut word = 0usize;
    let local = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: size_of::<usize>() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: size_of::<usize>() };
    // SAFETY: the kernel writes at most the word, and refuses what is not mapped.
    let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    (read == size_of::<usize>() as isize).then_some(word)
}

/// `FRAME_OWNED_BY_CSTACK` (Include/internal/pycore_frame.h); from 3.14 on `FRAME_OWNED_BY_INTERPRETER`, behind which is
/// nothing but the former.
const FRAME_OWNED_BY_C: u8 = 3;
/// From 3.14 on the lowest bits of what a frame refers to are a tag (`_PyStackRef`, Include/internal/pycore_stackref.h).
/// Objects lie at multiples of 16.
const ADDRESS: usize = !7;

/// # Safety
/// As for [`walk`]: a live frame and its code object.
unsafe fn instruction(layout: &Layout, frame: usize, code: usize) -> u32 {
    // SAFETY: the caller's promise.
    unsafe {
        match layout.frame_instruction {
            Instruction::Index(offset, unit) => match text::half(frame + offset) as i32 {
                index @ 0.. => index as u32 * unit,
                _ => u32::MAX,
            },
            Instruction::Pointer(offset, base) => {
                text::word(frame + offset).checked_sub(code + base).map_or(u32::MAX, |bytes| bytes as u32)
            }
        }
    }
}

/// A number that tells the calling thread's Python stack from others: from each frame's code object, as `code` tells whether
/// it is still the same one, and where the frame is in it. `seed` is part of it.
///
/// Two stacks share a number by chance only, one pair in 2^64.
///
/// # Safety
/// The thread state is the calling thread's own.
pub(crate) unsafe fn key(thread: ThreadState, seed: u64) -> u64 {
    let layout = layout::chosen();
    // SAFETY: every x86-64 has the instruction, and it does no harm, whatever the address.
    let fetch = |address: usize| unsafe { _mm_prefetch::<_MM_HINT_T0>(address as *const i8) };
    let (mut frames, mut depth) = ([Frame { code: 0, instruction: 0 }; DEPTH], 0);
    // SAFETY: the caller's promise; the layout was verified before the first sample. Code objects of live frames live.
    unsafe {
        // Looked at only when all are on their way, so that they are not waited for one after the other.
        walk(layout, thread, |frame| {
            fetch(frame.code + layout.code_first_line);
            fetch(frame.code + layout.code_function);
            frames[depth] = frame;
            depth += 1;
            depth < DEPTH
        });
        frames[..depth].iter().fold(seed, |key, frame| {
            let fingerprint = fingerprint(layout, frame.code);
            mix(key ^ frame.code as u64, fingerprint ^ u64::from(frame.instruction))
        })
    }
}

/// A number for what the calling thread's innermost frame is executing, 0 where it has none. Others may have the same one.
///
/// # Safety
/// The thread state is the calling thread's own.
pub(crate) unsafe fn line(thread: ThreadState) -> u64 {
    let mut line = 0;
    // SAFETY: the caller's promise; the layout was verified before the first sample.
    unsafe {
        walk(layout::chosen(), thread, |frame| {
            line = mix(frame.code as u64, frame.instruction.into());
            false
        });
    }
    line
}

/// Changes when another code object comes to lie where one was.
///
/// # Safety
/// The address is that of a live code object.
unsafe fn fingerprint(layout: &Layout, code: usize) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let (file, function) = (text::word(code + layout.code_file), text::word(code + layout.code_function));
        let first_line = text::half(code + layout.code_first_line);
        file as u64 ^ (function as u64).rotate_left(20) ^ u64::from(first_line) << 48
    }
}

/// Writes the frames of the calling thread's Python stack as pairs of words, see the layout of STACKS, and returns how
/// many there are.
///
/// # Safety
/// The thread state is the calling thread's own.
pub(crate) unsafe fn frames(writer: &mut Writer<'_>, thread: ThreadState, frames: &mut [[u32; 2]; DEPTH]) -> usize {
    let layout = layout::chosen();
    let mut depth = 0;
    // SAFETY: the caller's promise; the layout was verified before the first sample.
    unsafe {
        walk(layout, thread, |frame| {
            frames[depth] = [code(writer, layout, frame.code), frame.instruction];
            depth += 1;
            depth < DEPTH
        });
    }
    depth
}

/// The table's id of a code object, which is written down at first sight.
///
/// # Safety
/// The address is that of a live code object.
unsafe fn code(writer: &mut Writer<'_>, layout: &Layout, code: usize) -> u32 {
    // SAFETY: a live code object holds references to its strings and its line table.
    unsafe {
        let first_line = text::half(code + layout.code_first_line);
        let file = text::word(code + layout.code_file);
        let function = text::word(code + layout.code_function);
        let key = CodeKey { address: code as u64, fingerprint: fingerprint(layout, code) };
        if let Some(id) = writer.known_code(key) {
            return id;
        }
        let (mut file_text, mut function_text) = ([0; NAME_BYTES], [0; NAME_BYTES]);
        let text = CodeText {
            file: text::string(layout, file, &mut file_text),
            function: text::string(layout, function, &mut function_text),
            line_table: text::bytes(text::word(code + layout.code_line_table), LINE_TABLE_BYTES),
            first_line,
        };
        writer.code(key, &text)
    }
}

/// What a code object says of itself; for checking the layout against a known one.
///
/// # Safety
/// The address is that of a live code object.
pub(super) unsafe fn describe<'b>(
    layout: &Layout,
    code: usize,
    file: &'b mut [u8],
    function: &'b mut [u8],
) -> (&'b [u8], &'b [u8], u32, usize) {
    // SAFETY: the caller's promise.
    unsafe {
        (
            text::string(layout, text::word(code + layout.code_file), file),
            text::string(layout, text::word(code + layout.code_function), function),
            text::half(code + layout.code_first_line),
            text::word(code + layout.code_line_table),
        )
    }
}
