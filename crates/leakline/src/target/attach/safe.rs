//! From a thread's registers to the answer whether it may call the loader there: it must hold none of the C library's
//! locks, and be in the middle of nothing that the call would need.
//!
//! It may where it waits in a system call that the C library makes for its caller and for nobody else. What the loader
//! itself waits for is waited for in the loader's own code; what malloc waits for is a futex of another kind, or the same
//! in another place. And it may in the middle of CPython's interpreter loop, which calls whatever could take a lock: that is
//! for threads that never wait.
use std::ops::Range;

use libc::user_regs_struct as Registers;

/// `FUTEX_WAIT_BITSET` (linux/futex.h): glibc waits so for conditions, semaphores and the ends of threads, and by
/// `FUTEX_WAIT` for locks, its own and others'.
const FUTEX_WAIT_BITSET: u64 = 9;
const FUTEX_WAIT: u64 = 0;
const FUTEX_COMMAND: u64 = 0x7f;
/// malloc's arenas lie at multiples of `HEAP_MAX_SIZE` (malloc/arena.c), with their lock in the first page.
const ARENA: u64 = 64 << 20;
const PAGE: u64 = 4096;
/// What the kernel notes where a call that waited was interrupted and is to be restarted (linux/errno.h).
const ERESTARTSYS: i64 = -512;

/// Where a safe place may be.
pub struct Places {
    /// The C library's code (and that of its threads, where that is a library of its own).
    pub c_library: Vec<Range<u64>>,
    /// The C library's and the loader's variables, where their own locks are.
    pub c_data: Vec<Range<u64>>,
    /// CPython's interpreter loop.
    pub interpreter: Option<Range<u64>>,
}

impl Places {
    /// May a thread with these registers call the loader? `before` are the two bytes before its instruction.
    pub fn is_safe(&self, registers: &Registers, before: [u8; 2]) -> bool {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        if self.interpreter.as_ref().is_some_and(|code| code.contains(&registers.rip)) {
            return true;
        }
        let in_c_library = self.c_library.iter().any(|code| code.contains(&registers.rip));
        in_c_library && before == SYSCALL && self.waits_for_others(registers)
    }

    fn waits_for_others(&self, registers: &Registers) -> bool {
        match registers.orig_rax as i64 {
            libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_poll
            | libc::SYS_ppoll
            | libc::SYS_select
            | libc::SYS_pselect6
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendfile
            | libc::SYS_connect
            | libc::SYS_nanosleep
            | libc::SYS_clock_nanosleep
            | libc::SYS_wait4
            | libc::SYS_waitid
            | libc::SYS_pause
            | libc::SYS_rt_sigtimedwait => true,
            // One of those with a timeout, which somebody has interrupted, as we do when we attach: poll, nanosleep, or a futex.
            // No lock of malloc's or of the loader's is waited for with a timeout.
            libc::SYS_restart_syscall => true,
            libc::SYS_futex => match registers.rsi & FUTEX_COMMAND {
                FUTEX_WAIT_BITSET => true,
                // Who waits for a lock of somebody else's holds none of the C library's: it calls nobody who would wait.
                FUTEX_WAIT => !self.is_own_lock(registers.rdi),
                _ => false,
            },
            // A pipe or a socket: what is done to files is not interrupted.
            libc::SYS_read | libc::SYS_write | libc::SYS_writev => registers.rax as i64 == ERESTARTSYS,
            _ => false,
        }
    }

    fn is_own_lock(&self, address: u64) -> bool {
        address % ARENA < PAGE || self.c_data.iter().any(|data| data.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IN_SYSCALL: [u8; 2] = [0x0f, 0x05];

    fn at(rip: u64, call: i64, second: u64, result: i64) -> Registers {
        // SAFETY: integers.
        let zero: Registers = unsafe { std::mem::zeroed() };
        Registers { rip, orig_rax: call as u64, rsi: second, rax: result as u64, ..zero }
    }

    #[test]
    fn only_calls_that_wait_for_others_are_safe_and_only_from_the_c_library() {
        let once = |range| std::iter::once(range).collect();
        let places = Places { c_library: once(1000..2000), c_data: once(8000..9000), interpreter: Some(5000..6000) };
        let safe = |registers: Registers| places.is_safe(&registers, IN_SYSCALL);
        assert!(safe(at(1500, libc::SYS_epoll_wait, 0, -4)));
        assert!(!safe(at(3000, libc::SYS_epoll_wait, 0, -4)), "the loader's code, or anybody's");
        assert!(!places.is_safe(&at(1500, libc::SYS_epoll_wait, 0, -4), [0, 0]), "not in a system call at all");
        assert!(safe(at(1500, libc::SYS_restart_syscall, 0, -516)), "the same, the second time that we come");
        assert!(!safe(at(1500, libc::SYS_mmap, 0, 0)), "malloc may hold its lock");
        assert!(!safe(at(1500, -1, 0, 0)));
        assert!(safe(at(1500, libc::SYS_futex, 9 | 128 | 256, ERESTARTSYS)), "a condition");
        let waits_for = |address: u64| Registers { rdi: address, ..at(1500, libc::SYS_futex, 128, ERESTARTSYS) };
        assert!(safe(waits_for(0x5_0000)), "a lock of the program's");
        assert!(!safe(waits_for(8500)), "the main arena's, or the loader's");
        assert!(!safe(waits_for(3 * ARENA + 48)), "another arena's");
        assert!(!safe(Registers { rsi: 6, ..waits_for(0x5_0000) }), "a lock that gives its priority on");
        assert!(safe(at(1500, libc::SYS_read, 0, ERESTARTSYS)), "a pipe");
        assert!(!safe(at(1500, libc::SYS_read, 0, 100)), "a file");
        assert!(safe(at(1500, libc::SYS_sendto, 0, 100)), "a part of an answer that its client is slow to read");
        assert!(safe(at(5500, -1, 0, 0)), "the interpreter's loop");
    }
}
