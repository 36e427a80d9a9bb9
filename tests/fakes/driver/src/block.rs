//! Runs a kernel's threads on the processor: block after block, a block's threads as fibres.
//!
//! A thread that never waits runs to its end on the stack of the one before it. A barrier opens
//! when every living thread of the block is at it, a shuffle when every living thread of the warp
//! is; what can never open is an error. The order in which threads run is chosen, so that a missing
//! barrier gives different results in different orders.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char, c_void};

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};

const WARP: usize = 32;
const STACK_BYTES: usize = 64 << 10;

/// Three coordinates, as CUDA's `uint3`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Coordinates {
    /// Fastest.
    pub x: u32,
    /// In between.
    pub y: u32,
    /// Slowest.
    pub z: u32,
}

impl Coordinates {
    fn count(self) -> usize {
        self.x as usize * self.y as usize * self.z as usize
    }

    fn at(self, number: usize) -> Self {
        let (x, y) = (self.x as usize, self.y as usize);
        Self {
            x: (number % x) as u32,
            y: (number / x % y) as u32,
            z: (number / x / y) as u32,
        }
    }
}

/// `FakeThread` of shim.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct Thread {
    thread: Coordinates,
    block: Coordinates,
    threads: Coordinates,
    blocks: Coordinates,
}

/// `FakeKernel` of shim.h.
#[repr(C)]
pub struct Kernel {
    name: *const c_char,
    call: extern "C-unwind" fn(*mut *mut c_void),
    count: usize,
    sizes: [usize; 16],
}

// SAFETY: the tables that the C++ side makes never change.
unsafe impl Sync for Kernel {}

impl Kernel {
    fn name(&self) -> &str {
        // SAFETY: the table holds string literals.
        unsafe { CStr::from_ptr(self.name) }.to_str().unwrap_or("")
    }

    /// Sizes of the parameters in bytes.
    pub fn parameters(&self) -> &[usize] {
        &self.sizes[..self.count]
    }
}

/// The order in which a block's threads take their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From the first.
    Forward,
    /// From the last.
    Reverse,
    /// Shuffled by this seed.
    Shuffled(u64),
}

impl Order {
    /// `reverse`, a seed, or anything else for forward.
    pub fn parse(text: &str) -> Self {
        match text.parse() {
            Ok(seed) => Self::Shuffled(seed),
            Err(_) if text == "reverse" => Self::Reverse,
            Err(_) => Self::Forward,
        }
    }

    fn of(self, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..count).collect();
        match self {
            Self::Forward => {}
            Self::Reverse => order.reverse(),
            Self::Shuffled(seed) => {
                let mut state = seed | 1;
                for i in (1..count).rev() {
                    // Steele, Lea and Flood 2014: splitmix64.
                    state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                    let mut z = state;
                    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                    order.swap(i, ((z ^ (z >> 31)) % (i as u64 + 1)) as usize);
                }
            }
        }
        order
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wait {
    Barrier,
    Shuffle,
}

type Fibre = Coroutine<(), Wait, (), DefaultStack>;

/// What the running thread's shuffles need.
struct Exchange {
    slots: [Vec<u32>; 2],
    /// Which of the two a thread uses next.
    turns: Vec<usize>,
}

thread_local! {
    static YIELDER: Cell<*const Yielder<(), Wait>> = const { Cell::new(std::ptr::null()) };
    static RUNNING: Cell<usize> = const { Cell::new(0) };
    static EXCHANGE: RefCell<Exchange> = const {
        RefCell::new(Exchange { slots: [Vec::new(), Vec::new()], turns: Vec::new() })
    };
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

unsafe extern "C" {
    safe fn fake_kernels() -> *const *const Kernel;
    static mut fake_thread: *mut Thread;
}

/// Suspends the running fibre.
fn wait(reason: Wait) {
    let yielder = YIELDER.get();
    // SAFETY: set by the fibre that runs, to a yielder that lives as long as the fibre.
    unsafe { &*yielder }.suspend(reason);
    YIELDER.set(yielder);
}

/// `__syncthreads`.
// SAFETY: nothing else defines this name.
#[unsafe(no_mangle)]
extern "C-unwind" fn fake_barrier() {
    wait(Wait::Barrier);
}

/// `__shfl_xor_sync`.
// SAFETY: nothing else defines this name.
#[unsafe(no_mangle)]
extern "C-unwind" fn fake_exchange(value: u32, mask: u32) -> u32 {
    let me = RUNNING.get();
    let turn = EXCHANGE.with_borrow_mut(|exchange| {
        let turn = exchange.turns[me] % 2;
        exchange.turns[me] += 1;
        exchange.slots[turn][me] = value;
        turn
    });
    wait(Wait::Shuffle);
    let partner = me / WARP * WARP + ((me % WARP) ^ mask as usize);
    EXCHANGE.with_borrow(|exchange| exchange.slots[turn].get(partner).copied().unwrap_or(value))
}

/// The kernel of a name.
pub fn find(name: &str) -> Option<&'static Kernel> {
    let mut at = fake_kernels();
    loop {
        // SAFETY: the table ends with a null, which ends this loop; its entries are static.
        let kernel = unsafe { (*at).as_ref() }?;
        if kernel.name() == name {
            return Some(kernel);
        }
        // SAFETY: the entry was not the last.
        at = unsafe { at.add(1) };
    }
}

/// Runs a kernel on a grid. Errors: a reason, where threads wait for what never comes.
pub fn run(
    kernel: &'static Kernel,
    blocks: Coordinates,
    threads: Coordinates,
    parameters: &[Vec<u8>],
    order: Order,
) -> Result<(), String> {
    let count = threads.count();
    let turns = order.of(count);
    for block in order.of(blocks.count()) {
        let place = Thread {
            thread: Coordinates::default(),
            block: blocks.at(block),
            threads,
            blocks,
        };
        run_block(kernel, place, &turns, parameters)?;
    }
    Ok(())
}

fn start(kernel: &'static Kernel, parameters: &[Vec<u8>]) -> Option<Fibre> {
    let pooled = STACKS.with_borrow_mut(Vec::pop);
    let stack = match pooled {
        Some(stack) => stack,
        None => DefaultStack::new(STACK_BYTES).ok()?,
    };
    let pointers: Vec<*mut c_void> = parameters
        .iter()
        .map(|parameter| parameter.as_ptr().cast_mut().cast())
        .collect();
    Some(Coroutine::with_stack(stack, move |yielder, ()| {
        YIELDER.set(std::ptr::from_ref(yielder));
        let mut pointers = pointers;
        (kernel.call)(pointers.as_mut_ptr());
    }))
}

/// What a thread of a block does.
enum State {
    New,
    Ready(Fibre),
    Waiting(Fibre, Wait),
    Done,
}

fn run_block(
    kernel: &'static Kernel,
    place: Thread,
    turns: &[usize],
    parameters: &[Vec<u8>],
) -> Result<(), String> {
    let count = turns.len();
    EXCHANGE.with_borrow_mut(|exchange| {
        exchange.slots.iter_mut().for_each(|slots| {
            slots.clear();
            slots.resize(count, 0xCDCD_CDCD);
        });
        exchange.turns.clear();
        exchange.turns.resize(count, 0);
    });
    let mut states: Vec<State> = (0..count).map(|_| State::New).collect();
    loop {
        for &number in turns {
            let mut fibre = match std::mem::replace(&mut states[number], State::Done) {
                State::New => start(kernel, parameters)
                    .ok_or_else(|| "no memory for a thread's stack".to_owned())?,
                State::Ready(fibre) => fibre,
                other => {
                    states[number] = other;
                    continue;
                }
            };
            let mut thread = Thread {
                thread: place.threads.at(number),
                ..place
            };
            // SAFETY: the driver's lock is held, so that no other thread runs kernels; `thread`
            // outlives the turn.
            unsafe { fake_thread = &raw mut thread };
            RUNNING.set(number);
            match fibre.resume(()) {
                CoroutineResult::Yield(reason) => states[number] = State::Waiting(fibre, reason),
                CoroutineResult::Return(()) => {
                    STACKS.with_borrow_mut(|stacks| stacks.push(fibre.into_stack()));
                }
            }
        }
        if states.iter().all(|state| matches!(state, State::Done)) {
            return Ok(());
        }
        if !release(&mut states) {
            let stuck = abandon(states);
            return Err(format!(
                "kernel {}: {stuck} threads wait at barriers and shuffles that the others never reach",
                kernel.name()
            ));
        }
    }
}

/// Lets go those whose barrier or shuffle is complete; whether there were any.
fn release(states: &mut [State]) -> bool {
    let all_at = |states: &[State], wanted: Wait| {
        let at = |state: &State| match state {
            State::Done => true,
            State::Waiting(_, reason) => *reason == wanted,
            State::New | State::Ready(_) => false,
        };
        states.iter().all(at) && !states.iter().all(|state| matches!(state, State::Done))
    };
    let go = |states: &mut [State]| {
        for state in states {
            if let State::Waiting(..) = state
                && let State::Waiting(fibre, _) = std::mem::replace(state, State::Done)
            {
                *state = State::Ready(fibre);
            }
        }
    };
    if all_at(states, Wait::Barrier) {
        go(states);
        return true;
    }
    let mut any = false;
    for warp in states.chunks_mut(WARP) {
        if all_at(warp, Wait::Shuffle) {
            go(warp);
            any = true;
        }
    }
    any
}

/// Drops threads that will never end; how many there were.
fn abandon(states: Vec<State>) -> usize {
    let mut stuck = 0;
    for state in states {
        if let State::Waiting(mut fibre, _) | State::Ready(mut fibre) = state {
            stuck += 1;
            // SAFETY: a kernel's frames hold nothing that must be dropped.
            unsafe { fibre.force_reset() };
            STACKS.with_borrow_mut(|stacks| stacks.push(fibre.into_stack()));
        }
    }
    stuck
}
