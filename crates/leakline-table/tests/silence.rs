//! The writer does not allocate: it works inside malloc.

mod memory;

use leakline_table::layout::{FLAG_SMALL, Loss, NATIVE};
use leakline_table::writer::{Birth, CodeKey, CodeText, Collector, Ending, Life, Moment, Random};
use memory::Table;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Calls of this thread; the test's runtime has threads of its own.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: hands every call on to the system's allocator; a const thread-local without a destructor allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's own call; so below.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn calls_during(act: impl FnOnce()) -> u64 {
    let before = CALLS.get();
    act();
    CALLS.get() - before
}

/// Everything that a writer can be asked for, with a table that fills up in every section.
fn live(table: &mut Table, steps: u64) {
    let mut random = Random::new(1);
    let writer = &mut table.writer;
    writer.name_server(b"gunicorn");
    let mut request = 0;
    for step in 0..steps {
        // Names of their own all the time, so that each section of names is full in the end.
        let name = step.to_le_bytes();
        let key = CodeKey { address: 0x1000 + step * 16, fingerprint: step };
        let code = writer.known_code(key).unwrap_or_else(|| {
            writer.code(key, &CodeText { file: b"app.py", function: &name, line_table: b"\x01", first_line: 1 })
        });
        let module = writer.module(&name, b"build", 0);
        let mut frames = [[code, step as u32]; 24];
        frames[0] = [NATIVE | module, 1];
        let stack = writer.stack(&frames);
        if step % 8 == 0 {
            let outcome = (step % 3) as u8;
            writer.end(request, Ending { outcome, now_ns: step }, |record| match record.address % 3 {
                0 => Life::Parked,
                mark => Life::InUse(mark),
            });
            request = writer.begin(b"GET", b"/users/42", step);
            writer.route(request, &name);
            writer.status(request, 500);
        }
        let (address, size) = (16 * (random.bits() % 2000), 1 + random.bits() % 600);
        let sample = writer.born(&Birth {
            address,
            size,
            block: size,
            weight: size as f64,
            stack,
            request,
            flags: FLAG_SMALL,
            place: 0,
        });
        if let Some(sample) = sample {
            writer.mark(sample, |_| Life::InUse(7));
        }
        writer.died(16 * (random.bits() % 2000));
        if let Some(transit) = writer.depart(16 * (random.bits() % 2000)) {
            let added = writer.arrive(transit, 16 * (random.bits() % 2000), random.bits() % 900);
            writer.grown(transit, added, stack, request);
        }
        writer.tick(&Moment {
            time_ns: step * 1_000_000_000,
            rss_bytes: 1,
            rss_peak_bytes: 2,
            collector: Some(Collector { full_runs: step / 2, is_off: false }),
            agent_ns: 3,
        });
    }
}

#[test]
fn the_writer_does_not_allocate() {
    assert!(calls_during(|| drop(std::hint::black_box(Box::new(1)))) >= 2, "allocations are not counted");
    let mut table = Table::new(5);
    assert_eq!(calls_during(|| live(&mut table, 20_000)), 0);
    let lost = table.snapshot().header.lost;
    for full in [Loss::StringsFull, Loss::StacksFull, Loss::RoutesFull, Loss::Thinned] {
        assert!(lost[full as usize] > 0, "{full:?} never happened");
    }
}
