//! Writes 100,000 lines of 1 KiB to the log, with control characters, and ends well.
use guests::host::task;

guests::guest!(|| {
    let line = "\u{1b}[31mred\r\n\0".to_owned() + &"x".repeat(1024);
    for _ in 0..100_000 {
        task::log("info", &line);
    }
    Ok(())
});
