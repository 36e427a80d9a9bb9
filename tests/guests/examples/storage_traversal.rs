//! Tries to write outside the task's folder, by names of artifacts and checkpoints.
use guests::host::devices::Request;
use guests::host::graph::Builder;
use guests::host::model::{Plan, Session, reserve};
use guests::host::{task, types::Dtype};
use guests::refused;

guests::guest!(|| {
    let long = "x".repeat(5000);
    let names = [
        "",
        ".",
        "..",
        "../x",
        "/tmp/x",
        "a/b",
        "a\\b",
        "x\0y",
        "line\nbreak",
        "c:x",
        " ",
        &long,
    ];
    for name in names {
        refused(
            &format!("artifact {name:.20}"),
            task::artifact(name, b"x"),
            "task.artifact",
        )?;
    }
    let builder = Builder::new();
    let x = builder.input("x", Dtype::Float32, &[0, 4])?;
    let weight = builder.parameter("w", &[2, 4], "ones", 0)?;
    builder.output("y", builder.linear(x, weight, None)?)?;
    let plan = Plan::create(&builder, 2, &[])?;
    let request = Request::new();
    reserve(&request, &[&plan]);
    let lease = request.acquire()?;
    let session = Session::open(&[&plan], &lease)?;
    for name in names.into_iter().chain(["best.safetensors", "a b", "é"]) {
        refused(
            &format!("save {name:.20}"),
            session.save(name, &[]),
            "model.name",
        )?;
    }
    task::artifact("plain.txt", b"x")?;
    session.save("plain", &[("key".to_owned(), "value".to_owned())])
});
