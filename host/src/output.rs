//! What the program prints: results on standard output, messages on standard error. A reader that
//! goes away is no reason to panic.

use std::fmt::Display;
use std::io::Write;

/// Prints a line of a command's result. Errors: where nobody reads it.
pub fn data(line: impl Display) -> std::io::Result<()> {
    writeln!(std::io::stdout().lock(), "{line}")
}

/// Prints a line for the person at the terminal.
pub fn message(line: impl Display) {
    let _gone = writeln!(std::io::stderr().lock(), "{line}");
}
