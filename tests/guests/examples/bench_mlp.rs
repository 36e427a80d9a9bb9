//! Trains an MLP 784-512-512-10 on images and reports `steps_per_second`: the speed of a training
//! step as a plugin sees it.
use std::time::Instant;

use guests::host::data::{Dataset, Loader};
use guests::host::devices::Request;
use guests::host::model::{Plan, Session, reserve};
use guests::host::{task, types::Dtype};
use hangar_sdk::{Graph, Linear, Mode, Optimizer, Parameters};
use serde_json::json;

/// Steps before the clock starts.
const WARM_UP: u64 = 20;

fn run() -> guests::Result<()> {
    let parameters = Parameters::parse(&task::parameters())?;
    let (steps, size) = (
        parameters.integer("steps")?,
        parameters.integer("batch_size")? as u32,
    );
    let loader = Loader::open(&Dataset::open("train")?, size)?;
    let shape = loader.sample_shape()?;
    let graph = Graph::new(Mode::Train, 0);
    let batch: Vec<u32> = std::iter::once(0).chain(shape).collect();
    let x = graph.input("x", Dtype::Float32, &batch)?.flatten()?;
    let y = graph.input("y", Dtype::Int64, &[0])?;
    let x = Linear::new(512).apply(&x, "fc1")?.relu()?;
    let x = Linear::new(512).apply(&x, "fc2")?.relu()?;
    let loss = Linear::new(10).apply(&x, "fc3")?.cross_entropy(&y, 0.0)?;
    graph.minimize(&loss, &Optimizer::AdamW { weight_decay: 0.01 })?;
    graph.output("loss", &loss)?;
    let plan = Plan::create(graph.builder(), size, &[])?;
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    let session = Session::open(&[&plan], &lease)?;
    session.learning_rate(1e-4, "constant", &[])?;

    let (mut began, mut epoch) = (Instant::now(), 0);
    loader.start(epoch)?;
    let mut done = 0;
    while done < WARM_UP + steps {
        if session.step(0, &loader)? == 0 {
            epoch += 1;
            loader.start(epoch)?;
            continue;
        }
        done += 1;
        if done == WARM_UP {
            began = Instant::now();
        }
    }
    let rate = steps as f64 / began.elapsed().as_secs_f64();
    let values = [
        ("steps_per_second".to_owned(), rate),
        ("train_loss".to_owned(), session.mean(0, "loss")?),
    ];
    task::metrics(1, 1, "completed", &values);
    task::log(
        "info",
        &format!(
            "{rate:.1} steps a second, {:.1} samples a second",
            rate * f64::from(size)
        ),
    );
    Ok(())
}

guests::guest!(run, || {
    let properties = json!({
        "steps": { "type": "integer", "default": 500, "minimum": 1, "description": "Steps timed" },
        "batch_size": { "type": "integer", "default": 64, "minimum": 1, "maximum": 65536, "description": "Samples in a step" },
    });
    guests::describe("bench-mlp", properties)
});
