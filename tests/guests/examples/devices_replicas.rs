//! Asks for two replicas on its own, trains on what it gets, and asks for what cannot be.
use guests::host::devices::Request;
use guests::host::graph::Builder;
use guests::host::model::{Plan, Session, reserve};
use guests::host::task;
use guests::host::types::Dtype;
use guests::{Result, check, refused};
use hangar_sdk::Parameters;
use serde_json::json;

/// The mean of (x·w)² over the batch, and a step down its gradient, or down one that a sample has a part in.
fn plan(by_sample: bool) -> Result<Plan> {
    let builder = Builder::new();
    let x = builder.input("x", Dtype::Float32, &[0, 2])?;
    let w = builder.parameter("w", &[2], "ones", 0)?;
    let product = builder.mul(x, w)?;
    let loss = builder.mean(builder.mul(product, product)?, &[], false)?;
    let mut gradients = builder.gradients(loss, &[w])?;
    if by_sample {
        gradients = vec![builder.mean(builder.mul(x, gradients[0])?, &[0], false)?];
    }
    builder.sgd(&[w], &gradients, 0.0, false, 0.0)?;
    builder.output("loss", loss)?;
    Plan::create(&builder, 4, &[])
}

guests::guest!(
    || {
        let parameters = Parameters::parse(&task::parameters())?;
        let (width, own) = (parameters.integer("width")?, parameters.boolean("own")?);
        let refusing = Request::new();
        refused("no replicas", refusing.replicas(0), "device.replicas")?;
        if width > 1 {
            refusing.replicas(2)?;
            reserve(&refusing, &[&plan(true)?]);
            refused("a step by sample", refusing.acquire(), "graph.replicas")?;
        }
        let (request, plan) = (Request::new(), plan(false)?);
        request.replicas(2)?;
        reserve(&request, &[&plan]);
        if own {
            refused("three after all", request.replicas(3), "device.replicas")?;
        } else {
            // The user has chosen: it is the same whatever the plugin asks for.
            request.replicas(3)?;
        }
        let lease = request.acquire()?;
        check(u64::from(lease.width()) == width, "the lease has the width")?;
        let session = Session::open(&[&plan], &lease)?;
        check(
            lease.used_bytes() == lease.budget_bytes(),
            "each device takes what was reserved",
        )?;
        session.learning_rate(0.25, "constant", &[])?;
        let samples = [1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let bytes = samples.iter().flat_map(|x| x.to_le_bytes()).collect();
        session.run(0, 3, &[("x".to_owned(), bytes)])?;
        // (1 + 4 + 9 + 16 + 25 + 36) / 6.
        let loss = f32::from_le_bytes(
            session
                .read(0, "loss", 0, 4)?
                .try_into()
                .unwrap_or_default(),
        );
        check(
            (loss - 91.0 / 6.0).abs() < 1e-5,
            "the loss is the mean of all samples",
        )?;
        session.run(
            0,
            1,
            &[(
                "x".to_owned(),
                [1.0_f32, 0.0]
                    .iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect(),
            )],
        )?;
        // w₀ = 1 − 0.25·2·(1 + 9 + 25)/6.
        let weight = 1.0 - 0.5 * 35.0 / 6.0;
        let loss = f32::from_le_bytes(
            session
                .read(0, "loss", 0, 4)?
                .try_into()
                .unwrap_or_default(),
        );
        check(
            (loss - weight * weight / 2.0).abs() < 1e-5,
            "the step was made with the gradient of all samples",
        )
    },
    || guests::describe(
        env!("CARGO_CRATE_NAME"),
        json!({
            "width": { "type": "integer", "default": 2 },
            "own": { "type": "boolean", "default": true },
        })
    )
);
