//! The simulated GPU finds mistakes that a real one hides.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use fakedriver::block::{Coordinates, Order, find, run};

const BLOCK: Coordinates = Coordinates { x: 256, y: 1, z: 1 };
const ONE: Coordinates = Coordinates { x: 1, y: 1, z: 1 };

fn outcome(kernel: &str, order: Order) -> Result<Vec<f32>, String> {
    let mut values = vec![0.0f32; 256];
    let pointer = (values.as_mut_ptr() as u64).to_ne_bytes().to_vec();
    run(find(kernel).unwrap(), ONE, BLOCK, &[pointer], order)?;
    Ok(values)
}

#[test]
fn a_missing_barrier_gives_other_results_in_another_order() {
    let run = |order| outcome("missing_barrier", order).unwrap();
    // Shared memory keeps what the last block left.
    run(Order::Forward);
    assert_eq!(run(Order::Forward), run(Order::Forward));
    assert_ne!(run(Order::Forward), run(Order::Reverse));
    assert_ne!(run(Order::Forward), run(Order::Shuffled(7)));
}

#[test]
fn a_barrier_that_some_threads_never_reach_is_an_error() {
    let error = outcome("divergent_shuffle", Order::Forward).unwrap_err();
    assert!(error.contains("256 threads wait"), "{error}");
    // The simulated GPU can be used afterwards.
    outcome("missing_barrier", Order::Forward).unwrap();
}
