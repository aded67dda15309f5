//! Remembers, for a place in code, where its frame keeps what the walk wants next: the caller's address and frame pointer.
//!
//! The same few hundred places lie on most stacks. Compilers mostly tell a frame's size as a constant above the stack
//! pointer, or keep the frame pointer, and then two loads do what the unwinder's tables say; frames that take a longer
//! calculation are left to the unwinder each time.

use framehop::x86_64::UnwindRegsX86_64;
use std::ops::Range;

/// What is known of a place in code.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// 0 for none.
    place: usize,
    way: Way,
    /// As it stands in the table; zeroes for the agent's own.
    pub(super) frame: [u32; 2],
    /// It is neither CPython nor malloc.
    pub(super) is_telling: bool,
    /// Its module is never unloaded, so that it may be remembered.
    pub(super) is_lasting: bool,
}

/// How to get from a frame to its caller's.
#[derive(Clone, Copy)]
enum Way {
    /// As the unwinder says.
    Unwinder,
    /// The caller's stack pointer lies so many bytes above the frame's, and its frame pointer is kept so many bytes above
    /// it; 0 where that was not touched.
    Size(u32, u32),
    /// The frame pointer leads to the caller's, behind which lies the address.
    FramePointer,
}

/// What a step has led to.
pub(super) struct Taken {
    /// Where the caller goes on, and where on the stack that lies.
    pub(super) outer: u64,
    /// Where the caller's frame pointer was loaded from, if it was.
    pub(super) loaded: Option<u64>,
    /// The frame pointer, where the step went by it.
    pub(super) by: Option<u64>,
}

/// A thread's registers and stack, as the unwinder wants them.
type Unwind<'u> = dyn FnMut(&mut UnwindRegsX86_64, &mut dyn FnMut(u64) -> Result<u64, ()>) -> Option<u64> + 'u;

impl Step {
    const NONE: Self = Self { place: 0, way: Way::Unwinder, frame: [0; 2], is_telling: false, is_lasting: false };

    pub(super) fn new(place: usize, frame: [u32; 2], is_telling: bool, is_lasting: bool) -> Self {
        Self { place, frame, is_telling, is_lasting, ..Self::NONE }
    }

    /// Goes from a frame to its caller's. `None` where the unwinder has to tell.
    pub(super) fn take(&self, registers: &mut UnwindRegsX86_64, stack: &Stack) -> Option<Taken> {
        let (below, pointer) = (registers.sp(), registers.bp());
        let (above, loaded, by) = match self.way {
            Way::Unwinder => return None,
            Way::Size(size, 0) => (below + u64::from(size), None, None),
            Way::Size(size, at) => (below + u64::from(size), Some(below + u64::from(at)), None),
            Way::FramePointer if pointer < below => return None,
            Way::FramePointer => (pointer.checked_add(16)?, Some(pointer), Some(pointer)),
        };
        let outer = stack.load(above - 8).ok()?;
        if let Some(at) = loaded {
            registers.set_bp(stack.load(at).ok()?);
        }
        registers.set_sp(above);
        registers.set_ip(outer);
        Some(Taken { outer, loaded, by })
    }

    /// Watches how the unwinder gets from a frame to its caller's, and remembers it where it is the same each time. It is
    /// made to try once without the frame pointer and once with another stack pointer: what it comes by then is counted from
    /// the other one, and the loads that it makes for it show how.
    pub(super) fn learn(&mut self, registers: &UnwindRegsX86_64, stack: &Stack, unwind: &mut Unwind<'_>) {
        /// Lies on no stack, and is no word's address.
        const NOWHERE: u64 = 1;
        /// Bytes by which the stack pointer is put off.
        const OFF: u64 = 1 << 12;
        let (below, pointer) = (registers.sp(), registers.bp());
        let mut watch = |below, pointer| {
            let mut unwound = UnwindRegsX86_64::new(registers.ip(), below, pointer);
            let (mut loads, mut count) = ([(0, 0); 2], 0);
            let outer = unwind(&mut unwound, &mut |address| {
                let word = stack.load(address)?;
                if let Some(load) = loads.get_mut(count) {
                    *load = (address, word);
                }
                count += 1;
                Ok(word)
            });
            // Which word is the address to return to, and which one the frame pointer, if that was loaded?
            let is_return = |load: (u64, u64)| load.0 == unwound.sp().wrapping_sub(8) && Some(load.1) == outer;
            let kept_at = match loads {
                [only, _] if count == 1 && is_return(only) && unwound.bp() == pointer => Some(0),
                [one, other] if count == 2 => [(one, other), (other, one)]
                    .into_iter()
                    .find_map(|(kept, back)| (is_return(back) && kept.1 == unwound.bp()).then_some(kept.0)),
                _ => None,
            };
            kept_at.map(|kept_at| (unwound.sp(), kept_at))
        };
        if let Some((above, kept_at)) = watch(below, NOWHERE) {
            let at = if kept_at == 0 { Some(0) } else { kept_at.checked_sub(below).filter(|at| *at > 0) };
            let size = above.checked_sub(below).filter(|size| *size >= 8);
            if let (Some(Ok(size)), Some(Ok(at))) = (size.map(u32::try_from), at.map(u32::try_from)) {
                self.way = Way::Size(size, at);
            }
        } else if watch(below.saturating_sub(OFF), pointer) == Some((pointer.wrapping_add(16), pointer)) {
            self.way = Way::FramePointer;
        }
    }
}

/// Words that a chain has room for, and modules that may be unloaded.
const LINKS: usize = 40;
const PASSING: usize = 2;
/// Marks the place of a frame pointer, and the frame pointer that the walk began with.
const POINTER: u16 = 1 << 15;
const FIRST_POINTER: u16 = u16::MAX;

/// Where on the stack the words lie that lead through a segment, in words from the stack pointer where it begins, and a
/// number that tells what they are. The first one's place depends on where the walk begins and on nothing else; it tells where
/// the next one is, and so on, so the same words at the same places are the same segment. (Other words have the same number
/// by chance only, once in 2^64.)
#[derive(Clone, Copy)]
pub(crate) struct Chain {
    number: u64,
    /// A place in each module that may be unloaded, 0 for none. The code is the same as long as the module is there.
    passing: [usize; PASSING],
    links: u16,
    places: [u16; LINKS],
}

impl Chain {
    pub(crate) const NONE: Self = Self { number: 0, passing: [0; PASSING], links: 0, places: [0; LINKS] };

    /// Adds a return address, so many bytes above the stack pointer. `None` where it has no room.
    pub(super) fn and(mut self, above: u64, address: u64) -> Option<Self> {
        let place = u16::try_from(above / 8).ok().filter(|place| *place < POINTER)?;
        self.add(place, address)?;
        Some(self)
    }

    /// Adds the frame pointer that the next step goes by, which lies so many bytes above the stack pointer; what it points
    /// to is counted from there, too. `None` for the one that the walk began with.
    pub(super) fn by_pointer(mut self, above: Option<u64>, to: u64) -> Option<Self> {
        let place = match above {
            Some(above) => u16::try_from(above / 8).ok().filter(|place| *place < POINTER - 1)? | POINTER,
            None => FIRST_POINTER,
        };
        self.add(place, to)?;
        Some(self)
    }

    fn add(&mut self, place: u16, word: u64) -> Option<()> {
        *self.places.get_mut(usize::from(self.links))? = place;
        self.links += 1;
        self.number = mix(self.number, word);
        Some(())
    }

    /// Notes that it leads through a module that may be unloaded, by a place in it.
    pub(super) fn through(mut self, place: usize, is_same_module: impl Fn(usize) -> bool) -> Option<Self> {
        let free = self.passing.iter_mut().find(|known| **known == 0 || is_same_module(**known))?;
        if *free == 0 {
            *free = place;
        }
        Some(self)
    }

    /// The places in modules that may have been unloaded.
    pub(super) fn passing(&self) -> impl Iterator<Item = usize> {
        self.passing.into_iter().filter(|place| *place != 0)
    }

    /// Are these its words that lie where the walk begins?
    pub(super) fn is_at(&self, registers: &UnwindRegsX86_64, stack: &Stack) -> bool {
        let below = registers.sp();
        let word = |place: u16| match place {
            FIRST_POINTER => Ok(registers.bp().wrapping_sub(below)),
            POINTER.. => Ok(stack.load(below + 8 * u64::from(place & !POINTER))?.wrapping_sub(below)),
            _ => stack.load(below + 8 * u64::from(place)),
        };
        let places = self.places.get(..usize::from(self.links)).unwrap_or(&[]);
        let number = places.iter().try_fold(0, |number, place| Ok::<_, ()>(mix(number, word(*place)?)));
        self.links > 0 && number == Ok(self.number)
    }
}

/// Both halves of a product of 128 bits (as in Wang Yi's wyhash).
pub(crate) fn mix(one: u64, other: u64) -> u64 {
    let product = u128::from(one ^ 0xA076_1D64_78BD_642F) * u128::from(other ^ 0xE703_7ED1_A0B4_28DB);
    product as u64 ^ (product >> 64) as u64
}

/// What may be read of the calling thread's stack: from its stack pointer to its end.
pub(super) struct Stack(pub(super) Range<u64>);

impl Stack {
    pub(super) fn holds(&self, address: u64) -> bool {
        self.0.contains(&address)
    }

    #[inline]
    pub(super) fn load(&self, address: u64) -> Result<u64, ()> {
        match self.holds(address) && address.is_multiple_of(8) {
            // SAFETY: between the stack pointer and the end of this thread's stack, and aligned.
            true => Ok(unsafe { (address as *const u64).read() }),
            false => Err(()),
        }
    }
}

/// The steps, each in the one cell where it may be.
pub(super) struct Steps(Box<[Step]>);

const CELLS: usize = 2048;

impl Steps {
    pub(super) fn new() -> Self {
        // Not an array in a box: that might come by way of the stack, and threads may have a small one.
        Self(vec![Step::NONE; CELLS].into_boxed_slice())
    }

    /// The numbers of modules are no longer those that the steps name, or one has been unloaded.
    pub(super) fn forget(&mut self) {
        self.0.fill(Step::NONE);
    }

    pub(super) fn get(&self, place: usize) -> Option<Step> {
        Some(self.0[cell(place)]).filter(|step| step.place == place)
    }

    pub(super) fn keep(&mut self, step: Step) {
        self.0[cell(step.place)] = step;
    }
}

/// Fibonacci hashing (Knuth 6.4).
fn cell(place: usize) -> usize {
    (place as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) as usize >> (usize::BITS - CELLS.ilog2())
}
