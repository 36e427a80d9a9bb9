use super::*;
use crate::builder::Builder;
use crate::cpu::CpuBackend;
use crate::dtype::DType;
use crate::graph::{Graph, Role, Value};
use crate::plan::{Plan, peak_bytes_of};
use crate::schedule::ScheduleKind;
use crate::shape::Dim;

const FEATURES: usize = 5;
const CLASSES: usize = 4;

/// Two layers with what may lie between them: their loss, logits and parameters.
fn network(b: &mut Builder, normed: bool) -> (Value, Value, Vec<Value>) {
    let x = [Dim::Batch(1), Dim::Fixed(FEATURES as u64)];
    let x = b.input("x", DType::F32, &x).unwrap();
    let y = b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
    let first = b
        .parameter("first", &[8, FEATURES as u64], "kaiming-uniform", 1)
        .unwrap();
    let second = b
        .parameter("second", &[CLASSES as u64, 8], "kaiming-uniform", 2)
        .unwrap();
    let mut parameters = vec![first, second];
    let mut hidden = b.linear(x, first, None).unwrap();
    if normed {
        let [scale, bias] = [("scale", "ones"), ("bias", "zeros")]
            .map(|(name, initializer)| b.parameter(name, &[8], initializer, 0).unwrap());
        let [mean, variance] = [("mean", "zeros"), ("variance", "ones")]
            .map(|(name, initializer)| b.buffer(name, &[8], initializer).unwrap());
        hidden = b
            .batch_norm_train(hidden, scale, bias, mean, variance, 0.1, 1e-5)
            .unwrap();
        parameters.extend([scale, bias]);
    }
    let hidden = b.tanh(hidden).unwrap();
    let logits = b.linear(hidden, second, None).unwrap();
    let loss = b.cross_entropy(logits, y, 0.0).unwrap();
    (loss, logits, parameters)
}

/// Trains with clipped gradients, which are made of the averages.
fn training(normed: bool) -> Graph {
    let mut b = Builder::new();
    let (loss, logits, parameters) = network(&mut b, normed);
    let gradients = b.gradients(loss, &parameters).unwrap();
    let clipped = b.clip_gradients(&gradients, 0.1).unwrap();
    b.adamw(&parameters, &clipped, (0.9, 0.999), 1e-8, 0.01)
        .unwrap();
    b.output("loss", loss).unwrap();
    b.output("logits", logits).unwrap();
    b.output("clipped", clipped[0]).unwrap();
    b.graph()
}

fn evaluation() -> Graph {
    let mut b = Builder::new();
    let (loss, logits, _) = network(&mut b, false);
    let turned = b.permute(logits, &[1, 0]).unwrap();
    b.output("loss", loss).unwrap();
    b.output("turned", turned).unwrap();
    b.graph()
}

fn shares(graphs: &[Graph], batch: u32, replicas: u32) -> Vec<Share> {
    let share =
        |graph: &Graph| Share::new(&Plan::new(graph, batch).unwrap(), graph, replicas).unwrap();
    graphs.iter().map(share).collect()
}

fn backends(replicas: usize) -> Vec<Arc<dyn Backend>> {
    (0..replicas)
        .map(|_| Arc::new(CpuBackend::new(1).unwrap()) as Arc<dyn Backend>)
        .collect()
}

fn replicas(graphs: &[Graph], batch: u32, count: usize) -> Replicated {
    replicated(
        &backends(count),
        &shares(graphs, batch, count as u32),
        u64::MAX,
    )
    .unwrap()
}

fn alone(graphs: &[Graph], batch: u32) -> Box<dyn Session> {
    let plans = graphs
        .iter()
        .map(|graph| Plan::new(graph, batch).unwrap())
        .collect();
    CpuBackend::new(1).unwrap().open(plans, u64::MAX).unwrap()
}

fn batch(size: usize, number: usize) -> (HostTensor, HostTensor) {
    let value = |i: usize| ((i * 7 + number * 13) as f32 * 0.37).sin();
    let x: Vec<f32> = (0..size * FEATURES).map(value).collect();
    let y: Vec<i64> = (0..size).map(|i| ((i + number) % CLASSES) as i64).collect();
    (
        HostTensor::from_f32(&[size, FEATURES], &x).unwrap(),
        HostTensor::from_i64(&[size], &y).unwrap(),
    )
}

fn run(session: &mut dyn Session, plan: usize, size: usize, number: usize) -> Result<(), Error> {
    let (x, y) = batch(size, number);
    session.run(plan, size, &[("x", &x), ("y", &y)], &AtomicBool::new(false))
}

/// Batches of which the last are not even, and smaller than there are replicas.
const SIZES: [usize; 6] = [16, 16, 16, 11, 5, 1];

/// What a training gives: losses, logits, an averaged gradient, a mean, and all variables.
fn train(session: &mut dyn Session) -> Vec<f32> {
    session.set_schedule(Schedule::new(0.05, 1, ScheduleKind::Constant).unwrap());
    let mut given = Vec::new();
    for (number, size) in SIZES.into_iter().enumerate() {
        run(session, 0, size, number).unwrap();
        for name in ["loss", "logits", "clipped"] {
            given.extend(session.output(0, name).unwrap().to_f32().unwrap());
        }
    }
    given.push(session.mean(0, "loss").unwrap() as f32);
    assert!(session.mean(0, "loss").unwrap().is_nan());
    for info in session.parameters() {
        given.extend(session.download(&info.name).unwrap().to_f32().unwrap());
    }
    given
}

fn floats(tensor: Result<HostTensor, Error>) -> Vec<f32> {
    tensor.unwrap().to_f32().unwrap()
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn any_number_of_replicas_trains_as_one_device_does() {
    let graphs = [training(false)];
    let one = train(&mut *alone(&graphs, 16));
    for count in [1, 2, 3, 8] {
        let mut session = replicas(&graphs, 16, count);
        let given = train(&mut session);
        let distance = farthest(&one, &given);
        println!("{count} replicas: {distance:e}");
        assert!(distance < 2e-6, "{count} replicas: {distance}");
        let again = train(&mut replicas(&graphs, 16, count));
        assert!(
            given == again,
            "{count} replicas give other bits when they run again"
        );
        assert_alike(&mut session);
        assert_eq!((session.steps(), session.device()), (6, "cpu"));
    }
}

/// Asserts that all replicas have the same bits in all variables.
fn assert_alike(session: &mut Replicated) {
    for info in session.parameters() {
        let values = session.each(|_, own| own.download(&info.name)).unwrap();
        assert!(
            values.iter().all(|value| *value == values[0]),
            "{}",
            info.name
        );
    }
}

#[test]
fn running_statistics_follow_the_average_of_the_replicas() {
    let graphs = [training(true)];
    let (mut one, mut two) = (alone(&graphs, 8), replicas(&graphs, 8, 2));
    for number in 0..4 {
        run(&mut *one, 0, 8, number).unwrap();
        run(&mut two, 0, 8, number).unwrap();
    }
    assert_alike(&mut two);
    let buffers: Vec<String> = two
        .parameters()
        .into_iter()
        .filter(|info| info.role == Role::Buffer)
        .map(|info| info.name)
        .collect();
    assert_eq!(buffers, ["mean", "variance"]);
    // After one step of the same weights the means are those of the whole batch.
    let (mut one, mut two) = (alone(&graphs, 8), replicas(&graphs, 8, 2));
    run(&mut *one, 0, 8, 0).unwrap();
    run(&mut two, 0, 8, 0).unwrap();
    let (whole, parted) = (floats(one.download("mean")), floats(two.download("mean")));
    assert!(farthest(&whole, &parted) < 1e-7, "{whole:?} {parted:?}");
}

#[test]
fn evaluation_is_parted_and_gathered_along_the_batch() {
    let graphs = [evaluation()];
    let (mut one, mut three) = (alone(&graphs, 8), replicas(&graphs, 8, 3));
    for (number, size) in [8, 7].into_iter().enumerate() {
        run(&mut *one, 0, size, number).unwrap();
        run(&mut three, 0, size, number).unwrap();
    }
    let (whole, parted) = (
        one.output(0, "turned").unwrap(),
        three.output(0, "turned").unwrap(),
    );
    assert_eq!(whole.shape(), [CLASSES, 7]);
    assert_eq!(whole, parted);
    let (whole, parted) = (one.mean(0, "loss").unwrap(), three.mean(0, "loss").unwrap());
    assert!((whole - parted).abs() < 1e-6, "{whole} {parted}");
}

#[test]
fn what_cannot_be_gathered_is_computed_whole_by_the_first_and_refused_where_it_trains() {
    let built = |train: bool| {
        let mut b = Builder::new();
        let (loss, logits, parameters) = network(&mut b, false);
        let sums = b.sum(logits, &[0], false).unwrap();
        b.output("sums", sums).unwrap();
        b.output("loss", loss).unwrap();
        if train {
            let gradients = b.gradients(loss, &parameters).unwrap();
            b.sgd(&parameters, &gradients, 0.0, false, 0.0).unwrap();
            let whole = b.cast(loss, DType::I64).unwrap();
            b.output("whole", whole).unwrap();
        }
        b.graph()
    };
    let graphs = [built(false)];
    let (mut one, mut two) = (alone(&graphs, 8), replicas(&graphs, 8, 2));
    run(&mut *one, 0, 8, 0).unwrap();
    run(&mut two, 0, 8, 0).unwrap();
    assert_eq!(
        one.output(0, "sums").unwrap(),
        two.output(0, "sums").unwrap()
    );
    let graph = built(true);
    let refused = Share::new(&Plan::new(&graph, 8).unwrap(), &graph, 2).unwrap_err();
    assert_eq!(refused.code(), "graph.replicas");
    assert!(refused.to_string().contains("`whole`"), "{refused}");
}

#[test]
fn random_numbers_differ_among_replicas_and_not_from_run_to_run() {
    let mut b = Builder::new();
    let x = b
        .input("x", DType::F32, &[Dim::Batch(1), Dim::Fixed(64)])
        .unwrap();
    let dropped = b.dropout(x, 0.5, 7).unwrap();
    b.output("dropped", dropped).unwrap();
    let graphs = [b.graph()];
    let given = || {
        let mut session = replicas(&graphs, 2, 2);
        let x = HostTensor::from_f32(&[2, 64], &[1.0; 128]).unwrap();
        session
            .run(0, 2, &[("x", &x)], &AtomicBool::new(false))
            .unwrap();
        session.output(0, "dropped").unwrap().to_f32().unwrap()
    };
    let values = given();
    assert_ne!(values[..64], values[64..]);
    assert_eq!(values, given());
}

#[test]
fn each_device_takes_what_was_planned_and_no_more_samples_than_it_has() {
    let graphs = [training(true), evaluation()];
    let shares = shares(&graphs, 16, 3);
    let planned = peak_bytes_of(&shares.iter().flat_map(Share::plans).collect::<Vec<_>>());
    assert_eq!(shares[0].part.max_batch(), 6);
    let session = replicated(&backends(3), &shares, planned).unwrap();
    assert_eq!(session.used_bytes(), planned);
    let Err(error) = open(&backends(3), &shares, planned - 1) else {
        panic!("it does not fit");
    };
    assert_eq!(
        (error.code(), error.device()),
        ("memory.exceeds-lease", Some("cpu"))
    );
    let mut session = replicas(&graphs, 16, 3);
    let error = run(&mut session, 0, 17, 0).unwrap_err();
    assert!(error.to_string().contains("takes 1 to 16"), "{error}");
}

#[test]
fn a_training_goes_on_with_another_number_of_replicas() {
    let graphs = [training(false)];
    let mut whole = replicas(&graphs, 16, 2);
    for number in 0..4 {
        run(&mut whole, 0, 16, number).unwrap();
    }
    let mut first = replicas(&graphs, 16, 2);
    for number in 0..2 {
        run(&mut first, 0, 16, number).unwrap();
    }
    let mut resumed = replicas(&graphs, 16, 3);
    for info in first.parameters() {
        let value = first.download(&info.name).unwrap();
        resumed.upload(&info.name, &value).unwrap();
    }
    resumed.set_steps(first.steps());
    for number in 2..4 {
        run(&mut resumed, 0, 16, number).unwrap();
    }
    assert_alike(&mut resumed);
    let [whole, resumed] = [&mut whole, &mut resumed]
        .map(|session| session.download("first").unwrap().to_f32().unwrap());
    assert!(farthest(&whole, &resumed) < 1e-6);
}

#[test]
fn a_task_that_is_cancelled_makes_no_step() {
    let mut session = replicas(&[training(false)], 16, 2);
    let before = session.download("first").unwrap();
    let (x, y) = batch(16, 0);
    let cancelled = session.run(0, 16, &[("x", &x), ("y", &y)], &AtomicBool::new(true));
    assert_eq!(cancelled.unwrap_err().code(), "task.cancelled");
    assert_eq!(
        (session.steps(), session.download("first").unwrap()),
        (0, before)
    );
    run(&mut session, 0, 16, 0).unwrap();
    assert_alike(&mut session);
}
