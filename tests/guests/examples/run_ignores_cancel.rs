//! Trains for ever, whatever the host answers.
use guests::host::devices::Request;
use guests::host::graph::Builder;
use guests::host::model::{Plan, Session, reserve};
use guests::host::{task, types::Dtype};

guests::guest!(|| {
    let builder = Builder::new();
    let x = builder.input("x", Dtype::Float32, &[0, 4])?;
    builder.output("y", builder.relu(x)?)?;
    let plan = Plan::create(&builder, 2, &[])?;
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    let session = Session::open(&[&plan], &lease)?;
    task::log("info", "ready to be cancelled");
    let input = [("x".to_owned(), vec![0_u8; 32])];
    loop {
        let _ = std::hint::black_box(session.run(0, 2, &input));
    }
});
