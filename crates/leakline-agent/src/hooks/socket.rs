//! recv, send and their like, put in front of the C library's as `native` puts malloc. Each call is made as it was asked
//! for, and what it returned is looked at afterwards; errno stays what the call left.
//!
//! `read`, `write` and `close` also serve files: for a descriptor that is not known as a socket they cost some ten
//! instructions. All of these functions may be called in a signal's handler, between fork and exec, and in a thread that
//! is cancelled in the midst of the call: nothing of ours is held meanwhile.

use super::native::{Next, next};
use crate::sockets;
use libc::{iovec, mmsghdr, msghdr, off_t, size_t, sockaddr, socklen_t, ssize_t, timespec};
use std::arch::naked_asm;
use std::ffi::{c_int, c_long, c_uint, c_void};

type Bytes = *mut c_void;

next! {
    RECV resolve_recv c"recv": fn(socket: c_int, into: Bytes, bytes: size_t, flags: c_int) -> ssize_t;
    RECVFROM resolve_recvfrom c"recvfrom": fn(socket: c_int, into: Bytes, bytes: size_t, flags: c_int, from: *mut sockaddr, length: *mut socklen_t) -> ssize_t;
    RECVMSG resolve_recvmsg c"recvmsg": fn(socket: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    RECVMMSG resolve_recvmmsg c"recvmmsg": fn(socket: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, limit: *mut timespec) -> c_int;
    READ resolve_read c"read": fn(file: c_int, into: Bytes, bytes: size_t) -> ssize_t;
    READV resolve_readv c"readv": fn(file: c_int, into: *const iovec, count: c_int) -> ssize_t;
    SEND resolve_send c"send": fn(socket: c_int, from: Bytes, bytes: size_t, flags: c_int) -> ssize_t;
    SENDTO resolve_sendto c"sendto": fn(socket: c_int, from: Bytes, bytes: size_t, flags: c_int, to: *const sockaddr, length: socklen_t) -> ssize_t;
    SENDMSG resolve_sendmsg c"sendmsg": fn(socket: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    SENDMMSG resolve_sendmmsg c"sendmmsg": fn(socket: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;
    WRITE resolve_write c"write": fn(file: c_int, from: Bytes, bytes: size_t) -> ssize_t;
    WRITEV resolve_writev c"writev": fn(file: c_int, from: *const iovec, count: c_int) -> ssize_t;
    SENDFILE resolve_sendfile c"sendfile": fn(socket: c_int, file: c_int, offset: *mut off_t, bytes: size_t) -> ssize_t;
    SENDFILE64 resolve_sendfile64 c"sendfile64": fn(socket: c_int, file: c_int, offset: *mut off_t, bytes: size_t) -> ssize_t;
    SPLICE resolve_splice c"splice": fn(from: c_int, from_offset: *mut i64, to: c_int, to_offset: *mut i64, bytes: size_t, flags: c_uint) -> ssize_t;
    CLOSE resolve_close c"close": fn(file: c_int) -> c_int;
    SYSCALL resolve_syscall c"syscall": fn(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long;
    CONNECT resolve_connect c"connect": fn(socket: c_int, to: *const sockaddr, length: socklen_t) -> c_int;
    ACCEPT resolve_accept c"accept": fn(socket: c_int, from: *mut sockaddr, length: *mut socklen_t) -> c_int;
    ACCEPT4 resolve_accept4 c"accept4": fn(socket: c_int, from: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int;
}

/// Bytes that the parts of a message have room for.
///
/// # Safety
/// A call that was given these parts has succeeded.
unsafe fn room(parts: *const iovec, count: usize) -> usize {
    // SAFETY: the call has read them.
    (0..count).map(|part| unsafe { (*parts.add(part)).iov_len }).fold(0, usize::saturating_add)
}

/// What is read without being taken, or is no payload, does not count.
fn is_taken(flags: c_int) -> bool {
    flags & (libc::MSG_PEEK | libc::MSG_ERRQUEUE) == 0
}

macro_rules! counted {
    ($($(#[$doc:meta])* $name:ident: $cell:ident($($argument:ident: $type:ty),*) $act:ident $room:expr, if $condition:expr;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> ssize_t {
            // SAFETY: the caller's own call, handed on.
            let result = unsafe { $cell.get()($($argument),*) };
            if $condition {
                // The room is asked for only where the call has succeeded, and so what it was given could be read.
                sockets::$act(fd_of!($($argument),*), result, || $room);
            }
            result
        }
    )*};
}

/// The first argument.
macro_rules! fd_of {
    ($first:ident $(, $other:ident)*) => {
        $first
    };
}

counted! {
    /// See recv(2).
    recv: RECV(socket: c_int, into: Bytes, bytes: size_t, flags: c_int) received bytes, if is_taken(flags);
    /// See recvfrom(2).
    recvfrom: RECVFROM(socket: c_int, into: Bytes, bytes: size_t, flags: c_int, from: *mut sockaddr, length: *mut socklen_t)
        received bytes, if is_taken(flags);
    /// See recvmsg(2).
    recvmsg: RECVMSG(socket: c_int, message: *mut msghdr, flags: c_int)
        received {
            // SAFETY: the call has succeeded with these parts.
            unsafe { room((*message).msg_iov, (*message).msg_iovlen) }
        }, if is_taken(flags);
    /// See read(2).
    read: READ(file: c_int, into: Bytes, bytes: size_t) read_from bytes, if true;
    /// See readv(2).
    readv: READV(file: c_int, into: *const iovec, count: c_int) read_from {
            // SAFETY: the call has succeeded with these parts.
            unsafe { room(into, count as usize) }
        }, if true;
    /// See send(2).
    send: SEND(socket: c_int, from: Bytes, bytes: size_t, flags: c_int) sent bytes, if true;
    /// See sendto(2).
    sendto: SENDTO(socket: c_int, from: Bytes, bytes: size_t, flags: c_int, to: *const sockaddr, length: socklen_t)
        sent bytes, if true;
    /// See sendmsg(2).
    sendmsg: SENDMSG(socket: c_int, message: *const msghdr, flags: c_int)
        sent {
            // SAFETY: the call has succeeded with these parts.
            unsafe { room((*message).msg_iov, (*message).msg_iovlen) }
        }, if true;
    /// See write(2).
    write: WRITE(file: c_int, from: Bytes, bytes: size_t) written_to bytes, if true;
    /// See writev(2).
    writev: WRITEV(file: c_int, from: *const iovec, count: c_int) written_to {
            // SAFETY: the call has succeeded with these parts.
            unsafe { room(from, count as usize) }
        }, if true;
    /// See sendfile(2). The file may end before as much was sent as was asked for.
    sendfile: SENDFILE(socket: c_int, file: c_int, offset: *mut off_t, bytes: size_t) written_to 0, if true;
    /// The same by the name that it has for large files.
    sendfile64: SENDFILE64(socket: c_int, file: c_int, offset: *mut off_t, bytes: size_t) written_to 0, if true;
}

/// Bytes of the messages that a call has passed, and those that they had room for; or its error.
///
/// # Safety
/// A call that was given these messages has returned `passed`.
unsafe fn several(messages: *const mmsghdr, passed: c_int) -> (isize, usize) {
    let Ok(passed) = usize::try_from(passed) else { return (-1, 0) };
    (0..passed).fold((0, 0), |(bytes, rooms), message| {
        // SAFETY: the call has read and written it.
        let (length, of_parts) = unsafe {
            let mmsghdr { msg_hdr: header, msg_len } = &*messages.add(message);
            (*msg_len as isize, room(header.msg_iov, header.msg_iovlen))
        };
        (bytes + length, of_parts.saturating_add(rooms))
    })
}

/// See recvmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmmsg(
    socket: c_int,
    messages: *mut mmsghdr,
    count: c_uint,
    flags: c_int,
    limit: *mut timespec,
) -> c_int {
    // SAFETY: the caller's own call, handed on; so below.
    let result = unsafe { RECVMMSG.get()(socket, messages, count, flags, limit) };
    if is_taken(flags) {
        // SAFETY: the call has returned so many; so below.
        let (bytes, room) = unsafe { several(messages, result) };
        sockets::received(socket, bytes, || room);
    }
    result
}

/// See sendmmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmmsg(socket: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int {
    // SAFETY: as in recvmmsg.
    let result = unsafe { SENDMMSG.get()(socket, messages, count, flags) };
    // SAFETY: as in recvmmsg.
    let (bytes, room) = unsafe { several(messages, result) };
    sockets::sent(socket, bytes, || room);
    result
}

/// See splice(2). One of the two is a pipe, which is not known as a socket.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn splice(
    from: c_int,
    from_offset: *mut i64,
    to: c_int,
    to_offset: *mut i64,
    bytes: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the caller's own call, handed on.
    let result = unsafe { SPLICE.get()(from, from_offset, to, to_offset, bytes, flags) };
    // Of a call that failed nobody can tell which side is to blame.
    if result >= 0 {
        sockets::read_from(from, result, || bytes);
        sockets::written_to(to, result, || 0);
    }
    result
}

/// See close(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(file: c_int) -> c_int {
    // Before it is closed: after that the number may be another thread's new socket.
    sockets::closing(file);
    // SAFETY: the caller's own call, handed on; so below.
    unsafe { CLOSE.get()(file) }
}

/// See syscall(2). libuv, and so uvloop, closes its descriptors by number 3. A jump, so that whatever else is called in
/// this way finds the stack as it was.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    naked_asm!(
        "cmp rdi, {close}",
        "je 2f",
        "jmp qword ptr [rip + {next}]",
        "2:",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "mov edi, esi",
        "call {closing}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "jmp qword ptr [rip + {next}]",
        close = const libc::SYS_close,
        next = sym SYSCALL,
        closing = sym closing_by_number,
    )
}

extern "C" fn closing_by_number(file: c_int) {
    sockets::closing(file);
}

/// See connect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn connect(socket: c_int, to: *const sockaddr, length: socklen_t) -> c_int {
    sockets::connecting(socket);
    // SAFETY: as in close.
    unsafe { CONNECT.get()(socket, to, length) }
}

/// See accept(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept(socket: c_int, from: *mut sockaddr, length: *mut socklen_t) -> c_int {
    // SAFETY: as in close.
    let client = unsafe { ACCEPT.get()(socket, from, length) };
    sockets::accepted(client);
    client
}

/// See accept4(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn accept4(socket: c_int, from: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int {
    // SAFETY: as in close.
    let client = unsafe { ACCEPT4.get()(socket, from, length, flags) };
    sockets::accepted(client);
    client
}
