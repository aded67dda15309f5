//! What requests exchange over sockets is counted to the byte, by route, outcome and peer, and what a request read after
//! its client had left stands apart.

mod memory;

use leakline_table::layout::{Loss, PEER_CLIENT, Phase, SOCKET_BUCKETS, SocketRecord};
use leakline_table::reader::Peer;
use leakline_table::writer::{Ending, Life, Way};
use memory::Table;

fn begin(table: &mut Table) -> u64 {
    table.writer.begin(b"GET", b"/data", 0)
}

fn end(table: &mut Table, request: u64, outcome: u8) {
    table.writer.end(request, Ending { outcome, now_ns: 0 }, |_| Life::InUse(0));
}

/// The record of an outcome and a peer.
fn record(table: &Table, outcome: u8, peer: &Peer) -> Option<SocketRecord> {
    let of_outcome = |(record, at): &(SocketRecord, Peer)| record.outcome == outcome && at == peer;
    table.snapshot().sockets.into_iter().find(of_outcome).map(|(record, _)| record)
}

fn database() -> Peer {
    Peer::At("127.0.0.1:3306".to_owned())
}

#[test]
fn every_byte_is_counted_and_what_was_read_for_nobody_stands_apart() {
    let mut table = Table::new(1);
    let peer = table.writer.peer(b"127.0.0.1:3306");
    for bytes in [0, 900, 1_000] {
        let request = begin(&mut table);
        table.writer.passed(request, peer, Way::Written, 50);
        table.writer.passed(request, peer, Way::Read, bytes);
        table.writer.passed(request, PEER_CLIENT, Way::Written, 200);
        end(&mut table, request, 0);
    }
    let request = begin(&mut table);
    table.writer.passed(request, peer, Way::Read, 1 << 20);
    table.writer.client_left(request, false);
    table.writer.passed(request, peer, Way::Read, 7 << 20);
    // What a client has sent before it left is not read for nobody.
    table.writer.passed(request, PEER_CLIENT, Way::Read, 10);
    end(&mut table, request, 2);

    let ok = record(&table, 0, &database()).unwrap();
    assert_eq!((ok.requests, ok.bytes, ok.most_bytes), (3, [1_900, 150], [1_000, 50]));
    assert_eq!((ok.histograms[0], ok.histograms[10], ok.histograms[SOCKET_BUCKETS + 6]), (1, 2, 3));
    assert_eq!(record(&table, 0, &Peer::Client).unwrap().bytes, [0, 600]);
    let aborted = record(&table, 2, &database()).unwrap();
    assert_eq!((aborted.bytes, aborted.read_after_client_left), ([8 << 20, 0], 7 << 20));
    assert_eq!((aborted.most_bytes, aborted.most_after_client_left), ([8 << 20, 0], 7 << 20));
    let client = record(&table, 2, &Peer::Client).unwrap();
    assert_eq!((client.bytes, client.read_after_client_left), ([10, 0], 0));
}

#[test]
fn an_outcome_that_is_learnt_late_takes_the_bytes_with_it() {
    let mut table = Table::new(1);
    let peer = table.writer.peer(b"127.0.0.1:3306");
    let mut pass = |bytes| {
        let request = begin(&mut table);
        table.writer.passed(request, peer, Way::Read, bytes);
        end(&mut table, request, 0);
        request
    };
    pass(1_000);
    let late = pass(5_000_000);
    // It had got all that there was: that it left then says nothing.
    table.writer.client_left(late, false);
    assert!(record(&table, 2, &database()).is_none());
    table.writer.client_left(late, true);
    let ok = record(&table, 0, &database()).unwrap();
    assert_eq!((ok.requests, ok.bytes[0], ok.histograms[23]), (1, 1_000, 0));
    // Known to a power of two.
    assert!((1_000..1_024).contains(&ok.most_bytes[0]), "{ok:?}");
    let aborted = record(&table, 2, &database()).unwrap();
    assert_eq!((aborted.requests, aborted.bytes[0], aborted.most_bytes[0]), (1, 5_000_000, 5_000_000));
    let snapshot = table.snapshot();
    assert_eq!(snapshot.routes[1].record.requests, [1, 0, 1]);

    // It goes on after its end, for nobody.
    table.writer.passed(late, peer, Way::Read, 3_000_000);
    let aborted = record(&table, 2, &database()).unwrap();
    assert_eq!((aborted.requests, aborted.bytes[0], aborted.most_bytes[0]), (1, 8_000_000, 8_000_000));
    assert_eq!(aborted.read_after_client_left, 3_000_000);
}

#[test]
fn a_client_that_left_in_the_midst_makes_an_aborted_request_and_one_that_had_its_answer_does_not() {
    let mut table = Table::new(1);
    let peer = table.writer.peer(b"[::1]:5432");
    let cut_short = begin(&mut table);
    table.writer.client_left(cut_short, true);
    end(&mut table, cut_short, 0);
    let answered = begin(&mut table);
    table.writer.phase(answered, Phase::After);
    table.writer.client_left(answered, false);
    table.writer.passed(answered, peer, Way::Read, 500);
    end(&mut table, answered, 0);
    assert_eq!(table.snapshot().routes[1].record.requests, [1, 0, 1]);
    assert_eq!(record(&table, 0, &Peer::At("[::1]:5432".to_owned())).unwrap().read_after_client_left, 0);
}

#[test]
fn what_has_no_room_is_counted_with_others_or_as_lost() {
    let mut table = Table::new(1);
    // One request with many peers: four are told apart.
    let request = begin(&mut table);
    for number in 0..6 {
        let peer = table.writer.peer(format!("10.0.0.{number}:80").as_bytes());
        table.writer.passed(request, peer, Way::Read, 100);
    }
    end(&mut table, request, 0);
    assert_eq!(record(&table, 0, &Peer::Other).unwrap().bytes, [200, 0]);
    // Many peers: the table knows so many addresses and no more.
    let peers: Vec<u32> = (0..1_000).map(|number| table.writer.peer(format!("10.1.0.1:{number}").as_bytes())).collect();
    assert_eq!(peers.iter().filter(|peer| **peer != u32::MAX).count(), 256 - 6);
    assert_eq!(table.writer.peer(b"10.1.0.1:3"), peers[3]);
    // Many routes: a table of this size has 24 places.
    let mut counted = 6;
    for number in 0..60 {
        let request = table.writer.begin(b"GET", b"", 0);
        table.writer.route(request, format!("/route-{}", "x".repeat(number)).as_bytes());
        table.writer.passed(request, peers[0], Way::Read, 1);
        counted += 1;
        end(&mut table, request, 0);
    }
    let snapshot = table.snapshot();
    let kept: u64 = snapshot.sockets.iter().map(|(record, _)| record.requests).sum();
    let lost = snapshot.header.lost[Loss::SocketsFull as usize];
    // The two peers that were counted together are one exchange.
    assert!(lost > 0 && kept + lost == counted - 1, "{kept} kept, {lost} lost of {counted}");
}
