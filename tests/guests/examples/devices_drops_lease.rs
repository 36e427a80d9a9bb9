//! Gives its lease back and goes on with the session that it opened on it, then leases again.
use guests::host::devices::{Request, granted};
use guests::host::graph::Builder;
use guests::host::model::{Plan, Session, reserve};
use guests::host::types::Dtype;
use guests::{check, refused};

guests::guest!(|| {
    check(!granted().is_empty(), "a device is granted")?;
    let builder = Builder::new();
    let x = builder.input("x", Dtype::Float32, &[0, 4])?;
    builder.output("y", builder.relu(x)?)?;
    let plan = Plan::create(&builder, 2, &[])?;
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    check(
        lease.budget_bytes() >= plan.peak_bytes(),
        "the lease holds the plan",
    )?;
    let session = Session::open(&[&plan], &lease)?;
    refused("a request used twice", request.acquire(), "request.used")?;
    drop(lease);
    let input = [("x".to_owned(), vec![0_u8; 32])];
    let went_on = session.run(0, 2, &input);
    check(
        went_on.is_err(),
        "a session does not run once its lease is dropped",
    )?;
    drop(session);
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    Session::open(&[&plan], &lease)?.run(0, 2, &input)
});
