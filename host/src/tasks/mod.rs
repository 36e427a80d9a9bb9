//! Tasks: records, store, queue, journal, and the supervisor that runs them in workers.

pub mod task;
