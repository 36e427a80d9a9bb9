//! Handles that libraries give: pointers to what they mean. Each function takes the code that its
//! library has for an argument that cannot be.

use std::ffi::c_uint;

/// Makes a handle, to be given back to [`drop`] once.
pub(crate) fn make<T>(invalid: c_uint, target: *mut *mut T, contents: T) -> c_uint {
    put(invalid, target, Box::into_raw(Box::new(contents)))
}

/// Drops what a handle means.
pub(crate) fn drop<T>(invalid: c_uint, handle: *mut T) -> c_uint {
    if handle.is_null() {
        return invalid;
    }
    // SAFETY: made by `make`, and given back once, as the libraries' headers ask.
    std::mem::drop(unsafe { Box::from_raw(handle) });
    0
}

/// Writes a value for the caller.
pub(crate) fn put<T>(invalid: c_uint, target: *mut T, value: T) -> c_uint {
    if target.is_null() {
        return invalid;
    }
    // SAFETY: not null, and the caller passes a place for a `T`, as the libraries' headers ask.
    unsafe { target.write(value) };
    0
}
