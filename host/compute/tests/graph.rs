//! Building graphs: what does not fit is refused by the operator's name with both shapes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use compute::builder::{Conv2d, Target};
use compute::{Builder, DType, Dim, Plan, Value};

fn input(b: &mut Builder, name: &str, shape: &[u64]) -> Value {
    let dims: Vec<Dim> = std::iter::once(Dim::Batch(1))
        .chain(shape.iter().map(|&size| Dim::Fixed(size)))
        .collect();
    b.input(name, DType::F32, &dims).unwrap()
}

#[test]
fn errors_name_the_operator_and_both_shapes() {
    let mut b = Builder::new();
    let x = input(&mut b, "x", &[7]);
    let image = input(&mut b, "image", &[3, 8, 8]);
    let weight = b.parameter("w", &[5, 6], "zeros", 0).unwrap();
    let kernel = b.parameter("k", &[4, 2, 3, 3], "zeros", 0).unwrap();
    let refused = [
        (b.linear(x, weight, None), "linear", "[batch, 7]", "[5, 6]"),
        (b.matmul(x, weight), "matmul", "[batch, 7]", "[5, 6]"),
        (b.add(x, weight), "add", "[batch, 7]", "[5, 6]"),
        (
            b.conv2d(image, kernel, None, Conv2d::default()),
            "conv2d",
            "[batch, 3, 8, 8]",
            "[4, 2, 3, 3]",
        ),
        (
            b.reshape(x, &[Target::Size(Dim::Fixed(4)), Target::Rest]),
            "reshape",
            "[batch, 7]",
            "4",
        ),
    ];
    for (result, operator, first, second) in refused {
        let error = result.unwrap_err();
        let message = error.to_string();
        assert_eq!(error.code(), "graph.shape", "{message}");
        for part in [operator, first, second] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

#[test]
fn a_plan_gives_its_peak_before_anything_is_allocated() {
    let mut b = Builder::new();
    let x = input(&mut b, "x", &[1 << 20]);
    let y = b.relu(x).unwrap();
    let z = b.exp(y).unwrap();
    b.output("z", z).unwrap();
    // Far more than this machine has: one buffer of the batch, 4 bytes an element, as results take the
    // place of what they are computed from.
    let plan = Plan::new(&b.graph(), 1 << 19).unwrap();
    assert_eq!(plan.peak_bytes(), 4 * (1 << 39));
}
