//! The stream of a heap snapshot against a stupid twin, and the reader against hostile bytes.

#[path = "heap/exercise.rs"]
mod exercise;

use leakline_table::heap::{
    Buffer, Encoder, Heap, HeapHeader, MAGIC, Name, ObjectHead, Search, Sink, TEXT_BYTES, TypeName, VERSION,
};
use leakline_table::reader::Refusal;
use leakline_table::writer::Random;
use std::collections::HashMap;

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Sink for Bytes {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// An object as the test knows it.
#[derive(Clone, Debug, PartialEq)]
struct Twin {
    address: u64,
    of: String,
    numbers: [u64; 3],
    length: Option<u64>,
    bound: Option<u64>,
    label: Option<String>,
    is_tracked: bool,
    is_class: bool,
    buffers: [Buffer; 2],
    edges: Vec<(Option<String>, u64)>,
    limits: Vec<(String, u64)>,
}

fn twins(seed: u64, count: usize) -> Vec<Twin> {
    let mut random = Random::new(seed);
    let mut pick = move |below: u64| random.bits() % below;
    (0..count)
        .map(|_| {
            let mut address = || 0x7F00_0000_0000 + 8 * pick(1 << 33);
            let (own, first, second, other) = (address(), address(), address(), address());
            let mut buffers = [Buffer::default(); 2];
            for (buffer, at) in buffers.iter_mut().zip([first, second]).take(pick(3) as usize) {
                *buffer = Buffer { address: at, bytes: pick(1 << 40) };
            }
            let mut edges = vec![];
            for _ in 0..pick(6) {
                let name = (pick(2) == 0).then(|| format!("name_{}", pick(40)));
                let target = [own, other, 8 * pick(1 << 60)][pick(3) as usize];
                edges.extend(std::iter::repeat_n((name, target), 1 + pick(3) as usize));
            }
            // Each edge with a name may be followed by a number.
            let limits = edges.iter().filter_map(|(name, _)| (pick(3) == 0).then_some((name.clone()?, pick(u64::MAX))));
            let limits = limits.collect();
            Twin {
                address: own,
                of: format!("type_{}", pick(20)),
                numbers: [pick(9), pick(1 << 50), pick(64)],
                length: (pick(2) == 0).then(|| pick(u64::MAX)),
                bound: (pick(4) == 0).then(|| pick(99)),
                label: (pick(4) == 0).then(|| format!("label_ä_{}", pick(99))),
                is_tracked: pick(2) == 0,
                is_class: pick(2) == 0,
                buffers,
                edges,
                limits,
            }
        })
        .collect()
}

fn encoded(twins: &[Twin], lost: &[u64]) -> Vec<u8> {
    let mut encoder = Encoder::new(Bytes::default());
    let (mut types, mut names) = (HashMap::new(), HashMap::new());
    for twin in twins {
        let of = types.get(&twin.of).map_or(TypeName::New(twin.of.as_bytes()), |index| TypeName::Known(*index));
        let index = encoder.object(&ObjectHead {
            address: twin.address,
            of,
            references: twin.numbers[0],
            bytes: twin.numbers[1],
            front: twin.numbers[2],
            length: twin.length,
            bound: twin.bound,
            label: twin.label.as_deref().unwrap_or_default().as_bytes(),
            is_tracked: twin.is_tracked,
            is_class: twin.is_class,
            buffers: twin.buffers,
        });
        types.insert(&twin.of, index);
        let mut limits = twin.limits.iter().peekable();
        for (name, target) in &twin.edges {
            let known =
                name.as_ref().map(|name| names.get(name).map_or(Name::New(name.as_bytes()), |at| Name::Known(*at)));
            if let (Some(index), Some(name)) = (encoder.edge(known.unwrap_or(Name::None), *target), name) {
                names.insert(name.clone(), index);
            }
            if let Some((_, most)) = limits.next_if(|(limited, _)| name.as_ref() == Some(limited)) {
                encoder.limit(*most);
            }
        }
        encoder.end();
    }
    let (stream, objects, edges) = encoder.finish(lost.iter().copied());
    let header = HeapHeader {
        magic: MAGIC,
        version: VERSION,
        pid: 7,
        process_start_ticks: 1,
        taken_ns: 2,
        requests: 3,
        python_version: 0x030B_07F0,
        complete: 1,
        objects,
        edges,
        stream_bytes: stream.0.len() as u64,
        names_dropped: 0,
        collector_head: 16,
        walk_ns: 4,
        search: Search::Done as u64,
        searched: 5,
        lost: lost.len() as u64,
        interpreters: 2,
        interpreters_left_out: 1,
    };
    // SAFETY: a repr(C) record without padding.
    let header: [u8; HeapHeader::BYTES] = unsafe { std::mem::transmute(header) };
    [&header[..], &stream.0].concat()
}

fn decoded(heap: &Heap) -> Vec<Twin> {
    let objects = heap.objects.iter().enumerate();
    objects
        .map(|(at, object)| {
            let edges = heap.edges_of(at).iter().flat_map(|edge| {
                let name = edge.name.map(|name| heap.names[name as usize].clone());
                std::iter::repeat_n((name, edge.target), edge.count as usize)
            });
            let limits = heap.limits.iter().filter(|limit| limit.object as usize == at);
            Twin {
                address: object.address,
                of: heap.types[object.of as usize].clone(),
                numbers: [object.references, object.bytes, object.front],
                length: object.length,
                bound: object.bound,
                label: object.label.map(|label| heap.labels[label as usize].clone()),
                is_tracked: object.is_tracked,
                is_class: object.is_class,
                buffers: object.buffers,
                edges: edges.collect(),
                limits: limits.map(|limit| (heap.names[limit.name as usize].clone(), limit.most)).collect(),
            }
        })
        .collect()
}

#[test]
fn what_is_written_is_read() {
    for seed in 1..20 {
        let twins = twins(seed, 300);
        let lost: Vec<u64> = (1..seed).map(|number| (number * seed) << (4 + seed)).collect();
        let heap = exercise::read(&encoded(&twins, &lost)).expect("it is genuine");
        assert_eq!((decoded(&heap), heap.lost), (twins, lost));
    }
    assert!(exercise::read(&encoded(&[], &[])).expect("an empty one is whole").objects.is_empty());
}

#[test]
fn a_list_of_one_object_takes_no_room() {
    let mut twin = twins(1, 1).remove(0);
    twin.edges = vec![(None, 0x7F00_0000_1000); 1_000_000];
    let bytes = encoded(&[twin], &[]);
    assert!(bytes.len() < 400, "{} bytes", bytes.len());
    assert_eq!(exercise::read(&bytes).expect("it is genuine").edges[0].count, 1_000_000);
}

#[test]
fn long_names_are_cut() {
    let mut twin = twins(1, 1).remove(0);
    twin.of = "t".repeat(500);
    let heap = exercise::read(&encoded(&[twin], &[])).expect("it is genuine");
    assert_eq!(heap.types[0].len(), TEXT_BYTES);
}

#[test]
fn a_cut_file_is_refused() {
    let whole = encoded(&twins(3, 100), &[0x5000, 0x6010]);
    for length in (0..whole.len()).step_by(7).chain([HeapHeader::BYTES, whole.len() - 1]) {
        let refusal = exercise::read(&whole[..length]).expect_err("it is cut");
        assert!(matches!(refusal, Refusal::TooShort { .. } | Refusal::Damaged { .. }), "{refusal:?}");
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(exercise::read(&longer), Err(Refusal::Damaged { .. })));
    let mut unfinished = whole.clone();
    unfinished[std::mem::offset_of!(HeapHeader, complete)] = 0;
    assert!(matches!(exercise::read(&unfinished), Err(Refusal::Damaged { .. })));
    let mut newer = whole;
    newer[std::mem::offset_of!(HeapHeader, version)] = VERSION as u8 + 1;
    assert_eq!(exercise::read(&newer).unwrap_err(), Refusal::Newer { version: VERSION + 1 });
    assert!(matches!(exercise::read(&[0; 500]).unwrap_err(), Refusal::Damaged { .. }));
}

#[test]
fn flipped_bytes_do_no_harm() {
    let whole = encoded(&twins(5, 60), &[0x5000, 0x6010]);
    let mut random = Random::new(9);
    let mut refused = 0;
    for _ in 0..4000 {
        let mut bytes = whole.clone();
        for _ in 0..=random.bits() % 4 {
            let at = HeapHeader::BYTES + random.bits() as usize % (bytes.len() - HeapHeader::BYTES);
            bytes[at] = random.bits() as u8;
        }
        refused += u64::from(exercise::read(&bytes).is_err());
    }
    assert!((400..3900).contains(&refused), "both ways must be tried: {refused} of 4000 refused");
}
