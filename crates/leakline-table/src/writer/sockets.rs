//! Counts what requests exchange over sockets: bytes by peer while a request lasts, and by route, outcome and peer when
//! it has ended. These are no samples: every byte is counted.

use super::Writer;
use super::names::mix;
use crate::layout::{Loss, PEER_CLIENT, PEER_OTHER, Phase, SOCKET_BUCKETS, SectionKind, SocketRecord};

/// Which way bytes pass a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the process.
    Read = 0,
    /// From it.
    Written = 1,
}

/// Peers of one request that are told apart; the last place is for all others.
pub(super) const EXCHANGES: usize = 5;
/// Addresses of peers that are told apart.
const PEERS: u32 = 256;
/// Records that are looked at before the section counts as full.
const LONGEST_PROBE: usize = 32;

/// What a request has exchanged with one peer.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Exchange {
    peer: u32,
    is_used: u32,
    /// By [`Way`].
    bytes: [u64; 2],
    read_after_client_left: u64,
}

impl Exchange {
    pub(super) const NONE: Self = Self { peer: 0, is_used: 0, bytes: [0; 2], read_after_client_left: 0 };
}

impl Writer<'_> {
    /// The id of a peer's address, to be given to [`Writer::passed`].
    pub fn peer(&mut self, address: &[u8]) -> u32 {
        if let Some(known) = self.names.known_string(address) {
            return known;
        }
        let room = self.peers < PEERS && !address.is_empty();
        let Some(id) = room.then(|| self.names.string(address)).flatten() else { return PEER_OTHER };
        self.peers += 1;
        self.publish_names();
        id
    }

    /// Bytes have passed a socket for a request, which may have ended: what goes on after it belongs to it.
    pub fn passed(&mut self, handle: u64, peer: u32, way: Way, bytes: u64) {
        let open = self.requests.open(handle);
        let Some(index) = open.or_else(|| self.requests.ended(handle)) else { return };
        if open.is_none() {
            self.take_exchanges_back(index);
        }
        let request = self.requests.slot(index);
        let has_left = request.client_left != 0 || open.is_none() && request.outcome() == 2;
        let is_for_it = |exchange: &Exchange| exchange.is_used == 0 || exchange.peer == peer;
        let (at, peer) = match request.exchanges[..EXCHANGES - 1].iter().position(is_for_it) {
            Some(at) => (at, peer),
            None => (EXCHANGES - 1, PEER_OTHER),
        };
        let exchange = &mut request.exchanges[at];
        (exchange.peer, exchange.is_used) = (peer, 1);
        exchange.bytes[way as usize] += bytes;
        if has_left && way == Way::Read && peer != PEER_CLIENT {
            exchange.read_after_client_left += bytes;
        }
        if open.is_none() {
            self.count_exchanges(index);
        }
    }

    /// The client of a request has left: what the request reads from now on is read for nobody. Where it left before all
    /// that had been written for it was sent (`cut_short`), the request is an aborted one, however well it seemed to end.
    pub fn client_left(&mut self, handle: u64, cut_short: bool) {
        if let Some(index) = self.requests.open(handle) {
            let request = self.requests.slot(index);
            // A client that has got its whole response may leave while the request goes on.
            if cut_short || request.phase() != Phase::After as u8 {
                request.client_left = 1;
            }
            request.cut_short |= u32::from(cut_short);
        } else if let Some(index) = self.requests.ended(handle).filter(|_| cut_short) {
            if self.requests.slot(index).outcome() == 0 {
                self.amend(handle, 2);
            }
        }
    }

    /// Adds what a request that has ended exchanged to its route's and outcome's records.
    pub(super) fn count_exchanges(&mut self, index: u32) {
        self.for_each_exchange(index, |record, exchange| {
            record.requests += 1;
            record.read_after_client_left += exchange.read_after_client_left;
            if exchange.bytes[Way::Read as usize] > record.most_bytes[Way::Read as usize] {
                record.most_after_client_left = exchange.read_after_client_left;
            }
            for (way, bytes) in exchange.bytes.into_iter().enumerate() {
                record.bytes[way] += bytes;
                record.most_bytes[way] = record.most_bytes[way].max(bytes);
                record.histograms[way * SOCKET_BUCKETS + bucket(bytes)] += 1;
            }
        });
    }

    /// Undoes [`Writer::count_exchanges`]. What was the most is afterwards known to a power of two.
    pub(super) fn take_exchanges_back(&mut self, index: u32) {
        self.for_each_exchange(index, |record, exchange| {
            record.requests = record.requests.saturating_sub(1);
            record.read_after_client_left =
                record.read_after_client_left.saturating_sub(exchange.read_after_client_left);
            for (way, bytes) in exchange.bytes.into_iter().enumerate() {
                record.bytes[way] = record.bytes[way].saturating_sub(bytes);
                let histogram = &mut record.histograms[way * SOCKET_BUCKETS..(way + 1) * SOCKET_BUCKETS];
                histogram[bucket(bytes)] = histogram[bucket(bytes)].saturating_sub(1);
                if record.most_bytes[way] == bytes {
                    let highest = histogram.iter().rposition(|count| *count > 0);
                    record.most_bytes[way] = bytes.min(highest.map_or(0, |bucket| (1 << bucket) - 1));
                }
            }
            record.most_after_client_left = record.most_after_client_left.min(record.most_bytes[Way::Read as usize]);
        });
    }

    fn for_each_exchange(&mut self, index: u32, act: impl Fn(&mut SocketRecord, &Exchange)) {
        let request = self.requests.slot(index);
        let (route, outcome, exchanges) = (request.route(), request.outcome() as u8, request.exchanges);
        for exchange in exchanges.iter().filter(|exchange| exchange.is_used != 0) {
            match self.socket(route, outcome, exchange.peer) {
                Some(record) => act(record, exchange),
                None => self.lose(Loss::SocketsFull),
            }
        }
    }

    /// The record of a route, an outcome and a peer, which is made where there is none.
    fn socket(&mut self, route: u32, outcome: u8, peer: u32) -> Option<&mut SocketRecord> {
        self.entry(SectionKind::Sockets).used = self.sockets.len() as u32;
        let home = mix(u64::from(peer) << 32 | u64::from(route) << 2 | u64::from(outcome)) as usize;
        let count = self.sockets.len();
        let is_for_it = |at: &usize| {
            let record = &self.sockets[*at];
            record.live == 0 || (record.route, record.outcome, record.peer) == (route, outcome, peer)
        };
        let at = (0..LONGEST_PROBE.min(count)).map(|step| (home % count + step) % count).find(is_for_it)?;
        let record = self.sockets.get_mut(at)?;
        (record.route, record.outcome, record.peer) = (route, outcome, peer);
        record.live = 1;
        Some(record)
    }
}

/// The bucket of a number of bytes: below 2^i.
fn bucket(bytes: u64) -> usize {
    bytes.checked_ilog2().map_or(0, |log| log as usize + 1).min(SOCKET_BUCKETS - 1)
}
