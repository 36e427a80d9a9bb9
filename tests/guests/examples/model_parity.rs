//! Runs a model of the SDK once on given weights and numbers, and writes its logits, its loss and the
//! norm of every parameter's gradient to `figures.json`; with `full`, the names and shapes of all
//! parameters of the whole model.
use guests::host::devices::Request;
use guests::host::model::{Plan, Session, reserve};
use guests::host::{task, types::Dtype};
use hangar_sdk::models::{self, Gpt, Swin, Vit};
use hangar_sdk::{Graph, Mode, Parameters, Result, Tensor, error};
use serde_json::{Map, json};

const CLASSES: u32 = 10;
const BATCH: u32 = 2;
/// A language model that is small in all sizes.
const SMALL_GPT: Gpt = Gpt {
    layers: 2,
    width: 64,
    heads: 4,
    vocabulary: 97,
    context: 16,
};
const LENGTH: u32 = 12;

fn vit(patch: u32, layers: u32, large: bool) -> Vit {
    let (heads, hidden) = if large { (16, 1024) } else { (12, 768) };
    Vit {
        patch,
        layers,
        heads,
        hidden,
        mlp: 4 * hidden,
    }
}

/// The model; transformers have 2 layers unless all of it is wanted.
fn build(name: &str, x: &Tensor, full: bool) -> Result<Tensor> {
    let layers = |all: u32| if full { all } else { 2 };
    match name {
        "mlp" => models::mlp(x, &[512, 512], CLASSES),
        "resnet18" => models::resnet18(x, CLASSES),
        "resnet34" => models::resnet34(x, CLASSES),
        "resnet50" => models::resnet50(x, CLASSES),
        "resnet101" => models::resnet101(x, CLASSES),
        "resnet152" => models::resnet152(x, CLASSES),
        "mobilenet_v3_large" => models::mobilenet_v3_large(x, CLASSES),
        "mobilenet_v3_small" => models::mobilenet_v3_small(x, CLASSES),
        "vit_b_16" if full => models::vit_b_16(x, CLASSES),
        "vit_b_32" if full => models::vit_b_32(x, CLASSES),
        "vit_l_16" if full => models::vit_l_16(x, CLASSES),
        "vit_l_32" if full => models::vit_l_32(x, CLASSES),
        "vit_b_16" => vit(16, layers(12), false).build(x, CLASSES),
        "vit_b_32" => vit(32, layers(12), false).build(x, CLASSES),
        "vit_l_16" => vit(16, layers(24), true).build(x, CLASSES),
        "vit_l_32" => vit(32, layers(24), true).build(x, CLASSES),
        "swin_v2_t" => models::swin_v2_t(x, CLASSES),
        "swin_v2_s" if full => models::swin_v2_s(x, CLASSES),
        "swin_v2_b" if full => models::swin_v2_b(x, CLASSES),
        "swin_v2_s" | "swin_v2_b" => {
            let base = name == "swin_v2_b";
            let sizes = Swin {
                width: if base { 128 } else { 96 },
                depths: [2, 2, 2, 2],
                heads: if base { [4, 8, 16, 32] } else { [3, 6, 12, 24] },
                window: 8,
                drop_path: 0.0,
            };
            sizes.build(x, CLASSES)
        }
        "gpt2" if full => models::gpt2(x),
        "gpt2" => SMALL_GPT.build(x),
        _ => Err(error("guest.model", name)),
    }
}

/// splitmix64's number for a key, within −1 to 1.
fn number(key: u64) -> f32 {
    let z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let unit = ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64;
    (2.0 * unit - 1.0) as f32
}

/// Every parameter of the whole model: `NAME SHAPE`, one a line, sorted.
fn names(graph: &Graph) -> Result<String> {
    let mut lines = Vec::new();
    for (name, tensor) in graph.parameters() {
        lines.push(format!("{name} {:?}\n", tensor.shape()?));
    }
    lines.sort();
    Ok(lines.concat())
}

fn run() -> Result<()> {
    let parameters = Parameters::parse(&task::parameters())?;
    let (name, side) = (
        parameters.text("network")?,
        parameters.integer("side")? as u32,
    );
    let (full, train) = (parameters.boolean("full")?, parameters.boolean("train")?);
    let mode = if train { Mode::Train } else { Mode::Evaluate };
    let graph = Graph::new(mode, 0);
    let text = name == "gpt2";
    let shape = match name {
        "gpt2" => vec![0, LENGTH],
        "mlp" => vec![0, 784],
        _ => vec![0, 3, side, side],
    };
    let element = if text { Dtype::Int64 } else { Dtype::Float32 };
    let x = graph.input("x", element, &shape)?;
    let logits = build(name, &x, full)?;
    if full {
        return task::artifact("parameters.txt", names(&graph)?.as_bytes());
    }
    let y = graph.input("y", Dtype::Int64, &[0])?;
    // Of a language model, the last token's logits.
    let logits = if text {
        let last = logits.slice(1, LENGTH - 1, LENGTH)?;
        last.reshape(&[0, SMALL_GPT.vocabulary])?
    } else {
        logits
    };
    graph.output("logits", &logits)?;
    let loss = logits.cross_entropy(&y, 0.0)?;
    graph.output("loss", &loss)?;
    let gradients = graph.gradients(&loss)?;
    for (i, gradient) in gradients.iter().enumerate() {
        let square = (gradient * gradient)?.sum(&[], false)?;
        graph.output(&format!("norm.{i}"), &square.sqrt()?)?;
    }
    let plan = Plan::create(graph.builder(), BATCH, &[])?;
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    let session = Session::open(&[&plan], &lease)?;
    // Nothing moves running statistics where nothing is optimised.
    let ignored = ["num_batches_tracked", "running_mean", "running_var"];
    let ignored = ignored.iter().take(if train { 3 } else { 1 });
    let given = |name: &'static str| {
        let value = parameters.text(name).unwrap_or_default();
        (!value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    let options: Vec<_> = ignored
        .map(|end| ("ignore".to_owned(), (*end).to_owned()))
        .chain(["ignore", "replace"].into_iter().filter_map(given))
        .collect();
    let kept = session.load_adapted(&options)?;
    if !kept.is_empty() {
        task::log("info", &format!("kept: {}", kept.join(", ")));
    }
    let count = shape.iter().skip(1).product::<u32>() * BATCH;
    let x: Vec<u8> = if text {
        let token = |i: u64| (i * 31 % u64::from(SMALL_GPT.vocabulary)) as i64;
        (0..u64::from(count))
            .flat_map(|i| token(i).to_le_bytes())
            .collect()
    } else {
        (0..u64::from(count))
            .flat_map(|i| number(i).to_le_bytes())
            .collect()
    };
    let y: Vec<u8> = [1i64, 3].into_iter().flat_map(i64::to_le_bytes).collect();
    session.run(0, BATCH, &[("x".to_owned(), x), ("y".to_owned(), y)])?;
    let read = |output: &str| -> Result<Vec<f32>> {
        let bytes = session.read(0, output, 0, 1 << 20)?;
        let values = bytes.as_chunks::<4>().0.iter();
        Ok(values.map(|four| f32::from_le_bytes(*four)).collect())
    };
    let mut norms = Map::new();
    for (i, (name, _)) in graph.parameters().into_iter().enumerate() {
        norms.insert(name, json!(read(&format!("norm.{i}"))?.first()));
    }
    let figures = json!({ "logits": read("logits")?, "loss": read("loss")?, "norms": norms });
    task::artifact("figures.json", figures.to_string().as_bytes())
}

guests::guest!(run, || {
    let property = |kind: &str, default: serde_json::Value| json!({ "type": kind, "default": default, "description": "What is built" });
    guests::describe(
        env!("CARGO_CRATE_NAME"),
        json!({
            "network": property("string", json!("mlp")),
            "side": property("integer", json!(64)),
            "full": property("boolean", json!(false)),
            "train": property("boolean", json!(false)),
            "ignore": property("string", json!("")),
            "replace": property("string", json!("")),
        }),
    )
});
