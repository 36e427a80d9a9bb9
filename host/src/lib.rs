//! Hangar.
