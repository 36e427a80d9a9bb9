//! Never returns from `describe`.
guests::guest!(|| Ok(()), || loop {
    std::hint::spin_loop();
});
