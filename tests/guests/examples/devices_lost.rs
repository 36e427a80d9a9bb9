//! Goes on with a session whose GPU fails, and asks its lease why.
use guests::check;
use guests::host::devices::Request;
use guests::host::graph::Builder;
use guests::host::model::{Plan, Session, reserve};
use guests::host::types::Dtype;

guests::guest!(|| {
    let builder = Builder::new();
    let x = builder.input("x", Dtype::Float32, &[0, 4])?;
    builder.output("y", builder.relu(x)?)?;
    let plan = Plan::create(&builder, 2, &[])?;
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    let session = Session::open(&[&plan], &lease)?;
    check(
        lease.lost().is_none(),
        "a lease that was just given is held",
    )?;
    let input = [("x".to_owned(), vec![0_u8; 32])];
    let error = (0..100).find_map(|_| session.run(0, 2, &input).err());
    let lost = lease.lost();
    let code = |error: &Option<_>| {
        let error: &Option<guests::host::types::Error> = error;
        error.as_ref().map(|error| error.code.clone())
    };
    check(
        code(&error).as_deref() == Some("device.fault"),
        "a run fails with the device's fault",
    )?;
    check(code(&lost) == code(&error), "the lease tells the same")?;
    check(
        session.run(0, 2, &input).is_err(),
        "no run succeeds afterwards",
    )
});
