//! Calls itself without end.
fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if std::hint::black_box(true) {
        deeper(depth + 1) + frame[0]
    } else {
        depth
    }
}

guests::guest!(|| {
    std::hint::black_box(deeper(0));
    Ok(())
});
