//! Operators and training runs agree with PyTorch's results in float64 (tests/golden/README.md).

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod emulator;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use compute::builder::{Conv2d, Interpolation, Target, Window};
use compute::cpu::CpuBackend;
use compute::cuda::{self, CudaBackend};
use compute::plan::{Options, Precision};
use compute::schedule::ScheduleKind;
use compute::{Backend, Builder, DType, Dim, Error, HostTensor, Plan, Schedule, Value};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value as Json;

/// A file of reference results.
struct Case {
    name: String,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, HostTensor>,
}

impl Case {
    fn json(&self, key: &str) -> Json {
        serde_json::from_str(&self.metadata[key]).unwrap()
    }

    fn tensor(&self, name: &str) -> &HostTensor {
        &self.tensors[name]
    }

    /// The tensors `PREFIX.0`, `PREFIX.1`, ….
    fn list(&self, prefix: &str) -> Vec<&HostTensor> {
        (0..)
            .map_while(|i| self.tensors.get(&format!("{prefix}.{i}")))
            .collect()
    }

    /// Relative L2 error of `got` against the case's tensor, over the tolerance.
    fn excess(&self, name: &str, got: &HostTensor, floor: f64) -> Option<String> {
        let expected = self.tensor(name);
        let own = self.json("f32_error")[name].as_f64().unwrap_or(0.0);
        let tolerance = floor.max(4.0 * own);
        assert_eq!(got.shape(), expected.shape(), "{} {name}", self.name);
        let (Some(got), Some(expected)) = (floats(got), floats(expected)) else {
            return (got != expected).then(|| format!("{} {name}: integers differ", self.name));
        };
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let difference = norm(&mut got.iter().zip(&expected).map(|(a, b)| a - b));
        let error = difference / norm(&mut expected.iter().copied()).max(f64::MIN_POSITIVE);
        // Not `error > tolerance`: NaN must fail.
        let within = error <= tolerance;
        (!within).then(|| {
            format!(
                "{} {name}: error {error:.2e} above {tolerance:.2e}",
                self.name
            )
        })
    }
}

fn floats(tensor: &HostTensor) -> Option<Vec<f64>> {
    tensor
        .to_f32()
        .map(|values| values.into_iter().map(f64::from).collect())
}

fn bundled() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn cases(kind: &str) -> Vec<Case> {
    let folder = std::env::var_os("HANGAR_GOLDEN")
        .map_or_else(bundled, PathBuf::from)
        .join(kind);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no cases in {}", folder.display());
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Case {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().filter_map(|(name, view)| {
        let dtype = match view.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::I64 => DType::I64,
            Dtype::BOOL => DType::Bool,
            _ => return None,
        };
        let shape = view.shape().to_vec();
        Some((
            name,
            HostTensor::new(dtype, shape, view.data().to_vec()).unwrap(),
        ))
    });
    Case {
        name: path.file_stem().unwrap().to_string_lossy().into_owned(),
        tensors: tensors.collect(),
        metadata: header.metadata().clone().unwrap_or_default(),
    }
}

fn dims(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&size| Dim::Fixed(size as u64)).collect()
}

fn fixed(shape: &[usize]) -> Vec<u64> {
    shape.iter().map(|&size| size as u64).collect()
}

/// A number or a pair, as PyTorch takes it.
fn pair(args: &Json, key: &str, default: u32) -> (u32, u32) {
    let number = |v: &Json| v.as_u64().unwrap() as u32;
    match &args[key] {
        Json::Null => (default, default),
        Json::Array(list) => (number(&list[0]), number(&list[1])),
        value => (number(value), number(value)),
    }
}

/// Adds the case's operator to a graph: its results.
fn operator(b: &mut Builder, case: &Case, x: &[Value]) -> Result<Vec<Value>, Error> {
    let args = case.json("args");
    let number = |key: &str| args[key].as_f64();
    let axes = || -> Vec<u32> {
        let rank = case.tensor("in.0").shape().len() as i64;
        let axis = |v: &Json| v.as_i64().unwrap().rem_euclid(rank) as u32;
        match &args["dim"] {
            Json::Array(list) => list.iter().map(axis).collect(),
            Json::Null => Vec::new(),
            value => vec![axis(value)],
        }
    };
    let sizes = |key: &str| -> Vec<u64> {
        args[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap())
            .collect()
    };
    let keep = args["keepdim"].as_bool().unwrap_or(false);
    let integers = |key: &str| -> Vec<i32> {
        let list = args[key].as_array().unwrap();
        list.iter().map(|v| v.as_i64().unwrap() as i32).collect()
    };
    let scale_and_bias = (x.get(1).copied(), x.get(2).copied());
    let y = match case.metadata["op"].as_str() {
        "abs" => b.abs(x[0]),
        "adaptive_avg_pool2d" => {
            let (rows, columns) = pair(&args, "output_size", 1);
            b.adaptive_avg_pool2d(x[0], (u64::from(rows), u64::from(columns)))
        }
        "binary_cross_entropy_with_logits" => b.bce_with_logits(x[0], x[1]),
        "cat" => b.concat(x, axes()[0]),
        "conv1d" => {
            let attributes = (
                pair(&args, "stride", 1).0,
                pair(&args, "padding", 0).0,
                1,
                1,
            );
            b.conv1d(x[0], x[1], x.get(2).copied(), attributes)
        }
        "conv_transpose2d" => {
            let attributes = Conv2d {
                stride: pair(&args, "stride", 1),
                padding: pair(&args, "padding", 0),
                ..Conv2d::default()
            };
            b.conv_transpose2d(x[0], x[1], x.get(2).copied(), attributes, (0, 0))
        }
        "cumsum" => b.cumsum(x[0], axes()[0], false),
        "embedding" => b.embedding(x[1], x[0]),
        "gather" => b.gather(x[0], x[1], 1),
        "group_norm" => {
            let (groups, epsilon) = (args["num_groups"].as_u64().unwrap(), number("eps").unwrap());
            let (Some(scale), Some(bias)) = scale_and_bias else {
                panic!("{}: no scale and bias", case.name);
            };
            b.group_norm(x[0], groups, scale, bias, epsilon)
        }
        "hardsigmoid" => b.hard_sigmoid(x[0]),
        "hardswish" => b.hard_swish(x[0]),
        "index_select" => b.take(x[0], x[1], 0),
        "interpolate" => {
            let shape = case.tensor("in.0").shape();
            let sizes = match args["scale"].as_u64() {
                Some(scale) => (shape[2] as u64 * scale, shape[3] as u64 * scale),
                None => (sizes("size")[0], sizes("size")[1]),
            };
            let interpolation = match args["mode"].as_str().unwrap() {
                "nearest" => Interpolation::Nearest,
                _ => Interpolation::Linear,
            };
            b.resize2d(x[0], sizes, interpolation)
        }
        "layer_norm" => b.layer_norm(x[0], x[1], x[2], number("eps").unwrap()),
        "mse_loss" => b.mse_loss(x[0], x[1]),
        "one_hot" => b.one_hot(x[0], args["num_classes"].as_u64().unwrap()),
        "pad" => {
            // PyTorch names the last axis first: before, after, before, ….
            let rank = case.tensor("in.0").shape().len();
            let (mut before, mut after) = (vec![0; rank], vec![0; rank]);
            for (i, pair) in sizes("pad").chunks(2).enumerate() {
                (before[rank - 1 - i], after[rank - 1 - i]) = (pair[0], pair[1]);
            }
            b.pad(x[0], &before, &after, number("value").unwrap())
        }
        "roll" => {
            let axes: Vec<u32> = integers("dims").into_iter().map(|v| v as u32).collect();
            b.roll(x[0], &integers("shifts"), &axes)
        }
        "scaled_dot_product_attention" => {
            let causal = args["is_causal"].as_bool().unwrap_or(false);
            b.attention((x[0], x[1], x[2]), x.get(3).copied(), causal, None)
        }
        "slice" => b.slice(x[0], &sizes("starts"), &sizes("ends"), &sizes("steps")),
        "softplus" => b.softplus(x[0]),
        "topk" => {
            let (k, axis) = (args["k"].as_u64().unwrap(), axes()[0]);
            let indices = b.top_k(x[0], k, axis, false)?;
            return Ok(vec![b.gather(x[0], indices, axis)?, indices]);
        }
        "var" => b.variance(x[0], &axes(), keep, args["unbiased"].as_bool().unwrap()),
        "where" => {
            let condition = b.cast(x[0], DType::Bool)?;
            b.select(condition, x[1], x[2])
        }
        "add" => b.add(x[0], x[1]),
        "amax" => b.amax(x[0], &axes(), keep),
        "argmax" => b.argmax(x[0], axes()[0]),
        "avg_pool2d" => {
            let window = pair(&args, "kernel", 1);
            b.avg_pool2d(
                x[0],
                window,
                pair(&args, "stride", window.0),
                pair(&args, "padding", 0),
            )
        }
        "batch_norm" => {
            let epsilon = number("eps").unwrap();
            if args["training"] == true {
                let channels = case.tensor("in.1").shape()[0] as u64;
                let mean = b.buffer("mean", &[channels], "zeros").unwrap();
                let variance = b.buffer("variance", &[channels], "ones").unwrap();
                b.batch_norm_train(x[0], x[1], x[2], mean, variance, 0.1, epsilon)
            } else {
                b.batch_norm_eval(x[0], x[3], x[4], x[1], x[2], epsilon)
            }
        }
        "clamp" => b.clamp(x[0], number("min").unwrap(), number("max").unwrap()),
        "conv2d" => {
            let attributes = Conv2d {
                stride: pair(&args, "stride", 1),
                padding: pair(&args, "padding", 0),
                dilation: pair(&args, "dilation", 1),
                groups: args["groups"].as_u64().unwrap_or(1) as u32,
            };
            b.conv2d(x[0], x[1], x.get(2).copied(), attributes)
        }
        "cos" => b.cos(x[0]),
        "cross_entropy" => b.cross_entropy(x[0], x[1], number("label_smoothing").unwrap_or(0.0)),
        "div" => b.div(x[0], x[1]),
        "erf" => b.erf(x[0]),
        "exp" => b.exp(x[0]),
        "expand" => {
            let shape: Vec<Dim> = sizes("shape").into_iter().map(Dim::Fixed).collect();
            b.expand(x[0], &shape)
        }
        "gelu" => b.gelu(x[0], args["approximate"] == "tanh"),
        "leaky_relu" => b.leaky_relu(x[0], number("negative_slope").unwrap()),
        "linear" => b.linear(x[0], x[1], x.get(2).copied()),
        "log" => b.log(x[0]),
        "log_softmax" => b.log_softmax(x[0], axes()[0]),
        "matmul" => b.matmul(x[0], x[1]),
        "max_pool2d" => {
            let window = pair(&args, "kernel", 1);
            b.max_pool2d(
                x[0],
                window,
                pair(&args, "stride", window.0),
                pair(&args, "padding", 0),
            )
        }
        "maximum" => b.maximum(x[0], x[1]),
        "mean" => b.mean(x[0], &axes(), keep),
        "minimum" => b.minimum(x[0], x[1]),
        "mul" => b.mul(x[0], x[1]),
        "neg" => b.neg(x[0]),
        "permute" => {
            let order: Vec<u32> = sizes("dims").into_iter().map(|v| v as u32).collect();
            b.permute(x[0], &order)
        }
        "pow" => b.pow(x[0], number("exponent").unwrap()),
        "relu" => b.relu(x[0]),
        "reshape" => {
            let target: Vec<Target> = sizes("shape")
                .into_iter()
                .map(|n| Target::Size(Dim::Fixed(n)))
                .collect();
            b.reshape(x[0], &target)
        }
        "rsqrt" => b.rsqrt(x[0]),
        "sigmoid" => b.sigmoid(x[0]),
        "silu" => b.silu(x[0]),
        "sin" => b.sin(x[0]),
        "softmax" => b.softmax(x[0], axes()[0]),
        "sqrt" => b.sqrt(x[0]),
        "stft" => {
            let (size, hop) = (pair(&args, "n_fft", 0).0, pair(&args, "hop", 0).0);
            assert_eq!(args["window"], "hann_periodic");
            b.stft_power(x[0], size, hop, Window::Hann)
        }
        "sub" => b.sub(x[0], x[1]),
        "sum" => b.sum(x[0], &axes(), keep),
        "tanh" => b.tanh(x[0]),
        other => panic!("{}: no operator {other}", case.name),
    };
    Ok(vec![y?])
}

/// The results and gradients of a case's operator that are not within its tolerance.
fn operator_errors(backend: &dyn Backend, case: &Case) -> Vec<String> {
    let mut b = Builder::new();
    let inputs = case.list("in");
    let x: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(i, t)| {
            b.input(&format!("in.{i}"), t.dtype(), &dims(t.shape()))
                .unwrap()
        })
        .collect();
    let results = operator(&mut b, case, &x).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let mut names = Vec::new();
    for (i, &result) in results.iter().enumerate() {
        names.push(format!("out.{i}"));
        b.output(&names[i], result).unwrap();
    }
    let mut feeds: Vec<(String, &HostTensor)> = inputs
        .into_iter()
        .enumerate()
        .map(|(i, t)| (format!("in.{i}"), t))
        .collect();
    if let Some(seed) = case.tensors.get("seed.0") {
        let dy = b.input("seed.0", DType::F32, &dims(seed.shape())).unwrap();
        let product = b.mul(results[0], dy).unwrap();
        let loss = b.sum(product, &[], false).unwrap();
        feeds.push(("seed.0".to_owned(), seed));
        let of: Vec<usize> = case
            .json("diff")
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap() as usize)
            .collect();
        let values: Vec<Value> = of.iter().map(|&i| x[i]).collect();
        for (i, gradient) in of.iter().zip(b.gradients(loss, &values).unwrap()) {
            let name = format!("grad.{i}");
            b.output(&name, gradient).unwrap();
            names.push(name);
        }
    }
    let plan = Plan::new(&b.graph(), 1).unwrap();
    let mut session = backend.open(vec![plan], u64::MAX).unwrap();
    let feeds: Vec<(&str, &HostTensor)> = feeds.iter().map(|(n, t)| (n.as_str(), *t)).collect();
    session.run(0, 1, &feeds, &AtomicBool::new(false)).unwrap();
    let excess = |name: &String| case.excess(name, &session.output(0, name).unwrap(), 1e-5);
    names.iter().filter_map(excess).collect()
}

fn check_operators(backend: &dyn Backend) {
    let cases = cases("ops");
    let errors: Vec<String> = cases
        .iter()
        .flat_map(|case| operator_errors(backend, case))
        .collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn the_bundled_reference_results_are_all_there() {
    let count = |kind: &str| std::fs::read_dir(bundled().join(kind)).unwrap().count();
    assert_eq!((count("ops"), count("train")), (90, 7));
}

#[test]
fn golden_operators_agree_with_pytorch() {
    check_operators(&CpuBackend::new(2).unwrap());
}

const ONE_GPU: &str = "[[gpu]]\nprofile = \"h100\"\n";
/// Orders in which the simulated GPU runs a block's threads: a missing barrier gives other results.
const ORDERS: [&str; 3] = ["forward", "reverse", "7"];

fn gpu(graphs: bool) -> CudaBackend {
    let options = cuda::Options {
        graphs,
        // On a machine with cuDNN, our own kernels are to be checked as well.
        cudnn: std::env::var_os("HANGAR_TEST_OWN_KERNELS").is_none(),
        ..cuda::Options::default()
    };
    CudaBackend::new(&emulator::uuid(), "cuda:0", options).unwrap()
}

#[test]
fn golden_operators_agree_with_pytorch_on_cuda() {
    let test = "golden_operators_agree_with_pytorch_on_cuda";
    emulator::emulated(test, &ORDERS, ONE_GPU, || check_operators(&gpu(true)));
}

/// Linear(20, 32) ReLU Linear(32, 16) GELU Linear(16, 5).
fn mlp(b: &mut Builder, parameters: &HashMap<String, Value>, x: Value) -> Value {
    let linear = |b: &mut Builder, x, name: &str| {
        let parameter = |suffix: &str| parameters[&format!("{name}.{suffix}")];
        b.linear(x, parameter("weight"), Some(parameter("bias")))
            .unwrap()
    };
    let x = linear(b, x, "0");
    let x = b.relu(x).unwrap();
    let x = linear(b, x, "2");
    let x = b.gelu(x, false).unwrap();
    linear(b, x, "4")
}

fn tiny_resnet(b: &mut Builder, parameters: &HashMap<String, Value>, x: Value) -> Value {
    let conv = |b: &mut Builder, x, name: &str, stride: u32, padding: u32| {
        let attributes = Conv2d {
            stride: (stride, stride),
            padding: (padding, padding),
            ..Conv2d::default()
        };
        b.conv2d(x, parameters[&format!("{name}.weight")], None, attributes)
            .unwrap()
    };
    let norm = |b: &mut Builder, x, name: &str| {
        let p = |suffix: &str| parameters[&format!("{name}.{suffix}")];
        let (mean, variance) = (p("running_mean"), p("running_var"));
        b.batch_norm_train(x, p("weight"), p("bias"), mean, variance, 0.1, 1e-5)
            .unwrap()
    };
    let block = |b: &mut Builder, x, name: &str, stride: u32| {
        let y = conv(b, x, &format!("{name}.conv1"), stride, 1);
        let y = norm(b, y, &format!("{name}.bn1"));
        let y = b.relu(y).unwrap();
        let y = conv(b, y, &format!("{name}.conv2"), 1, 1);
        let y = norm(b, y, &format!("{name}.bn2"));
        let shortcut = if stride == 1 {
            x
        } else {
            let x = conv(b, x, &format!("{name}.down.0"), stride, 0);
            norm(b, x, &format!("{name}.down.1"))
        };
        let sum = b.add(y, shortcut).unwrap();
        b.relu(sum).unwrap()
    };
    let x = conv(b, x, "conv1", 1, 1);
    let x = norm(b, x, "bn1");
    let x = b.relu(x).unwrap();
    let x = block(b, x, "layer1", 1);
    let x = block(b, x, "layer2", 2);
    let x = b.mean(x, &[2, 3], false).unwrap();
    b.linear(x, parameters["fc.weight"], Some(parameters["fc.bias"]))
        .unwrap()
}

fn optimize(b: &mut Builder, name: &str, args: &Json, parameters: &[Value], gradients: &[Value]) {
    let number = |key: &str, default: f64| args[key].as_f64().unwrap_or(default);
    let betas = match args["betas"].as_array() {
        Some(list) => (list[0].as_f64().unwrap(), list[1].as_f64().unwrap()),
        None => (0.9, 0.999),
    };
    let nesterov = args["nesterov"].as_bool().unwrap_or(false);
    match name {
        "SGD" => {
            let (momentum, decay) = (number("momentum", 0.0), number("weight_decay", 0.0));
            b.sgd(parameters, gradients, momentum, nesterov, decay)
                .unwrap();
        }
        "Adam" => b
            .adam(
                parameters,
                gradients,
                betas,
                1e-8,
                number("weight_decay", 0.0),
            )
            .unwrap(),
        "AdamW" => b
            .adamw(
                parameters,
                gradients,
                betas,
                1e-8,
                number("weight_decay", 0.01),
            )
            .unwrap(),
        other => panic!("no optimizer {other}"),
    }
}

/// A block of 4 × 4 patches' embeddings, attention with 2 heads of 8, and a head on the class token.
fn tiny_vit(b: &mut Builder, parameters: &HashMap<String, Value>, x: Value) -> Value {
    let p = |name: &str| parameters[name];
    let linear = |b: &mut Builder, x, name: &str| {
        let (weight, bias) = (p(&format!("{name}.weight")), p(&format!("{name}.bias")));
        b.linear(x, weight, Some(bias)).unwrap()
    };
    let norm = |b: &mut Builder, x, name: &str| {
        let (scale, bias) = (p(&format!("{name}.weight")), p(&format!("{name}.bias")));
        b.layer_norm(x, scale, bias, 1e-5).unwrap()
    };
    let batched = |sizes: &[u64]| -> Vec<Dim> {
        let rest = sizes.iter().map(|&n| Dim::Fixed(n));
        [Dim::Batch(1)].into_iter().chain(rest).collect()
    };
    let shaped = |b: &mut Builder, x, sizes: &[u64]| {
        let target: Vec<Target> = batched(sizes).into_iter().map(Target::Size).collect();
        b.reshape(x, &target).unwrap()
    };
    let patches = Conv2d {
        stride: (4, 4),
        ..Conv2d::default()
    };
    let x = b
        .conv2d(x, p("patch.weight"), Some(p("patch.bias")), patches)
        .unwrap();
    let x = shaped(b, x, &[16, 16]);
    let x = b.permute(x, &[0, 2, 1]).unwrap();
    let class = b.expand(p("cls"), &batched(&[1, 16])).unwrap();
    let x = b.concat(&[class, x], 1).unwrap();
    let x = b.add(x, p("pos")).unwrap();
    let y = norm(b, x, "ln1");
    let y = linear(b, y, "qkv");
    let y = shaped(b, y, &[17, 3, 2, 8]);
    let y = b.permute(y, &[0, 2, 3, 1, 4]).unwrap();
    let parts = b.split(y, &[1, 1, 1], 1).unwrap();
    let heads: Vec<Value> = parts.iter().map(|&v| shaped(b, v, &[2, 17, 8])).collect();
    let y = b
        .attention((heads[0], heads[1], heads[2]), None, false, None)
        .unwrap();
    let y = b.permute(y, &[0, 2, 1, 3]).unwrap();
    let y = shaped(b, y, &[17, 16]);
    let y = linear(b, y, "proj");
    let x = b.add(x, y).unwrap();
    let y = norm(b, x, "ln2");
    let y = linear(b, y, "fc1");
    let y = b.gelu(y, false).unwrap();
    let y = linear(b, y, "fc2");
    let x = b.add(x, y).unwrap();
    let x = norm(b, x, "ln");
    let end = u64::from(u32::MAX);
    let x = b.slice(x, &[0, 0, 0], &[end, 1, end], &[1, 1, 1]).unwrap();
    let x = shaped(b, x, &[16]);
    linear(b, x, "head")
}

fn train(backend: &dyn Backend, case: &Case) -> (Vec<f32>, HashMap<String, HostTensor>) {
    let (losses, finals, _) = train_with(backend, case, Options::default());
    (losses, finals)
}

/// Runs a training: the losses, every variable at the end, and the bytes of intermediate results.
fn train_with(
    backend: &dyn Backend,
    case: &Case,
    options: Options,
) -> (Vec<f32>, HashMap<String, HostTensor>, u64) {
    let model = match case.metadata["model"].as_str() {
        "mlp" => mlp,
        "tiny_resnet" => tiny_resnet,
        "tiny_vit" => tiny_vit,
        other => panic!("{}: no model {other}", case.name),
    };
    let mut b = Builder::new();
    let mut names: Vec<&str> = case
        .tensors
        .keys()
        .filter_map(|name| name.strip_prefix("init."))
        .collect();
    names.sort_unstable();
    let (mut variables, mut parameters) = (HashMap::new(), Vec::new());
    for &name in names
        .iter()
        .filter(|name| !name.ends_with("num_batches_tracked"))
    {
        let shape = fixed(case.tensor(&format!("init.{name}")).shape());
        let running = name.ends_with("running_mean") || name.ends_with("running_var");
        let value = if running {
            b.buffer(name, &shape, "zeros").unwrap()
        } else {
            b.parameter(name, &shape, "zeros", 0).unwrap()
        };
        if !running {
            parameters.push(value);
        }
        variables.insert(name.to_owned(), value);
    }
    let (x, y) = (case.tensor("x"), case.tensor("y"));
    let mut shape = dims(&x.shape()[1..]);
    shape[0] = Dim::Batch(1);
    let input = b.input("x", DType::F32, &shape).unwrap();
    let labels = b.input("y", DType::I64, &[Dim::Batch(1)]).unwrap();
    let logits = model(&mut b, &variables, input);
    let loss = b.cross_entropy(logits, labels, 0.0).unwrap();
    let gradients = b.gradients(loss, &parameters).unwrap();
    let optimizer = case.json("optimizer");
    optimize(
        &mut b,
        optimizer[0].as_str().unwrap(),
        &optimizer[1],
        &parameters,
        &gradients,
    );
    b.output("loss", loss).unwrap();

    let batch = x.shape()[1];
    let plan = Plan::with(&b.graph(), batch as u32 + 3, options).unwrap();
    let arena = plan.arena_bytes();
    let needed = match backend.device() {
        "cpu" => plan.peak_bytes(),
        _ => cuda::session_bytes(&[&plan]).unwrap(),
    };
    let mut session = backend.open(vec![plan], needed).unwrap();
    assert_eq!(session.used_bytes(), needed, "{}", case.name);
    for name in variables.keys() {
        session
            .upload(name, case.tensor(&format!("init.{name}")))
            .unwrap();
    }
    let rate = optimizer[1]["lr"].as_f64().unwrap();
    session.set_schedule(Schedule::new(rate, 0, ScheduleKind::Constant).unwrap());
    let slice = |tensor: &HostTensor, step: usize| {
        let bytes = tensor.bytes().len() / tensor.shape()[0];
        let part = tensor.bytes()[step * bytes..(step + 1) * bytes].to_vec();
        HostTensor::new(tensor.dtype(), tensor.shape()[1..].to_vec(), part).unwrap()
    };
    let steps: usize = case.metadata["steps"].parse().unwrap();
    let mut losses = Vec::new();
    for step in 0..steps {
        let (x, y) = (slice(x, step), slice(y, step));
        session
            .run(0, batch, &[("x", &x), ("y", &y)], &AtomicBool::new(false))
            .unwrap();
        losses.push(session.output(0, "loss").unwrap().to_f32().unwrap()[0]);
    }
    assert_eq!(session.steps(), steps as u64);
    let finals = variables
        .keys()
        .map(|name| (name.clone(), session.download(name).unwrap()));
    (losses, finals.collect(), arena)
}

/// Trains with activations stored as bfloat16 and as float32.
fn check_bfloat16(backend: &dyn Backend) {
    let narrow = Options {
        precision: Precision::Bfloat16,
    };
    for case in cases("train") {
        let (losses, finals, arena) = train_with(backend, &case, narrow);
        let (wide_losses, wide_finals, wide_arena) =
            train_with(&CpuBackend::new(1).unwrap(), &case, Options::default());
        let error = |pairs: &mut dyn Iterator<Item = (f32, f32)>| {
            let (mut difference, mut norm) = (0.0, 0.0);
            for (a, b) in pairs {
                difference += f64::from(a - b).powi(2);
                norm += f64::from(b).powi(2);
            }
            f64::sqrt(difference / norm)
        };
        let of_losses = error(&mut losses.into_iter().zip(wide_losses));
        let mut names: Vec<&String> = finals.keys().collect();
        names.sort();
        let of_finals = error(&mut names.into_iter().flat_map(|name| {
            let values = |all: &HashMap<String, HostTensor>| all[name].to_f32().unwrap();
            values(&finals).into_iter().zip(values(&wide_finals))
        }));
        println!(
            "{}: {of_losses:.1e} {of_finals:.1e} {arena} of {wide_arena}",
            case.name
        );
        // Not the same numbers, so that something was rounded.
        assert!(
            (1e-7..1e-2).contains(&of_losses),
            "{}: {of_losses:e}",
            case.name
        );
        assert!(
            (1e-7..1e-2).contains(&of_finals),
            "{}: {of_finals:e}",
            case.name
        );
        assert!(
            arena * 5 < wide_arena * 4,
            "{}: {arena} of {wide_arena}",
            case.name
        );
    }
}

#[test]
fn golden_training_runs_in_bfloat16_are_close_and_take_less() {
    check_bfloat16(&CpuBackend::new(2).unwrap());
}

#[test]
fn golden_training_runs_in_bfloat16_are_close_on_cuda() {
    let test = "golden_training_runs_in_bfloat16_are_close_on_cuda";
    emulator::emulated(test, &["forward"], ONE_GPU, || check_bfloat16(&gpu(true)));
}

#[test]
fn golden_training_runs_in_bfloat16_are_close_where_cudnn_is_installed() {
    let test = "golden_training_runs_in_bfloat16_are_close_where_cudnn_is_installed";
    let libraries = [emulator::LIBRARIES, &["libcudnn.so.9"]].concat();
    emulator::emulated_with(&libraries, test, &["forward"], ONE_GPU, || {
        check_bfloat16(&gpu(true));
    });
}

fn check_trainings(backend: &dyn Backend) {
    let cases = cases("train");
    let mut errors = Vec::new();
    for case in cases {
        let (losses, finals) = train(backend, &case);
        let losses = HostTensor::from_f32(&[losses.len()], &losses).unwrap();
        errors.extend(case.excess("loss", &losses, 1e-4));
        for (name, tensor) in finals {
            errors.extend(case.excess(&format!("final.{name}"), &tensor, 1e-4));
        }
    }
    assert!(errors.is_empty(), "{}", errors.join("\n"));
}

#[test]
fn golden_training_runs_agree_with_pytorch() {
    check_trainings(&CpuBackend::new(2).unwrap());
}

#[test]
fn golden_training_runs_agree_with_pytorch_on_cuda() {
    let test = "golden_training_runs_agree_with_pytorch_on_cuda";
    emulator::emulated(test, &ORDERS, ONE_GPU, || check_trainings(&gpu(true)));
}

#[test]
fn golden_cases_agree_with_pytorch_on_cuda_where_cudnn_is_installed() {
    let test = "golden_cases_agree_with_pytorch_on_cuda_where_cudnn_is_installed";
    let libraries = [emulator::LIBRARIES, &["libcudnn.so.9"]].concat();
    emulator::emulated_with(&libraries, test, &["forward"], ONE_GPU, || {
        check_operators(&gpu(true));
        check_trainings(&gpu(true));
    });
}

#[test]
fn golden_training_runs_on_cuda_are_the_same_bit_for_bit_with_and_without_graphs() {
    let test = "golden_training_runs_on_cuda_are_the_same_bit_for_bit_with_and_without_graphs";
    emulator::emulated(test, &["forward"], ONE_GPU, || {
        for case in cases("train") {
            assert!(
                train(&gpu(true), &case) == train(&gpu(false), &case),
                "{}",
                case.name
            );
        }
    });
}

#[test]
fn golden_training_runs_are_the_same_bit_for_bit_on_any_number_of_threads() {
    let on = |threads| CpuBackend::new(threads).unwrap();
    for case in cases("train") {
        assert!(
            train(&on(1), &case) == train(&on(3), &case),
            "{}",
            case.name
        );
    }
}
