//! Opens data that was not granted, by names, paths and tricks.
use guests::host::data::{Dataset, granted};
use guests::host::model::weights_metadata;
use guests::refused;

guests::guest!(|| {
    let names = [
        "",
        "secret",
        "..",
        "../train",
        "/etc/passwd",
        "/",
        "train/../../..",
        "train\0",
        "TRAIN",
        "file:///etc",
    ];
    for name in names
        .iter()
        .filter(|name| !granted().iter().any(|granted| granted == *name))
    {
        refused(name, Dataset::open(name), "data.unknown")?;
    }
    refused(
        "weights that were not given",
        weights_metadata(),
        "weights.none",
    )?;
    guests::check(std::fs::read_dir("/").is_err(), "no folder can be read")?;
    guests::check(
        std::env::vars().next().is_none(),
        "no environment variable can be read",
    )?;
    guests::check(
        std::net::TcpStream::connect("127.0.0.1:8000").is_err(),
        "no connection can be made",
    )
});
