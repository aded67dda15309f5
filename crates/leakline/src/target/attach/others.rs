//! From a process whose main thread is stopped to one that stands still as a whole, with no thread in the middle of what is
//! about to change.
use std::collections::HashSet;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::jumps::Jump;
use super::thread::{Thread, Trouble};

/// How long all threads may take to stop where no jump is put.
const BETWEEN_PATIENCE: Duration = Duration::from_secs(2);

/// Stops all threads but the main one, none of them between the bytes of a jump. They go on when they are dropped.
pub fn stopped(pid: u32, jumps: &[Jump]) -> Result<Vec<Thread>, Trouble> {
    let mut others: Vec<Thread> = Vec::new();
    let mut known = HashSet::from([pid as i32]);
    let began = Instant::now();
    // Threads that run meanwhile may start others.
    loop {
        let new: Vec<i32> = threads(pid).into_iter().filter(|id| known.insert(*id)).collect();
        if new.is_empty() {
            let patience = BETWEEN_PATIENCE.saturating_sub(began.elapsed());
            match leave_midst(&mut others, jumps, patience)? {
                0 => return Ok(others),
                _ => continue,
            }
        }
        // All are told before the first is waited for: what the server waits for is the slowest, and not the sum.
        let told = new.into_iter().map(|id| {
            let thread = Thread::seize(id).and_then(|mut thread| thread.interrupt().map(|()| thread));
            (id, thread)
        });
        for (id, told) in told.collect::<Vec<_>>() {
            match told.and_then(|mut thread| thread.await_stop().map(|()| thread)) {
                Ok(thread) => others.push(thread),
                Err(Trouble::Ended) => {}
                // The kernel refuses, in words of its own, one that is about to end.
                Err(Trouble::System(..)) if has_ended(pid, id) => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }
}

/// Lets those threads that are between the bytes of a jump run a little further; how many they were. (To have one execute a
/// single instruction would be shorter, but if we were killed meanwhile it would be killed by the processor's trap.)
fn leave_midst(threads: &mut [Thread], jumps: &[Jump], patience: Duration) -> Result<usize, Trouble> {
    /// Enough for a few instructions, if there is a processor.
    const MOMENT: Duration = Duration::from_micros(20);
    let mut between = Vec::new();
    for thread in threads {
        match thread.registers() {
            Ok(at) if jumps.iter().any(|jump| jump.between().contains(&at.rip)) => between.push(thread),
            Ok(_) | Err(Trouble::Ended) => {}
            Err(trouble) => return Err(trouble),
        }
    }
    if between.is_empty() {
        return Ok(0);
    }
    if patience.is_zero() {
        return Err(Trouble::Late("leave the allocator's first bytes"));
    }
    let mut unless_ended = |act: fn(&mut Thread) -> Result<(), Trouble>| {
        between.iter_mut().try_for_each(|thread| match act(thread) {
            Err(Trouble::Ended) => Ok(()),
            done => done,
        })
    };
    unless_ended(|thread| thread.resume(None))?;
    sleep(MOMENT);
    unless_ended(Thread::stop)?;
    Ok(between.len())
}

/// Has this thread ended, or does it run no code of the process's any more?
fn has_ended(pid: u32, thread: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
    // The state comes behind the name, which is in parentheses and may hold anything.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

/// The threads of a process.
fn threads(pid: u32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}
