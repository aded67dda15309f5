//! A table is read while its writer works, as the kernel copies it: nobody waits for anybody, and no lock is taken.
//!
//! A slot tells by one word whether its record holds. It is lowered before a record is taken apart and raised when the next
//! one is whole, but a copy that is made meanwhile may still have the front of one and the back of another. That costs no
//! more than those samples, as long as each of their fields is checked by itself.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use leakline_table::layout::LEAST_BYTES;
use leakline_table::reader::Snapshot;
use leakline_table::writer::{Birth, Ending, Filter, Life, Origin, Writer};

/// Copies that are read.
const COPIES: usize = 120;
/// Blocks that live at a time; a table of the least size has room for 512 samples.
const LIVE: u64 = 400;

/// The file's pages, as the agent has them.
fn shared(file: &File, bytes: usize) -> &'static mut [u8] {
    // SAFETY: a new mapping, of which there is this one reference, and which is never taken away.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let start = libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(start, libc::MAP_FAILED);
        std::slice::from_raw_parts_mut(start.cast(), bytes)
    }
}

#[test]
fn what_is_read_while_it_is_written_is_whole_or_left_out() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("torn-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.set_len(LEAST_BYTES as u64).unwrap();
    let filter: &'static Filter = Box::leak(Box::default());
    let origin = Origin {
        pid: 7,
        parent: 1,
        process_start_ticks: 7,
        now_ns: 1,
        python_version: 0x030B_07F0,
        command: b"server",
        interval_bytes: 4096.0,
    };
    let private = vec![0; Writer::private_bytes(LEAST_BYTES)].leak();
    let mut writer = Writer::create(shared(&file, LEAST_BYTES), private, filter, &origin).unwrap();
    let done = AtomicBool::new(false);
    let (mut seen, mut mixed) = (0, 0);
    let mut serve = move |step: u64| {
        let request = writer.begin(b"GET", format!("/{}", step % 5).as_bytes(), step);
        let (address, size) = (0x10_0000 + 16 * (step % LIVE), 100 + step % 5000);
        writer.died(address);
        let weight = 3.0 * size as f64;
        writer.born(&Birth { address, size, block: size, weight, stack: 0, request, flags: 0, place: 0 });
        writer.end(request, Ending { outcome: (step % 3) as u8, now_ns: step }, |_| Life::InUse(0));
    };
    // Before anybody reads, all routes are known and all slots were in use.
    (0..2 * LIVE).for_each(&mut serve);
    std::thread::scope(|scope| {
        scope.spawn(|| (2 * LIVE..).take_while(|_| !done.load(Ordering::Relaxed)).for_each(&mut serve));
        for _ in 0..COPIES {
            let snapshot = Snapshot::read(&fs::read(&path).unwrap()).expect("whatever is going on, it can be read");
            assert_eq!(snapshot.damaged_records, 0, "each field is one that the writer has written");
            assert!(snapshot.samples.len() <= LIVE as usize);
            let is_mixed = |weight: f64, size: u64| weight != 3.0 * size as f64;
            seen += snapshot.samples.len();
            mixed += snapshot.samples.iter().filter(|one| is_mixed(one.record.weight, one.record.size)).count();
        }
        done.store(true, Ordering::Relaxed);
    });
    fs::remove_file(&path).unwrap();
    println!("{mixed} of {seen} records were of two samples");
    assert!(mixed * 100 < seen, "{mixed} of {seen} records were of two samples");
}
