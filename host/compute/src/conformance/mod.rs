//! The table of operators, checked column by column: the contract's text, the results of every
//! backend against the definition in float64, and gradients against finite differences of it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod cases;
#[path = "../../tests/emulator/mod.rs"]
mod emulator;
mod plans;
mod programs;
mod reference;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use self::cases::{Case, Operator, TABLE};
use self::reference::{Array, State};
use crate::backend::Backend;
use crate::builder::Builder;
use crate::cpu::CpuBackend;
use crate::cuda::{self, CudaBackend};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Graph, Value};
use crate::ops::{NAMES, Op};
use crate::plan::{Options, Plan, Precision};
use crate::schedule::{Schedule, ScheduleKind};
use crate::shape::{Dim, Shape};
use crate::tensor::HostTensor;

const ONE_GPU: &str = "[[gpu]]\nprofile = \"h100\"\n";

fn gpu() -> CudaBackend {
    CudaBackend::new(&emulator::uuid(), "cuda:0", cuda::Options::default()).unwrap()
}

const RATE: f64 = 0.05;
/// Optimizer steps of a case that has any.
const STEPS: usize = 3;
/// Elements of each tensor whose gradient is compared.
const PROBES: usize = 6;

/// A graph of one operator, and what is fed to it.
struct Built {
    name: &'static str,
    graph: Graph,
    case: Case,
    outputs: usize,
    /// The scalar that is differentiated: every float32 output times random numbers, added up.
    loss: Option<Value>,
}

impl Built {
    fn new(operator: &Operator, seed: u64, large: bool) -> Self {
        let mut case = Case::new(seed, large);
        let name = operator.name;
        let built = (operator.build)(&mut case);
        let outputs = built.unwrap_or_else(|e| panic!("{name}, seed {seed}: {e}"));
        let loss = Self::finish(&mut case, &outputs);
        let loss = loss.unwrap_or_else(|e| panic!("{name}, seed {seed}: {e}"));
        Self {
            name,
            graph: case.b.graph(),
            case,
            outputs: outputs.len(),
            loss,
        }
    }

    fn finish(case: &mut Case, outputs: &[Value]) -> Result<Option<Value>, Error> {
        let mut loss: Option<Value> = None;
        let of: Vec<(String, Value)> = case.differentiable.clone();
        for (i, &output) in outputs.iter().enumerate() {
            case.b.output(&format!("out.{i}"), output)?;
            let (dtype, shape) = case.b.typed(output)?;
            if dtype != DType::F32 || of.is_empty() {
                continue;
            }
            let dims = shape.0.clone();
            let seed = case.floats(&dims, -2.0, 2.0)?;
            let product = case.b.mul(output, seed)?;
            let sum = case.b.sum(product, &[], false)?;
            loss = Some(match loss {
                Some(loss) => case.b.add(loss, sum)?,
                None => sum,
            });
        }
        if let Some(loss) = loss {
            let values: Vec<Value> = of.iter().map(|(_, value)| *value).collect();
            let gradients = case.b.gradients(loss, &values)?;
            for ((name, _), gradient) in of.iter().zip(gradients) {
                case.b.output(&format!("grad.{name}"), gradient)?;
            }
        }
        case.differentiable = of;
        Ok(loss)
    }
}

/// The outputs of a run of every optimizer step, then the variables.
type Results = Vec<(String, HostTensor)>;

fn on(backend: &dyn Backend, built: &Built) -> Results {
    on_with(backend, built, Precision::Float32)
}

fn plan(built: &Built, precision: Precision) -> Plan {
    let options = Options { precision };
    Plan::with(&built.graph, built.case.batch as u32, options).unwrap()
}

fn on_with(backend: &dyn Backend, built: &Built, precision: Precision) -> Results {
    let plan = plan(built, precision);
    let steps = if plan.trains() { STEPS } else { 1 };
    let names: Vec<String> = plan
        .outputs()
        .iter()
        .map(|port| port.name.clone())
        .collect();
    let inputs: HashSet<String> = plan.inputs().iter().map(|port| port.name.clone()).collect();
    let mut session = backend.open(vec![plan], u64::MAX).unwrap();
    session.set_schedule(Schedule::new(RATE, 0, ScheduleKind::Constant).unwrap());
    let feeds = built.case.feeds.iter().map(|(n, t)| (&**n, t));
    let feeds: Vec<_> = feeds.filter(|(name, _)| inputs.contains(*name)).collect();
    let mut results = Results::new();
    for _ in 0..steps {
        let run = session.run(0, built.case.batch, &feeds, &AtomicBool::new(false));
        run.unwrap_or_else(|e| panic!("{}: {e}", built.name));
        for name in &names {
            results.push((name.clone(), session.output(0, name).unwrap()));
        }
    }
    for info in session.parameters() {
        results.push((info.name.clone(), session.download(&info.name).unwrap()));
    }
    results
}

/// The definition of a case: its graph up to the loss, and what it starts from.
struct Definition<'a> {
    built: &'a Built,
    needed: Vec<bool>,
    feeds: HashMap<String, Array>,
    state: State,
}

impl<'a> Definition<'a> {
    fn new(built: &'a Built) -> Self {
        let graph = &built.graph;
        let mut needed = vec![false; graph.nodes.len()];
        let outputs = graph
            .outputs
            .iter()
            .take(built.outputs)
            .map(|(_, value)| *value);
        outputs
            .chain(built.loss)
            .for_each(|value| needed[value.index()] = true);
        let trains = graph
            .nodes
            .iter()
            .any(|node| matches!(node.op, Op::Optimize(_)));
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            needed[i] |= trains && node.op.is_update();
            if needed[i] {
                node.inputs
                    .iter()
                    .for_each(|input| needed[input.index()] = true);
            }
        }
        let feeds = built.case.feeds.iter();
        let mut definition = Self {
            built,
            needed,
            feeds: feeds
                .map(|(name, tensor)| (name.clone(), Array::of(tensor)))
                .collect(),
            state: State {
                step: 1,
                rate: RATE,
                ..State::default()
            },
        };
        // What variables start with.
        let plan = Plan::new(graph, built.case.batch as u32).unwrap();
        let mut session = CpuBackend::new(1)
            .unwrap()
            .open(vec![plan], u64::MAX)
            .unwrap();
        for info in session.parameters() {
            let initial = Array::of(&session.download(&info.name).unwrap());
            definition.state.variables.insert(info.name, initial);
        }
        definition
    }

    fn run(&mut self) -> Vec<Array> {
        let (graph, batch) = (&self.built.graph, self.built.case.batch);
        reference::run(graph, &self.needed, batch, &self.feeds, &mut self.state)
    }

    /// What a backend is to give.
    fn results(mut self) -> Vec<(String, Array)> {
        let graph = &self.built.graph;
        let trains = Plan::new(graph, 1).unwrap().trains();
        let mut results = Vec::new();
        for _ in 0..if trains { STEPS } else { 1 } {
            let values = self.run();
            for (name, value) in graph.outputs.iter().take(self.built.outputs) {
                results.push((name.clone(), values[value.index()].clone()));
            }
            self.state.step += 1;
        }
        results.extend(self.state.variables);
        results
    }

    /// The loss where one element of an input or a parameter is moved.
    fn loss(&mut self, name: &str, element: usize, by: f64) -> f64 {
        let state = self.state.clone();
        let array = match self.feeds.get_mut(name) {
            Some(array) => array,
            None => self.state.variables.get_mut(name).unwrap(),
        };
        let old = array.data[element];
        array.data[element] = old + by;
        let values = self.run();
        if let Some(array) = self.feeds.get_mut(name) {
            array.data[element] = old;
        }
        self.state = state;
        values[self.built.loss.unwrap().index()].data[0]
    }
}

/// ‖got − expected‖ / ‖expected‖, with infinities equal to themselves; numbers below 0.01 count as
/// 0.01, as some are what is left of larger ones.
fn error(got: &Array, expected: &Array) -> f64 {
    let least = 0.01 * (expected.data.len() as f64).sqrt();
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let pairs = got.data.iter().zip(&expected.data);
    let difference = norm(&mut pairs.map(|(a, b)| if a == b { 0.0 } else { a - b }));
    difference / norm(&mut expected.data.iter().copied()).max(least)
}

/// Checks results and gradients of a backend against the definition.
fn check(backend: &dyn Backend, built: &Built) -> Result<(), String> {
    let name = built.name;
    let got = on(backend, built);
    let find = |name: &str, n: usize| {
        let all = got.iter().filter(|(own, _)| own == name);
        all.map(|(_, tensor)| tensor).nth(n).unwrap()
    };
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (output, expected) in Definition::new(built).results() {
        let n = seen.entry(output.clone()).or_default();
        let tensor = find(&output, *n);
        *n += 1;
        let array = Array::of(tensor);
        if array.shape != expected.shape {
            return Err(format!(
                "{name} {output}: {:?} not {:?}",
                array.shape, expected.shape
            ));
        }
        let exact = tensor.dtype() != DType::F32;
        let error = error(&array, &expected);
        // Not `error > …`: NaN must fail.
        let within = error <= if exact { 0.0 } else { 1e-5 };
        if !within {
            return Err(format!(
                "{name} {output}: error {error:.2e}\n{array:?}\n{expected:?}"
            ));
        }
    }
    if built.loss.is_none() {
        return Ok(());
    }
    let mut definition = Definition::new(built);
    for (input, _) in &built.case.differentiable {
        let gradient = Array::of(find(&format!("grad.{input}"), 0));
        let largest = gradient.data.iter().fold(0f64, |m, x| m.max(x.abs()));
        let count = gradient.data.len();
        for element in (0..count).step_by(count.div_ceil(PROBES)) {
            let got = gradient.data[element];
            let mut slope = |h: f64| {
                let [before, after] = [-h, h].map(|by| definition.loss(input, element, by));
                (after - before) / (2.0 * h)
            };
            let close =
                |slope: f64| (got - slope).abs() <= 3e-5 * largest.max(slope.abs()).max(1.0);
            // Two operands of a maximum may be nearer than the first step.
            let first = slope(1e-6);
            if !close(first) && !close(slope(1e-8)) {
                return Err(format!(
                    "{name}: gradient of {input} at {element} is {got}, not {first}"
                ));
            }
        }
    }
    Ok(())
}

#[test]
fn every_operator_of_the_contract_has_a_row_and_a_text() {
    let rows: Vec<&str> = TABLE.iter().map(|operator| operator.name).collect();
    assert_eq!(rows, NAMES);
    let contract = include_str!("../../../../wit/graph.wit");
    let lines: Vec<&str> = contract.lines().map(str::trim).collect();
    for name in NAMES {
        let start = format!("{name}: func(");
        let at = lines.iter().position(|line| line.starts_with(&start));
        let at = at.unwrap_or_else(|| panic!("the contract has no {name}"));
        assert!(lines[at - 1].starts_with("///"), "{name} has no text");
    }
    // What is not an operator.
    let others = [
        "input",
        "parameter",
        "buffer",
        "constant",
        "gradients",
        "begin-recompute",
        "end-recompute",
        "output",
        "shape",
        "element",
        "ops",
    ];
    let functions = lines.iter().filter_map(|line| line.split_once(": func("));
    for (name, _) in functions {
        assert!(NAMES.contains(&name) || others.contains(&name), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn operators_agree_with_their_definitions_and_gradients_with_finite_differences(seed: u64) {
        let backend = CpuBackend::new(1).unwrap();
        let wrong = |operator| check(&backend, &Built::new(operator, seed, false)).err();
        let wrong: Vec<String> = TABLE.iter().filter_map(wrong).collect();
        prop_assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// The graphs that are run on a GPU, which is simulated: few.
fn on_gpus() -> impl Iterator<Item = Built> {
    let rows = |seed| TABLE.iter().map(move |row| Built::new(row, seed, false));
    (0..6).flat_map(rows)
}

/// The plans of these graphs, and those of programs.
pub(crate) fn plans_on_gpus() -> impl Iterator<Item = Plan> {
    let stored = [Precision::Float32, Precision::Bfloat16];
    let plans = on_gpus().flat_map(move |built| stored.map(|precision| plan(&built, precision)));
    plans.chain(programs::plans())
}

#[test]
fn operators_stored_as_bfloat16_agree_on_the_cpu_and_cuda() {
    let test = "conformance::operators_stored_as_bfloat16_agree_on_the_cpu_and_cuda";
    emulator::emulated(test, &["forward"], ONE_GPU, || {
        let (gpu, cpu) = (gpu(), CpuBackend::new(1).unwrap());
        for built in on_gpus() {
            let exact = on(&cpu, &built);
            let results = [&gpu as &dyn Backend, &cpu]
                .map(|backend| on_with(backend, &built, Precision::Bfloat16));
            for ((gpu, cpu), exact) in results[0].iter().zip(&results[1]).zip(&exact) {
                assert_eq!(exact.1.dtype(), gpu.1.dtype(), "{} {}", built.name, exact.0);
                let error = error(&Array::of(&gpu.1), &Array::of(&cpu.1));
                assert!(error < 2e-2, "{} {}: {error:e}", built.name, exact.0);
            }
        }
    });
}

#[test]
fn operators_agree_with_their_definitions_on_cuda() {
    let test = "conformance::operators_agree_with_their_definitions_on_cuda";
    emulator::emulated(test, &["forward", "7"], ONE_GPU, || {
        let backend = gpu();
        on_gpus().for_each(|built| check(&backend, &built).unwrap());
    });
}

/// What a graph of two int64 inputs gives, or its error.
fn of_integers(
    backend: &dyn Backend,
    a: &[i64],
    b: &[i64],
    f: impl Fn(&mut Builder, Value, Value) -> Result<Value, Error>,
) -> Result<HostTensor, Error> {
    let mut builder = Builder::new();
    let dims = |x: &[i64]| [Dim::Fixed(x.len() as u64)];
    let x = builder.input("a", DType::I64, &dims(a))?;
    let y = builder.input("b", DType::I64, &dims(b))?;
    let z = f(&mut builder, x, y)?;
    builder.output("z", z)?;
    let plan = Plan::new(&builder.graph(), 1)?;
    let mut session = backend.open(vec![plan], u64::MAX)?;
    let (a, b) = (
        HostTensor::from_i64(&[a.len()], a)?,
        HostTensor::from_i64(&[b.len()], b)?,
    );
    session.run(0, 1, &[("a", &a), ("b", &b)], &AtomicBool::new(false))?;
    session.output(0, "z")
}

/// Numbers at the ends of their range, and indices outside.
fn check_limits(backend: &dyn Backend) {
    let (low, high) = (i64::MIN, i64::MAX);
    let numbers = |f: fn(&mut Builder, Value, Value) -> Result<Value, Error>| {
        let z = of_integers(backend, &[high, low, 7, low], &[1, -1, 0, 3], f);
        z.unwrap().to_i64().unwrap()
    };
    assert_eq!(numbers(Builder::add), [low, high, 7, low + 3]);
    assert_eq!(numbers(Builder::sub), [high - 1, low + 1, 7, high - 2]);
    assert_eq!(numbers(Builder::mul), [high, low, 0, low]);
    assert_eq!(numbers(Builder::div), [high, low, 0, low / 3]);
    for index in [-1, 3, low, high] {
        type Access = fn(&mut Builder, Value, Value) -> Result<Value, Error>;
        let accesses: [Access; 4] = [
            |b, x, by| b.gather(x, by, 0),
            |b, x, by| b.take(x, by, 0),
            |b, x, by| {
                let x = b.cast(x, DType::F32)?;
                b.scatter_add(x, by, x, 0)
            },
            |b, x, by| {
                let x = b.cast(x, DType::F32)?;
                let y = b.take(x, by, 0)?;
                let square = b.mul(y, y)?;
                let loss = b.sum(square, &[], false)?;
                Ok(b.gradients(loss, &[x])?[0])
            },
        ];
        for access in accesses {
            let refused = of_integers(backend, &[4, 5, 6], &[0, index, 2], access).unwrap_err();
            assert_eq!(refused.code(), "data.index", "{refused}");
            assert!(
                refused.to_string().contains(&index.to_string()),
                "{refused}"
            );
        }
    }
}

#[test]
fn integers_wrap_around_and_indices_outside_are_told() {
    check_limits(&CpuBackend::new(1).unwrap());
}

#[test]
fn integers_wrap_around_and_indices_outside_are_told_on_cuda() {
    let test = "conformance::integers_wrap_around_and_indices_outside_are_told_on_cuda";
    emulator::emulated(test, &["forward"], ONE_GPU, || check_limits(&gpu()));
}

#[test]
fn dropout_keeps_the_mean_and_changes_from_step_to_step() {
    let mut b = Builder::new();
    let p = b.parameter("p", &[100, 200], "ones", 0).unwrap();
    let y = b.dropout(p, 0.3, 5).unwrap();
    let rows = b.drop_path(p, 0.5, 5).unwrap();
    let loss = b.sum(y, &[], false).unwrap();
    let gradients = b.gradients(loss, &[p]).unwrap();
    b.sgd(&[p], &gradients, 0.0, false, 0.0).unwrap();
    for (name, value) in [("y", y), ("rows", rows), ("gradient", gradients[0])] {
        b.output(name, value).unwrap();
    }
    let plan = Plan::new(&b.graph(), 1).unwrap();
    let mut session = CpuBackend::new(2)
        .unwrap()
        .open(vec![plan], u64::MAX)
        .unwrap();
    session.set_schedule(Schedule::new(0.0, 0, ScheduleKind::Constant).unwrap());
    let mut step = || {
        session.run(0, 1, &[], &AtomicBool::new(false)).unwrap();
        ["y", "rows", "gradient"].map(|name| session.output(0, name).unwrap().to_f32().unwrap())
    };
    let ([y, rows, gradient], [next, ..]) = (step(), step());
    assert_eq!(y, gradient);
    assert_ne!(y, next);
    let kept = y.iter().filter(|&&v| v > 0.0).count() as f64 / 20_000.0;
    assert!((kept - 0.7).abs() < 0.02, "{kept}");
    assert!(y.iter().all(|&v| v == 0.0 || (v - 1.0 / 0.7).abs() < 1e-6));
    let dropped = rows
        .chunks(200)
        .filter(|row| row.iter().all(|&v| v == 0.0))
        .count();
    assert!((30..70).contains(&dropped), "{dropped}");
    assert!(rows.chunks(200).all(|row| row.iter().all(|&v| v == row[0])));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let backends = [1, 2, 3, 5, 8].map(|threads| CpuBackend::new(threads).unwrap());
    let cases = [(1, true), (2, true), (3, false)];
    for (operator, (seed, large)) in TABLE.iter().flat_map(|row| cases.map(|case| (row, case))) {
        let built = Built::new(operator, seed, large);
        let results: HashSet<Vec<Vec<u8>>> = backends
            .iter()
            .map(|backend| {
                let results = on(backend, &built);
                results
                    .iter()
                    .map(|(_, tensor)| tensor.bytes().to_vec())
                    .collect()
            })
            .collect();
        assert_eq!(results.len(), 1, "{}, seed {seed}", operator.name);
    }
}
