//! Turns a made-up server's requests into the evidence that the agent would have of them: the same sampler, the same
//! losses of knowledge, no process.
use fastrand::Rng;
use leakline::analyze::evidence::{
    Frame, FullCollection, NativeFrame, Outcome, Owner, Phase, Route, RouteId, Sample, Served, Settled, StackId, Tick,
    Worker,
};

/// A block of the simulated heap: where its samples are, and what it takes to give it back.
#[derive(Default)]
pub struct Block {
    slots: Vec<usize>,
    size: u64,
}

/// One worker process with its sampler.
pub struct Server {
    pub rng: Rng,
    interval: f64,
    samples: Vec<Option<Sample>>,
    parked: Vec<Block>,
    current: Option<(RouteId, Outcome)>,
    worker: Worker,
}

impl Server {
    /// A worker whose sampler takes one sample in `interval` bytes.
    pub fn new(seed: u64, interval: f64) -> Self {
        let worker = Worker {
            pid: 100 + seed as u32 % 1_000,
            alive: true,
            python: "3.11.7".into(),
            server: "gunicorn".into(),
            command: "gunicorn app:app".into(),
            limit_bytes: Some(2_000_000_000),
            walks_native: true,
            ..Worker::default()
        };
        let rng = Rng::with_seed(seed);
        Self { rng, interval, samples: vec![], parked: vec![], current: None, worker }
    }

    /// What comes is sampled once in `interval` bytes.
    pub fn sample_every(&mut self, interval: f64) {
        self.interval = interval;
    }

    /// The stack of a line of the application which, unless `library` is empty, allocates by way of a library.
    pub fn line(&mut self, file: &str, line: u32, library: &str) -> StackId {
        let frame = |file: String, function: &str, line| Frame { file, function: function.into(), line };
        let mut stack = vec![];
        if !library.is_empty() {
            stack.push(frame(format!("/venv/lib/python3.11/site-packages/{library}"), "keep", line * 10));
        }
        stack.push(frame(format!("/srv/{file}"), "view", line));
        stack.push(frame("/venv/lib/python3.11/site-packages/flask/app.py".into(), "dispatch_request", 867));
        let known = self.worker.stacks.iter().position(|known| *known == stack);
        StackId(known.unwrap_or_else(|| {
            self.worker.stacks.push(stack);
            self.worker.stacks.len() - 1
        }) as u32)
    }

    /// A stack that leads into native code from a line's; from nowhere in a thread that runs no Python.
    pub fn native(&mut self, line: Option<StackId>, frames: Vec<NativeFrame>) -> StackId {
        let python = line.map_or(vec![], |StackId(line)| self.worker.stacks[line as usize].clone());
        self.worker.natives.resize(self.worker.stacks.len(), vec![]);
        self.worker.stacks.push(python);
        self.worker.natives.push(frames);
        StackId(self.worker.stacks.len() as u32 - 1)
    }

    pub fn route(&mut self, name: &str) -> RouteId {
        let route = Route { name: name.into(), served: [Served::default(); 3], durations: [0; 32] };
        self.worker.routes.push(route);
        RouteId(self.worker.routes.len() as u32 - 1)
    }

    /// Answers one request with what `handle` allocates and frees.
    pub fn serve(&mut self, route: RouteId, outcome: Outcome, handle: impl FnOnce(&mut Self)) {
        self.current = Some((route, outcome));
        handle(self);
        self.current = None;
        let served = &mut self.worker.routes[route.0 as usize];
        served.served[outcome as usize].requests += 1;
        served.durations[11] += 1;
        self.worker.requests += 1;
        if self.worker.requests % 100 == 1 {
            let time = 1_700_000_000.0 + self.worker.requests as f64 / 100.0;
            let (requests, interval_bytes) = (self.worker.requests, self.interval);
            self.worker.ticks.push(Tick { time, requests, rss_bytes: 30_000_000, interval_bytes });
        }
    }

    /// A block of `size` bytes: picked with the probability 1 - e^(-size/interval), and then worth size / that.
    pub fn allocate(&mut self, stack: StackId, size: u64) -> Block {
        let mut block = Block { slots: vec![], size };
        self.sample(&mut block, stack, size, false);
        block
    }

    /// realloc: the added bytes are sampled by themselves.
    pub fn grow(&mut self, block: &mut Block, stack: StackId, added: u64) {
        self.sample(block, stack, added, true);
        block.size += added;
    }

    pub fn free(&mut self, block: Block) {
        for slot in block.slots {
            self.samples[slot] = None;
        }
    }

    /// Puts a block on a free list of up to 80, from where [`Self::reuse`] takes it.
    pub fn park(&mut self, block: Block) {
        match self.parked.len() < 80 {
            true => self.parked.push(block),
            false => self.free(block),
        }
    }

    /// A block from the free list if there is one: no allocation happens, the sample goes to the current request and
    /// keeps the stack of its first life.
    pub fn reuse(&mut self, stack: StackId, size: u64) -> Block {
        let Some(block) = self.parked.pop() else { return self.allocate(stack, size) };
        let (owner, born) = (self.owner(), self.worker.requests);
        for &slot in &block.slots {
            let sample = self.samples[slot].as_mut().expect("a parked block's samples live");
            *sample = Sample { owner, born, recycled: true, ..*sample };
        }
        block
    }

    /// The table filled up, or the processor's budget was used up: a larger interval from now on, and what is held is
    /// thinned so that memory halves.
    pub fn thin(&mut self) {
        self.interval *= 2.0;
        self.worker.ticks.iter_mut().for_each(|tick| tick.interval_bytes *= 2.0);
        for slot in &mut self.samples {
            if let Some(sample) = slot {
                sample.weight *= 2.0;
                if self.rng.bool() {
                    *slot = None;
                }
            }
        }
    }

    pub fn collected(&mut self) {
        self.worker.full_collections.push(FullCollection { requests: self.worker.requests });
    }

    /// What a reader would find now.
    pub fn worker(mut self) -> Worker {
        for sample in self.samples.iter_mut().flatten() {
            // Parked blocks are dead to everyone but the allocator.
            sample.weight = sample.weight.max(sample.size as f64);
        }
        for slot in self.parked.iter().flat_map(|block| &block.slots) {
            self.samples[*slot] = None;
        }
        self.worker.samples = self.samples.into_iter().flatten().collect();
        self.worker.samples_taken = self.worker.samples.len() as u64 * 3;
        self.worker.interval_bytes = self.interval;
        self.worker.rss_bytes = 60_000_000;
        self.worker.rss_peak_bytes = 61_000_000;
        self.worker
    }

    fn owner(&self) -> Owner {
        match self.current {
            Some((route, outcome)) => {
                let requests = self.worker.routes[route.0 as usize].served[outcome as usize].requests;
                Owner::Request(Settled { route, outcome, ordinal: requests + 1 })
            }
            None => Owner::Unattributed,
        }
    }

    fn sample(&mut self, block: &mut Block, stack: StackId, size: u64, growth: bool) {
        let chance = -(-(size as f64) / self.interval).exp_m1();
        if self.rng.f64() < chance {
            let (owner, born) = (self.owner(), self.worker.requests);
            let weight = size as f64 / chance;
            let phase = Phase::Handler;
            let stack = Some(stack);
            self.samples.push(Some(Sample {
                stack,
                weight,
                size,
                owner,
                born,
                growth,
                recycled: false,
                phase,
                pins: false,
            }));
            block.slots.push(self.samples.len() - 1);
        }
    }
}
