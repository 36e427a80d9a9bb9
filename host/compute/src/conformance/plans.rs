//! Plans of random graphs: what lives together lies apart, and what is dead is not read.

use super::*;
use crate::cpu::session::CpuSession;
use crate::plan::Place;

/// A training graph of random operators on `[batch, 6]`, which uses values again long after they
/// were made.
fn random(seed: u64) -> Case {
    let mut case = Case::new(seed, false);
    build(&mut case).unwrap();
    case
}

fn build(case: &mut Case) -> Result<(), Error> {
    let mut values = vec![case.batched(&[6])?, case.batched(&[6])?];
    let mut parameters = Vec::new();
    for i in 0..case.number(4, 24) {
        let pick = |case: &mut Case| values[case.number(0, values.len() - 1)];
        let (x, y) = (pick(case), pick(case));
        let parameter = |case: &mut Case, shape: &[u64]| {
            let name = format!("p{i}.{}", shape.len());
            case.b
                .parameter(&name, shape, "uniform:-0.5:0.5", seed_of(i))
        };
        let value = match case.number(0, 9) {
            0 => case.b.gelu(x, false)?,
            1 => case.b.add(x, y)?,
            2 => case.b.mul(x, y)?,
            3 => {
                let (weight, bias) = (parameter(case, &[6, 6])?, parameter(case, &[6])?);
                parameters.extend([weight, bias]);
                case.b.linear(x, weight, Some(bias))?
            }
            4 => {
                let scale = parameter(case, &[6])?;
                parameters.push(scale);
                let bias = case.b.parameter(&format!("b{i}"), &[6], "zeros", 0)?;
                case.b.layer_norm(x, scale, bias, 1e-5)?
            }
            5 => case.b.softmax(x, 1)?,
            6 => {
                let wide = case.b.concat(&[x, y], 1)?;
                case.b
                    .slice(wide, &[0, 3], &[crate::builder::END, 9], &[1, 1])?
            }
            7 => {
                let (rows, columns) = (Dim::Fixed(2), Dim::Fixed(3));
                let folded = case
                    .b
                    .reshape_to(x, &Shape(vec![Dim::Batch(1), rows, columns]))?;
                let turned = case.b.permute(folded, &[0, 2, 1])?;
                case.b
                    .reshape_to(turned, &Shape(vec![Dim::Batch(1), Dim::Fixed(6)]))?
            }
            8 => case.b.dropout(x, 0.3, seed_of(i))?,
            _ => case.b.tanh(x)?,
        };
        if case.number(0, 5) == 0 {
            case.b.output(&format!("kept.{i}"), value)?;
        }
        values.push(value);
    }
    let mut loss = case.b.scalar(0.0)?;
    for &value in values.iter().rev().take(3) {
        let bounded = case.b.tanh(value)?;
        let part = case.b.mean(bounded, &[], false)?;
        loss = case.b.add(loss, part)?;
    }
    case.b.output("loss", loss)?;
    let gradients = case.b.gradients(loss, &parameters)?;
    case.b
        .adamw(&parameters, &gradients, (0.9, 0.999), 1e-8, 0.01)
}

fn seed_of(i: usize) -> u64 {
    i as u64 + 1
}

/// Every output of three steps and every variable after them.
fn run(plan: &Plan, case: &Case, poison: bool) -> Vec<Vec<u8>> {
    let mut session = CpuSession::new(vec![plan.clone()], None).unwrap();
    session.poison = poison;
    let takes = |name: &str| plan.inputs().iter().any(|port| port.name == name);
    let feeds = case.feeds.iter().filter(|(name, _)| takes(name));
    let feeds: Vec<_> = feeds.map(|(name, tensor)| (&**name, tensor)).collect();
    let session: &mut dyn crate::backend::Session = &mut session;
    let mut results = Vec::new();
    for _ in 0..3 {
        let never = AtomicBool::new(false);
        session.run(0, case.batch, &feeds, &never).unwrap();
        let ports = plan.outputs().iter();
        results.extend(ports.map(|p| session.output(0, &p.name).unwrap().bytes().to_vec()));
    }
    let infos = session.parameters().into_iter();
    results.extend(infos.map(|info| session.download(&info.name).unwrap().bytes().to_vec()));
    results
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_two_values_that_live_together_share_memory(seed: u64) {
        let case = random(seed);
        let plan = Plan::new(&case.b.graph(), case.batch as u32 + 2).unwrap();
        let buffers = &plan.buffers;
        let placed = buffers.iter().filter_map(|(value, life)| match plan.places[value.index()] {
            Place::Arena(offset) => Some((offset, life)),
            _ => None,
        });
        let placed: Vec<_> = placed.collect();
        for (i, (a, life)) in placed.iter().enumerate() {
            prop_assert!(a + life.bytes <= plan.arena_bytes);
            for (b, other) in &placed[i + 1..] {
                let together = life.first <= other.last && other.first <= life.last;
                let apart = a + life.bytes <= *b || b + other.bytes <= *a;
                prop_assert!(apart || !together, "{life:?} at {a}, {other:?} at {b}");
            }
        }
    }

    #[test]
    fn filling_what_is_dead_changes_nothing(seed: u64) {
        let case = random(seed);
        let stored = [Precision::Float32, Precision::Bfloat16];
        let options = Options { precision: stored[(seed % 2) as usize] };
        let plan = Plan::with(&case.b.graph(), case.batch as u32 + 2, options).unwrap();
        prop_assert_eq!(run(&plan, &case, false), run(&plan, &case, true));
    }
}

#[test]
fn filling_what_is_needed_changes_results() {
    let mut b = Builder::new();
    let x = b.input("x", DType::F32, &[Dim::Fixed(4)]).unwrap();
    let y = b.exp(x).unwrap();
    let z = b.tanh(y).unwrap();
    let sum = b.add(y, z).unwrap();
    b.output("sum", sum).unwrap();
    let mut plan = Plan::scheduled(b.graph(), 1, Options::default()).unwrap();
    // As if nothing were read after it was made.
    plan.buffers
        .iter_mut()
        .for_each(|(_, life)| life.last = life.first);
    let mut session = CpuSession::new(vec![plan], None).unwrap();
    session.poison = true;
    let session: &mut dyn crate::backend::Session = &mut session;
    let x = HostTensor::from_f32(&[4], &[0.1, 0.2, 0.3, 0.4]).unwrap();
    session
        .run(0, 1, &[("x", &x)], &AtomicBool::new(false))
        .unwrap();
    let sum = session.output(0, "sum").unwrap().to_f32().unwrap();
    assert!(sum.iter().all(|v| v.is_nan()), "{sum:?}");
}

/// A model of full size under construction.
#[derive(Default)]
struct Large {
    b: Builder,
    parameters: Vec<Value>,
}

impl Large {
    fn parameter(&mut self, shape: &[u64]) -> Value {
        let name = format!("p{}", self.parameters.len());
        let value = self.b.parameter(&name, shape, "zeros", 0).unwrap();
        self.parameters.push(value);
        value
    }

    /// Convolution and batch normalisation.
    fn conv(&mut self, x: Value, shape: [u64; 4], stride: u32) -> Value {
        let padding = (shape[2] / 2) as u32;
        let attributes = crate::builder::Conv2d {
            stride: (stride, stride),
            padding: (padding, padding),
            ..Default::default()
        };
        let weight = self.parameter(&shape);
        let y = self.b.conv2d(x, weight, None, attributes).unwrap();
        let (scale, bias) = (self.parameter(&shape[..1]), self.parameter(&shape[..1]));
        let buffer = |b: &mut Builder, name: String| b.buffer(&name, &shape[..1], "zeros").unwrap();
        let mean = buffer(&mut self.b, format!("m{}", self.parameters.len()));
        let variance = buffer(&mut self.b, format!("v{}", self.parameters.len()));
        self.b
            .batch_norm_train(y, scale, bias, mean, variance, 0.1, 1e-5)
            .unwrap()
    }

    fn resnet50(&mut self) -> Value {
        let x = input(&mut self.b, &[3, 224, 224]);
        let y = self.conv(x, [64, 3, 7, 7], 2);
        let y = self.b.relu(y).unwrap();
        let mut x = self.b.max_pool2d(y, (3, 3), (2, 2), (1, 1)).unwrap();
        let mut channels = 64;
        for (stage, depth) in [3, 4, 6, 3].into_iter().enumerate() {
            let width = 64 << stage;
            for number in 0..depth {
                let stride = if stage > 0 && number == 0 { 2 } else { 1 };
                let y = self.conv(x, [width, channels, 1, 1], 1);
                let y = self.b.relu(y).unwrap();
                let y = self.conv(y, [width, width, 3, 3], stride);
                let y = self.b.relu(y).unwrap();
                let y = self.conv(y, [4 * width, width, 1, 1], 1);
                if number == 0 {
                    x = self.conv(x, [4 * width, channels, 1, 1], stride);
                }
                channels = 4 * width;
                let sum = self.b.add(y, x).unwrap();
                x = self.b.relu(sum).unwrap();
            }
        }
        let pooled = self.b.mean(x, &[2, 3], false).unwrap();
        self.linear(pooled, channels, 37)
    }

    fn linear(&mut self, x: Value, from: u64, to: u64) -> Value {
        let (weight, bias) = (self.parameter(&[to, from]), self.parameter(&[to]));
        self.b.linear(x, weight, Some(bias)).unwrap()
    }

    fn norm(&mut self, x: Value) -> Value {
        let (scale, bias) = (self.parameter(&[768]), self.parameter(&[768]));
        self.b.layer_norm(x, scale, bias, 1e-6).unwrap()
    }

    fn vit_b(&mut self, recompute: bool) -> Value {
        let mut x = input(&mut self.b, &[197, 768]);
        let target = |sizes: &[u64]| {
            let rest = sizes.iter().map(|&size| Dim::Fixed(size));
            let dims = std::iter::once(Dim::Batch(1)).chain(rest);
            dims.map(crate::builder::Target::Size).collect::<Vec<_>>()
        };
        for _ in 0..12 {
            if recompute {
                self.b.begin_recompute().unwrap();
            }
            let y = self.norm(x);
            let [q, k, v] = [0, 1, 2].map(|_| {
                let y = self.linear(y, 768, 768);
                let y = self.b.reshape(y, &target(&[197, 12, 64])).unwrap();
                self.b.permute(y, &[0, 2, 1, 3]).unwrap()
            });
            let y = self.b.attention((q, k, v), None, false, None).unwrap();
            let y = self.b.permute(y, &[0, 2, 1, 3]).unwrap();
            let y = self.b.reshape(y, &target(&[197, 768])).unwrap();
            let y = self.linear(y, 768, 768);
            x = self.b.add(x, y).unwrap();
            let y = self.norm(x);
            let y = self.linear(y, 768, 3072);
            let y = self.b.gelu(y, false).unwrap();
            let y = self.linear(y, 3072, 768);
            x = self.b.add(x, y).unwrap();
            if recompute {
                self.b.end_recompute().unwrap();
            }
        }
        let pooled = self.b.mean(x, &[1], false).unwrap();
        self.linear(pooled, 768, 37)
    }

    fn train(mut self, logits: Value, batch: u32, precision: Precision) -> Plan {
        let labels = self.b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
        let loss = self.b.cross_entropy(logits, labels, 0.0).unwrap();
        let gradients = self.b.gradients(loss, &self.parameters).unwrap();
        self.b
            .adamw(&self.parameters, &gradients, (0.9, 0.999), 1e-8, 0.01)
            .unwrap();
        self.b.output("loss", loss).unwrap();
        Plan::with(&self.b.graph(), batch, Options { precision }).unwrap()
    }
}

fn input(b: &mut Builder, sizes: &[u64]) -> Value {
    let rest = sizes.iter().map(|&size| Dim::Fixed(size));
    let dims: Vec<Dim> = std::iter::once(Dim::Batch(1)).chain(rest).collect();
    b.input("x", DType::F32, &dims).unwrap()
}

/// The most bytes that live at one time: no arena is smaller.
fn least(plan: &Plan) -> u64 {
    let buffers = &plan.buffers;
    let times = 0..=plan.all_steps().count() + 2;
    let live = |time: usize| {
        let alive = buffers
            .iter()
            .filter(|(_, life)| (life.first..=life.last).contains(&time));
        alive.map(|(_, life)| life.bytes).sum()
    };
    times.map(live).max().unwrap_or(0)
}

#[test]
fn large_models_take_little_more_than_what_lives_at_once() {
    let resnet = |precision| {
        let mut model = Large::default();
        let logits = model.resnet50();
        model.train(logits, 16, precision)
    };
    let vit = |recompute, precision| {
        let mut model = Large::default();
        let logits = model.vit_b(recompute);
        model.train(logits, 8, precision)
    };
    let plans = [
        ("resnet50", resnet(Precision::Float32)),
        ("resnet50 in bfloat16", resnet(Precision::Bfloat16)),
        ("vit_b_16", vit(false, Precision::Float32)),
        ("vit_b_16 in bfloat16", vit(false, Precision::Bfloat16)),
        ("vit_b_16 recomputed", vit(true, Precision::Float32)),
    ];
    let arenas = plans.map(|(name, plan)| {
        let (arena, least) = (plan.arena_bytes(), least(&plan));
        let buffers = plan.buffers.iter().map(|(_, life)| *life);
        let first_fit = crate::passes::memory::by_time(&buffers.collect::<Vec<_>>()).1;
        let workspace = plan.workspace_bytes();
        println!(
            "{name}: arena {arena}, first fit {first_fit}, least {least}, workspace {workspace}"
        );
        assert!(
            arena as f64 <= 1.1 * least as f64,
            "{name}: {arena} of {least}"
        );
        arena
    });
    assert!(arenas[1] as f64 <= 0.65 * arenas[0] as f64, "{arenas:?}");
    assert!(arenas[3] as f64 <= 0.65 * arenas[2] as f64, "{arenas:?}");
    assert!(arenas[4] as f64 <= 0.45 * arenas[2] as f64, "{arenas:?}");
}
