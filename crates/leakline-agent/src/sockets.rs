//! Turns what the hooks see of calls on sockets into bytes by request and peer, and into the news that a client has left.
//!
//! A socket is known by how it came to be: one that was accepted is a client's, one that was connected leads to a peer.
//! Others (inherited, or made by other calls) are asked for their addresses when `recv` or `send` shows that they are
//! sockets. All of this is kept in one place for each descriptor, in atomics: nothing here waits or allocates.
//!
//! Whose bytes are they? What a thread writes belongs to the request of its context. An answer belongs to whoever wrote
//! the question on that socket, if that request still runs: under asyncio the callback that reads from a pooled connection
//! carries the context of whoever opened it. Otherwise it, too, belongs to the request of the context. uvloop writes and
//! reads when no context is entered: there a connection belongs to the request that opened it, as long as that runs, and
//! what passes a pooled one later is not counted. The shim says which client's socket a request under uvicorn answers.
//!
//! A client has left when its socket says so: by the end of what it sends, by a reset, or because nothing can be written
//! any more. If the last write on it was cut short by then, or when the server closes it, its response was not complete,
//! however well the request seemed to end: servers that keep in a buffer what they have to send learn of it too late.

use crate::python::api;
use crate::table::{self, Text};
use crate::{recorder, requests};
use leakline_table::layout::{Loss, PEER_CLIENT, PEER_OTHER};
use leakline_table::writer::{Way, Writer};
use std::ffi::c_int;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Descriptors that are followed, from 0 on. A page of their places is touched only when one of its 256 is in use.
const FOLLOWED: usize = 1 << 16;

/// What is known of a descriptor.
struct Place {
    /// A kind, [`CUT_SHORT`] or not, and in the lower half the table's id of the peer, 0 where it has none yet.
    state: AtomicU64,
    /// The request that wrote last, its handle.
    writer: AtomicU64,
}

/// Nothing is known: no socket, or one that nobody has used yet.
const UNKNOWN: u64 = 0;
/// Leads to a client of the server.
const CLIENT: u64 = 1 << 32;
/// Leads to whoever the server asks.
const PEER: u64 = 2 << 32;
/// A socket whose bytes don't count: it has no other end, or that is the process itself.
const PRIVATE: u64 = 3 << 32;
const KIND: u64 = 3 << 32;
/// The last write took less than it was given.
const CUT_SHORT: u64 = 4 << 32;
const PEER_ID: u64 = 0xFFFF_FFFF;

static PLACES: [Place; FOLLOWED] =
    [const { Place { state: AtomicU64::new(UNKNOWN), writer: AtomicU64::new(0) } }; FOLLOWED];
/// One more than the highest descriptor whose place was ever used.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Is there anybody to count for?
static COUNTING: AtomicBool = AtomicBool::new(false);

/// Begins to count; the current request can be found from now on.
pub(crate) fn start() {
    COUNTING.store(true, Relaxed);
}

/// Ends it. From now on no thread state is looked at: the interpreter may be about to free them.
pub(crate) fn stop() {
    COUNTING.store(false, Relaxed);
}

/// In a forked child: its sockets are its parent's, but no request of the parent's goes on here, and the names of peers
/// are in the parent's table.
pub(crate) fn begin_anew() {
    for place in &PLACES[..USED.load(Relaxed).min(FOLLOWED)] {
        place.writer.store(0, Relaxed);
        place.state.fetch_and(!PEER_ID, Relaxed);
    }
}

/// When the agent leaves: it will not see what becomes of them.
pub(crate) fn forget_all() {
    for place in &PLACES[..USED.load(Relaxed).min(FOLLOWED)] {
        place.writer.store(0, Relaxed);
        place.state.store(UNKNOWN, Relaxed);
    }
}

fn place(file: c_int) -> Option<&'static Place> {
    PLACES.get(usize::try_from(file).ok()?)
}

fn become_known(file: c_int, state: u64) {
    let Some(place) = place(file) else {
        // A call that has failed returned no descriptor.
        if file >= 0 {
            recorder::write(|table| table.lose(Loss::SocketsFull));
        }
        return;
    };
    USED.fetch_max(file as usize + 1, Relaxed);
    place.writer.store(0, Relaxed);
    place.state.store(state, Relaxed);
}

/// A descriptor, if there is one, leads to a client.
pub(crate) fn accepted(file: c_int) {
    become_known(file, CLIENT);
}

/// A socket is about to be connected. Until somebody writes on it, it is there for the request that connects it; under
/// uvloop, which writes when no context is entered, that request keeps it.
pub(crate) fn connecting(file: c_int) {
    become_known(file, PEER);
    if COUNTING.load(Relaxed) {
        if let Some(place) = place(file) {
            place.writer.store(current(), Relaxed);
        }
    }
}

/// What is sent to this client from now on is the current request's, whatever context it is sent in.
pub(crate) fn serves(file: c_int) {
    if let Some(place) = place(file) {
        if place.state.load(Relaxed) & KIND == CLIENT {
            place.writer.store(current(), Relaxed);
        }
    }
}

/// What is still to be sent to a client will not be; its server says so before it closes the connection.
pub(crate) fn unsent(file: c_int) {
    if let Some(place) = place(file) {
        if place.state.load(Relaxed) & KIND == CLIENT {
            place.state.fetch_or(CUT_SHORT, Relaxed);
        }
    }
}

/// A descriptor is about to be closed.
#[inline(always)]
pub(crate) fn closing(file: c_int) {
    if let Some(place) = place(file) {
        if place.state.load(Relaxed) != UNKNOWN {
            forget(place);
        }
    }
}

#[cold]
fn forget(place: &Place) {
    // A child that shares its parent's memory until it is another program closes only what is its own.
    if table::is_of_this_process() {
        let state = place.state.swap(UNKNOWN, Relaxed);
        let writer = place.writer.swap(0, Relaxed);
        if state & KIND == CLIENT && state & CUT_SHORT != 0 && COUNTING.load(Relaxed) {
            recorder::surely_write(|table| table.client_left(writer, true));
        }
    }
}

/// `recv` and its like have returned.
#[inline(always)]
pub(crate) fn received(socket: c_int, result: isize, room: impl FnOnce() -> usize) {
    passed(socket, true, Way::Read, result, room);
}

/// `send` and its like have returned.
#[inline(always)]
pub(crate) fn sent(socket: c_int, result: isize, room: impl FnOnce() -> usize) {
    passed(socket, true, Way::Written, result, room);
}

/// `read` and its like have returned, on whatever it is.
#[inline(always)]
pub(crate) fn read_from(file: c_int, result: isize, room: impl FnOnce() -> usize) {
    passed(file, false, Way::Read, result, room);
}

/// `write` and its like have returned, on whatever it is.
#[inline(always)]
pub(crate) fn written_to(file: c_int, result: isize, room: impl FnOnce() -> usize) {
    passed(file, false, Way::Written, result, room);
}

#[inline(always)]
fn passed(file: c_int, is_socket: bool, way: Way, result: isize, room: impl FnOnce() -> usize) {
    let Some(place) = place(file) else { return };
    if place.state.load(Relaxed) == UNKNOWN && !is_socket || !COUNTING.load(Relaxed) {
        return;
    }
    let room = if result < 0 { 0 } else { room() };
    count(file, place, way, result, room);
}

/// What a call on a socket says.
enum News {
    Bytes(u64),
    /// The client has left.
    Left,
}

#[inline(never)]
fn count(file: c_int, place: &Place, way: Way, result: isize, room: usize) {
    // SAFETY: the location of errno is always valid.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let error = unsafe { *errno };
    let mut state = place.state.load(Relaxed);
    if state == UNKNOWN {
        state = get_to_know(file);
        become_known(file, state);
    }
    if state & KIND != PRIVATE {
        let (news, state) = news(place, state, way, result, room, error);
        if let Some(news) = news {
            tell(file, place, state, way, news);
        }
    }
    // SAFETY: as above. The program sees what its own call has left there.
    unsafe { *errno = error };
}

/// What the result of a call says, and the state that it leaves.
fn news(place: &Place, state: u64, way: Way, result: isize, room: usize, error: c_int) -> (Option<News>, u64) {
    let is_cut_short = result < 0 && error == libc::EAGAIN || result >= 0 && (result as usize) < room;
    let mut now = state;
    if way == Way::Written && (result >= 0 || is_cut_short) {
        now = if is_cut_short { state | CUT_SHORT } else { state & !CUT_SHORT };
        if now != state {
            place.state.store(now, Relaxed);
        }
    }
    let has_left = match result {
        0 => way == Way::Read && room > 0,
        -1 => error == libc::ECONNRESET || error == libc::EPIPE,
        _ => false,
    };
    let news = match result {
        1.. => Some(News::Bytes(result as u64)),
        _ if has_left && state & KIND == CLIENT => Some(News::Left),
        _ => None,
    };
    (news, now)
}

/// The request of the calling thread's context, 0 for none.
fn current() -> u64 {
    let Some(api) = api::get() else { return 0 };
    // SAFETY: reads a thread-local value.
    let thread = unsafe { (api.gil_state_this_thread_state)() };
    if thread.is_null() { 0 } else { requests::current_of(thread) }
}

fn tell(file: c_int, place: &Place, state: u64, way: Way, news: News) {
    let current = current();
    let before = place.writer.load(Relaxed);
    if way == Way::Written && current != 0 && current != before {
        place.writer.store(current, Relaxed);
    }
    if current == 0 && before == 0 {
        return;
    }
    let is_client = state & KIND == CLIENT;
    // Whoever waited for the network can wait a little longer, so that sums are right.
    recorder::surely_write(|table| {
        let of_context = table.in_flight(current).then_some(current);
        let of_socket = table.in_flight(before).then_some(before);
        // What goes on in a request's context after its end is still that request's.
        let late = (current != 0).then_some(current);
        let handle = match (way, is_client) {
            // A response may be sent when its request has ended.
            (Way::Written, true) => late.or((before != 0).then_some(before)),
            (Way::Written, false) => late.or(of_socket),
            // What a client sends between two requests, or before the first one, is nobody's.
            (Way::Read, true) => of_context.or(of_socket),
            (Way::Read, false) => of_socket.or(late),
        };
        match news {
            News::Bytes(bytes) => {
                let Some(handle) = handle else { return };
                let peer = if is_client { PEER_CLIENT } else { peer(table, file, place, state) };
                table.passed(handle, peer, way, bytes);
            }
            News::Left => {
                let is_cut_short = way == Way::Written || state & CUT_SHORT != 0;
                table.client_left(of_context.unwrap_or(before), is_cut_short);
            }
        }
    });
}

/// The table's id of the peer that a socket leads to, which is looked up once.
fn peer(table: &mut Writer<'static>, file: c_int, place: &Place, state: u64) -> u32 {
    let known = (state & PEER_ID) as u32;
    if known != 0 {
        return known;
    }
    let mut address = Text::<128>::new();
    let id = match Address::of(file, libc::getpeername) {
        Some(peer) => {
            peer.put(&mut address);
            table.peer(address.bytes())
        }
        // A connection that was reset has none any more.
        None => PEER_OTHER,
    };
    // Unless the descriptor has become another socket meanwhile.
    _ = place.state.compare_exchange(state, state | u64::from(id), Relaxed, Relaxed);
    id
}

/// What kind of socket a descriptor is whose beginning was not seen.
fn get_to_know(file: c_int) -> u64 {
    /// The lowest port that Linux gives to sockets that ask for none (`ip_local_port_range`).
    const EPHEMERAL: u16 = 32768;
    let port = |address: &Address| match address {
        Address::Internet(address) => address.port(),
        Address::Unix(_) => 0,
    };
    match (Address::of(file, libc::getpeername), Address::of(file, libc::getsockname)) {
        // One end of a socketpair.
        (Some(Address::Unix(path)), _) if path.bytes().is_empty() => PRIVATE,
        (Some(peer), Some(own)) if port(&peer) >= EPHEMERAL && port(&own) < EPHEMERAL => CLIENT,
        (Some(_), _) => PEER,
        (None, _) => PRIVATE,
    }
}

/// One end of a socket.
enum Address {
    Internet(SocketAddr),
    /// A path, an abstract name with `@` in front, or nothing.
    Unix(Text<112>),
}

type Name = unsafe extern "C" fn(c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> c_int;

impl Address {
    /// The address that `getpeername` or `getsockname` tells; `None` where there is none.
    fn of(file: c_int, name: Name) -> Option<Self> {
        let mut storage = std::mem::MaybeUninit::<libc::sockaddr_storage>::zeroed();
        let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: room and its length; zeroes are a valid address of no family.
        let (failed, storage) =
            unsafe { (name(file, storage.as_mut_ptr().cast(), &mut length), storage.assume_init()) };
        if failed != 0 {
            return None;
        }
        // SAFETY: the family says which address it is, and each is smaller than the storage.
        unsafe {
            let any = &raw const storage;
            match c_int::from(storage.ss_family) {
                libc::AF_INET => {
                    let address = &*any.cast::<libc::sockaddr_in>();
                    let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
                    Some(Self::Internet(SocketAddr::from((ip, u16::from_be(address.sin_port)))))
                }
                libc::AF_INET6 => {
                    let address = &*any.cast::<libc::sockaddr_in6>();
                    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr).to_canonical();
                    Some(Self::Internet(SocketAddr::from((ip, u16::from_be(address.sin6_port)))))
                }
                libc::AF_UNIX => {
                    let address = &*any.cast::<libc::sockaddr_un>();
                    let bytes = address.sun_path.map(|letter| letter as u8);
                    let name = &bytes[..(length as usize).saturating_sub(2).min(bytes.len())];
                    let mut path = Text::new();
                    match name.split_first() {
                        Some((0, name)) => {
                            path.put(b"@");
                            path.put(name);
                        }
                        _ => path.put(name.split(|byte| *byte == 0).next().unwrap_or_default()),
                    }
                    Some(Self::Unix(path))
                }
                _ => None,
            }
        }
    }

    fn put(&self, into: &mut Text<128>) {
        match self {
            // It fits: at most 47 letters.
            Self::Internet(address) => _ = write!(into, "{address}"),
            Self::Unix(path) => into.put(path.bytes()),
        }
    }
}
