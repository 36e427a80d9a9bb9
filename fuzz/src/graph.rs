//! Graphs: calls of every operator with any operands and attributes, gradients, the plan, and runs on
//! the processor on any numbers.

use std::sync::atomic::AtomicBool;

use compute::cpu::CpuBackend;
use compute::{Backend, DType, Graph, HostTensor, OPS, Plan};

use crate::bytes::{Bytes, random};
use crate::script::Script;

/// Operators of one graph at most.
const MOST_CALLS: usize = 48;
/// The largest plan that is run, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// Float32 numbers to compute with.
const FLOATS: [f32; 8] = [
    1.0,
    -0.5,
    0.25,
    0.0,
    f32::MAX,
    f32::NAN,
    f32::INFINITY,
    f32::MIN_POSITIVE,
];
/// Int64 numbers to compute with.
const INTEGERS: [i64; 8] = [0, 1, 2, 0, 1, -1, i64::MAX, i64::MIN];

/// Builds, differentiates, plans and runs what the bytes say.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(Bytes::new(bytes));
    script.leaves();
    for _ in 0..MOST_CALLS {
        if script.bytes.is_empty() {
            break;
        }
        let name = OPS[script.bytes.below(OPS.len())];
        script.call(name);
    }
    script.finish();
    let batch = 1 + script.bytes.below(3) as u32;
    execute(&script.b.graph(), batch, &mut script.bytes);
}

/// Plans and, where it is small, runs a graph twice.
pub(crate) fn execute(graph: &Graph, batch: u32, bytes: &mut Bytes<'_>) {
    let Ok(plan) = Plan::new(graph, batch) else {
        return;
    };
    let _ = plan.describe();
    if plan.peak_bytes() > MOST_BYTES {
        return;
    }
    let inputs: Vec<_> = plan.inputs().to_vec();
    let outputs: Vec<_> = plan.outputs().to_vec();
    let Ok(backend) = CpuBackend::new(1) else {
        return;
    };
    let Ok(mut session) = backend.open(vec![plan], MOST_BYTES) else {
        return;
    };
    for batch in [batch as usize, 1] {
        let kind = bytes.byte();
        let feeds: Vec<_> = inputs
            .iter()
            .filter_map(|port| {
                let shape = port.shape.at(batch);
                Some((port.name.as_str(), feed(port.dtype, shape, kind)?))
            })
            .collect();
        let feeds: Vec<_> = feeds.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let ended = session.run(0, batch, &feeds, &AtomicBool::new(false));
        for port in &outputs {
            let result = session.output(0, &port.name);
            assert_eq!(result.is_ok(), ended.is_ok(), "{}", port.name);
            let _ = session.mean(0, &port.name);
        }
    }
    for info in session.parameters() {
        assert!(session.download(&info.name).is_ok());
    }
}

/// A tensor of one kind of numbers: plain ones for half of all kinds.
fn feed(dtype: DType, shape: Vec<usize>, kind: u8) -> Option<HostTensor> {
    let count = shape.iter().product::<usize>();
    let numbers = if kind < 128 { 3 } else { 8 };
    let pick = |i: usize| (i + usize::from(kind)) % numbers;
    let bytes: Vec<u8> = match dtype {
        DType::F32 => (0..count)
            .flat_map(|i| FLOATS[pick(i)].to_le_bytes())
            .collect(),
        DType::I64 => (0..count)
            .flat_map(|i| INTEGERS[pick(i)].to_le_bytes())
            .collect(),
        _ => (0..count)
            .map(|i| if kind < 128 { (i % 2) as u8 } else { i as u8 })
            .collect(),
    };
    HostTensor::new(dtype, shape, bytes).ok()
}

/// Scripts that begin with each operator.
pub fn seeds() -> Vec<Vec<u8>> {
    let script = |number: usize| {
        let mut bytes = random(number as u64, 160);
        let at = Script::LEAF_BYTES;
        bytes[at] = (number % OPS.len()) as u8;
        bytes
    };
    (0..4 * OPS.len()).map(script).collect()
}
