//! Passes 256 MiB to the host at once, as a constant.
use guests::host::graph::Builder;
use guests::host::types::Dtype;

guests::guest!(|| {
    let bytes = vec![0_u8; 256 << 20];
    let builder = Builder::new();
    let elements = (bytes.len() / 4) as u32;
    guests::refused(
        "constant of 256 MiB",
        builder.constant(Dtype::Float32, &[elements], &bytes),
        "graph.limit",
    )
});
