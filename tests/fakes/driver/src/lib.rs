//! Fake driver.
