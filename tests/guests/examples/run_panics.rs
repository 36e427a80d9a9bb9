//! Panics.
guests::guest!(|| panic!("this guest panics"));
