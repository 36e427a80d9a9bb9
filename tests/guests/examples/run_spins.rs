//! Never returns from `run`, and calls nothing.
guests::guest!(|| loop {
    std::hint::spin_loop();
});
