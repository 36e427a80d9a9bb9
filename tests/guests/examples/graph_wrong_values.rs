//! Passes wrong values, shapes, dtypes and attributes to every class of method, expects each refusal
//! by its code, and then builds and runs a graph that is right with the same builder.
use guests::host::devices::Request;
use guests::host::graph::{Builder, ops};
use guests::host::model::{Plan, Session, reserve};
use guests::host::types::Dtype;
use guests::{Result, check, refused};

/// A number that no builder returns.
const NONE: u32 = u32::MAX;
/// The code for a tensor whose shape does not fit.
const SHAPE: &str = "graph.shape";
/// The code for an attribute out of range.
const ATTRIBUTE: &str = "graph.attribute";
/// The code for an element type that does not fit.
const DTYPE: &str = "graph.dtype";
/// The code for a number that is no value.
const VALUE: &str = "graph.value";

fn leaves(g: &Builder) -> Result<()> {
    let f = Dtype::Float32;
    refused(
        "input without a name",
        g.input("", f, &[0, 2]),
        "graph.name",
    )?;
    refused(
        "input of a taken name",
        g.input("x", f, &[0, 2]),
        "graph.name",
    )?;
    refused("batch not first", g.input("z", f, &[2, 0]), SHAPE)?;
    refused(
        "parameter of the batch's size",
        g.parameter("p", &[0, 2], "zeros", 0),
        SHAPE,
    )?;
    for initializer in [
        "",
        "magic",
        "constant:",
        "constant:x",
        "uniform:1",
        "uniform:2:1",
        "normal:0:-1",
        "uniform:a:b",
    ] {
        refused(
            initializer,
            g.parameter("p", &[2], initializer, 0),
            ATTRIBUTE,
        )?;
        refused(initializer, g.buffer("b", &[2], initializer), ATTRIBUTE)?;
    }
    refused(
        "constant too short",
        g.constant(f, &[2, 2], &[0; 15]),
        SHAPE,
    )?;
    let huge = [u32::MAX; 8];
    check(
        g.constant(f, &huge, &[]).is_err(),
        "a constant of 2^256 elements is refused",
    )?;
    check(
        g.parameter("huge", &huge, "zeros", 0).is_err(),
        "a parameter of 2^256 elements is refused",
    )
}

fn element_wise(g: &Builder, x: u32, y: u32) -> Result<()> {
    let odd = g.constant(Dtype::Float32, &[3], &[0; 12])?;
    refused("add of no value", g.add(x, NONE), VALUE)?;
    refused("add of shapes that do not broadcast", g.add(x, odd), SHAPE)?;
    refused("mul of float32 and int64", g.mul(x, y), DTYPE)?;
    refused("equal of float32 and int64", g.equal(x, y), DTYPE)?;
    refused("relu of no value", g.relu(NONE), VALUE)?;
    refused("exp of int64", g.exp(y), DTYPE)?;
    refused("clamp with low above high", g.clamp(x, 1.0, 0.0), ATTRIBUTE)?;
    refused(
        "clamp with not-a-number",
        g.clamp(x, f64::NAN, 0.0),
        ATTRIBUTE,
    )?;
    refused("gelu of int64", g.gelu(y, true), DTYPE)?;
    refused("cast of no value", g.cast(NONE, Dtype::Float32), VALUE)
}

fn movement_and_reductions(g: &Builder, x: u32) -> Result<()> {
    refused("reshape to another number", g.reshape(x, &[0, 3]), SHAPE)?;
    refused("reshape with two rests", g.reshape(x, &[NONE, NONE]), SHAPE)?;
    refused("permute of too few axes", g.permute(x, &[0]), ATTRIBUTE)?;
    refused("permute of an axis twice", g.permute(x, &[0, 0]), ATTRIBUTE)?;
    refused(
        "permute of an axis that is not there",
        g.permute(x, &[0, NONE]),
        ATTRIBUTE,
    )?;
    refused(
        "expand of a size other than 1",
        g.expand(x, &[0, 12]),
        SHAPE,
    )?;
    refused(
        "sum over an axis that is not there",
        g.sum(x, &[2], false),
        ATTRIBUTE,
    )?;
    refused(
        "mean over an axis twice",
        g.mean(x, &[1, 1], false),
        ATTRIBUTE,
    )?;
    refused(
        "amax over an axis that is not there",
        g.amax(x, &[NONE], true),
        ATTRIBUTE,
    )?;
    refused(
        "argmax along an axis that is not there",
        g.argmax(x, 2),
        ATTRIBUTE,
    )?;
    refused(
        "softmax along an axis that is not there",
        g.softmax(x, 2),
        ATTRIBUTE,
    )?;
    refused(
        "log-softmax along an axis that is not there",
        g.log_softmax(x, NONE),
        ATTRIBUTE,
    )
}

fn layers(g: &Builder, x: u32, y: u32) -> Result<()> {
    let f = Dtype::Float32;
    let image = g.input("image", f, &[0, 2, 8, 8])?;
    g.output("brightness", g.mean(image, &[], false)?)?;
    let weight = g.parameter("wrong.weight", &[3, 5], "zeros", 0)?;
    let kernel = g.parameter("kernel", &[4, 2, 3, 3], "zeros", 0)?;
    let (one, none) = ((1, 1), (0, 0));
    refused("matmul of sizes that differ", g.matmul(x, x), SHAPE)?;
    refused(
        "linear of sizes that differ",
        g.linear(x, weight, None),
        SHAPE,
    )?;
    refused(
        "conv2d of a matrix",
        g.conv2d(x, kernel, None, one, none, one, 1),
        SHAPE,
    )?;
    refused(
        "conv2d with a bias that does not fit",
        g.conv2d(image, kernel, Some(kernel), one, none, one, 1),
        SHAPE,
    )?;
    refused(
        "conv2d of stride 0",
        g.conv2d(image, kernel, None, none, none, one, 1),
        ATTRIBUTE,
    )?;
    refused(
        "conv2d of no groups",
        g.conv2d(image, kernel, None, one, none, one, 0),
        ATTRIBUTE,
    )?;
    refused(
        "conv2d of a kernel too far apart",
        g.conv2d(image, kernel, None, one, none, (NONE, NONE), 1),
        SHAPE,
    )?;
    let far = g.conv2d(image, kernel, None, one, (NONE, NONE), one, 1);
    check(far.is_err(), "conv2d with padding of 2^32 is refused")?;
    refused(
        "max-pool2d of window 0",
        g.max_pool2d(image, none, one, none),
        ATTRIBUTE,
    )?;
    refused(
        "max-pool2d with too much padding",
        g.max_pool2d(image, (2, 2), one, (2, 2)),
        ATTRIBUTE,
    )?;
    refused(
        "avg-pool2d of a window too large",
        g.avg_pool2d(image, (9, 9), one, none),
        SHAPE,
    )?;
    let two = g.parameter("two", &[2], "ones", 0)?;
    refused(
        "batch-norm with a scale that does not fit",
        g.batch_norm_eval(image, kernel, two, two, two, 1e-5),
        SHAPE,
    )?;
    refused(
        "batch-norm below epsilon 0",
        g.batch_norm_eval(image, two, two, two, two, -1.0),
        ATTRIBUTE,
    )?;
    refused(
        "cross-entropy of float labels",
        g.cross_entropy(x, x, 0.0),
        DTYPE,
    )?;
    refused(
        "cross-entropy of four axes",
        g.cross_entropy(image, y, 0.0),
        SHAPE,
    )?;
    refused(
        "cross-entropy smoothed by 2",
        g.cross_entropy(x, y, 2.0),
        ATTRIBUTE,
    )?;
    refused(
        "stft-power of an unknown window",
        g.stft_power(x, 2, 1, "kaiser"),
        ATTRIBUTE,
    )?;
    refused(
        "stft-power of hop 0",
        g.stft_power(x, 2, 0, "hann"),
        ATTRIBUTE,
    )?;
    refused(
        "stft-power of more than there is",
        g.stft_power(x, 64, 1, "hann"),
        SHAPE,
    )
}

fn training(g: &Builder, x: u32, y: u32, weight: u32) -> Result<()> {
    let logits = g.linear(x, weight, None)?;
    let loss = g.cross_entropy(logits, y, 0.0)?;
    refused(
        "gradients of what is no scalar",
        g.gradients(logits, &[weight]),
        "graph.gradient",
    )?;
    refused(
        "gradients with respect to no value",
        g.gradients(loss, &[NONE]),
        VALUE,
    )?;
    let gradient = g.gradients(loss, &[weight])?;
    refused(
        "sgd on what is no parameter",
        g.sgd(&[x], &gradient, 0.0, false, 0.0),
        "graph.optimizer",
    )?;
    refused(
        "adam with fewer gradients",
        g.adam(&[weight], &[], 0.9, 0.999, 1e-8, 0.0),
        "graph.optimizer",
    )?;
    refused(
        "adamw with beta 1",
        g.adamw(&[weight], &gradient, 1.0, 0.999, 1e-8, 0.0),
        ATTRIBUTE,
    )?;
    g.sgd(&[weight], &gradient, 0.9, true, 0.0)?;
    refused(
        "an update twice",
        g.sgd(&[weight], &gradient, 0.0, false, 0.0),
        "graph.optimizer",
    )?;
    refused("output of no value", g.output("loss", NONE), VALUE)?;
    g.output("loss", loss)?;
    refused(
        "output of a taken name",
        g.output("loss", loss),
        "graph.name",
    )?;
    refused("shape of no value", g.shape(NONE), VALUE)?;
    refused("dtype of no value", g.element(NONE), VALUE)
}

fn running(g: &Builder) -> Result<()> {
    refused(
        "a plan of nothing",
        Plan::create(&Builder::new(), 1, &[]),
        "graph.empty",
    )?;
    let options = [("speed".to_owned(), "ludicrous".to_owned())];
    refused(
        "an unknown option",
        Plan::create(g, 2, &options),
        "option.unknown",
    )?;
    let plan = Plan::create(g, 2, &[])?;
    check(
        plan.describe().contains("Matmul"),
        "the plan lists its operators",
    )?;
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    let session = Session::open(&[&plan], &lease)?;
    refused(
        "a schedule that does not exist",
        session.learning_rate(0.1, "magic", &[]),
        "option.value",
    )?;
    refused(
        "an unknown option of a schedule",
        session.learning_rate(0.1, "constant", &options),
        "option.unknown",
    )?;
    session.learning_rate(0.1, "constant", &[])?;
    let image = ("image".to_owned(), vec![0; 2 * 2 * 8 * 8 * 4]);
    let x = (
        "x".to_owned(),
        [1.0_f32; 8].iter().flat_map(|v| v.to_le_bytes()).collect(),
    );
    let labels = |labels: [i64; 2]| {
        (
            "y".to_owned(),
            labels.iter().flat_map(|l| l.to_le_bytes()).collect(),
        )
    };
    let short = ("x".to_owned(), vec![0; 3]);
    refused(
        "a plan that is not there",
        session.run(7, 2, &[]),
        "model.plan",
    )?;
    refused(
        "a batch beyond the plan's",
        session.run(0, 3, &[]),
        "model.input",
    )?;
    refused(
        "an input that is missing",
        session.run(0, 2, &[]),
        "model.input",
    )?;
    refused(
        "an input that is too short",
        session.run(0, 2, &[short, labels([0, 1])]),
        "model.input",
    )?;
    refused(
        "labels out of range",
        session.run(0, 2, &[x.clone(), labels([0, 9]), image.clone()]),
        "data.label",
    )?;
    refused(
        "an output that is not there",
        session.mean(0, "none"),
        "model.output",
    )?;
    session.run(0, 2, &[x, labels([0, 1]), image])?;
    refused(
        "more than 1 MiB at once",
        session.read(0, "loss", 0, u32::MAX),
        "model.range",
    )?;
    check(
        session.read(0, "loss", u64::MAX, 4)?.is_empty(),
        "a read beyond the end gives nothing",
    )?;
    check(
        session.read(0, "loss", 0, 4)?.len() == 4,
        "the loss is read",
    )?;
    refused(
        "weights that were not given",
        session.load(),
        "weights.none",
    )
}

guests::guest!(|| {
    check(
        ops().iter().any(|op| op == "conv2d"),
        "ops names the operators",
    )?;
    let g = Builder::new();
    let x = g.input("x", Dtype::Float32, &[0, 4])?;
    let y = g.input("y", Dtype::Int64, &[0])?;
    let weight = g.parameter("weight", &[3, 4], "torch-uniform", 0)?;
    leaves(&g)?;
    element_wise(&g, x, y)?;
    movement_and_reductions(&g, x)?;
    layers(&g, x, y)?;
    training(&g, x, y, weight)?;
    running(&g)
});
