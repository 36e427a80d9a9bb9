//! Creates graph builders without end and drops none.
use guests::host::graph::Builder;

guests::guest!(|| {
    let mut held = Vec::new();
    loop {
        held.push(Builder::new());
    }
});
