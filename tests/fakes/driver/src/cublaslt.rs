//! The functions of cuBLASLt that matrix products take, as `cublasLt.h` declares them: float32
//! and bfloat16, column-major, batches by stride, the bias and ReLU epilogues, TF32 where asked for.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use crate::cuda::{Call, push_call};
use crate::half::{narrowed, widened};
use crate::handle;

const INVALID_VALUE: c_uint = 7;
const NOT_SUPPORTED: c_uint = 15;
const EXECUTION_FAILED: c_uint = 13;
/// `CUDA_R_32F` and `CUDA_R_16BF`.
const FLOAT: c_int = 0;
const BFLOAT16: c_int = 14;
/// `CUBLAS_COMPUTE_32F` and `CUBLAS_COMPUTE_32F_FAST_TF32`.
const COMPUTE_32F: c_int = 68;
const COMPUTE_TF32: c_int = 77;
/// Bits of `cublasLtEpilogue_t`.
const EPILOGUE_DEFAULT: i32 = 1;
const EPILOGUE_RELU: i32 = 2;
const EPILOGUE_BIAS: i32 = 4;

/// `cublasLtMatmulDesc_t`'s contents.
#[derive(Clone, Copy)]
pub struct Operation {
    compute: c_int,
    transpose_a: i32,
    transpose_b: i32,
    epilogue: i32,
    bias: u64,
}

/// `cublasLtMatrixLayout_t`'s contents.
#[derive(Clone, Copy)]
pub struct Matrix {
    kind: c_int,
    rows: u64,
    columns: u64,
    leading: i64,
    batch: i32,
    stride: i64,
}

impl Matrix {
    fn element_bytes(&self) -> usize {
        if self.kind == BFLOAT16 { 2 } else { 4 }
    }

    /// An element from an address on.
    ///
    /// # Safety
    ///
    /// It lies in memory that was given.
    unsafe fn read(&self, at: u64, index: i64) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            if self.kind == BFLOAT16 {
                widened((at as *const u16).offset(index as isize).read())
            } else {
                (at as *const f32).offset(index as isize).read()
            }
        }
    }

    /// Writes an element from an address on.
    ///
    /// # Safety
    ///
    /// It lies in memory that was given.
    unsafe fn write(&self, at: u64, index: i64, value: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.kind == BFLOAT16 {
                (at as *mut u16)
                    .offset(index as isize)
                    .write(narrowed(value));
            } else {
                (at as *mut f32).offset(index as isize).write(value);
            }
        }
    }

    /// Elements from the first to the last.
    fn reach(&self) -> usize {
        let last = (self.columns as i64 - 1) * self.leading + self.rows as i64;
        ((i64::from(self.batch) - 1) * self.stride + last) as usize
    }
}

/// D = epilogue(alpha · op(A) · op(B) + beta · C).
#[derive(Clone)]
pub struct Product {
    operation: Operation,
    alpha: f32,
    beta: f32,
    a: (u64, Matrix),
    b: (u64, Matrix),
    c: (u64, Matrix),
    d: (u64, Matrix),
}

/// The nearest number of 10 bits of fraction, as matrix units take it.
fn tf32(x: f32) -> f32 {
    f32::from_bits((x.to_bits().wrapping_add(0x1000)) & !0x1FFF)
}

impl Product {
    /// Element (row, column) of op(matrix) of a batch.
    fn element(
        &self,
        (at, matrix): (u64, Matrix),
        transposed: i32,
        batch: i64,
        row: u64,
        column: u64,
    ) -> f32 {
        let (row, column) = if transposed == 0 {
            (row, column)
        } else {
            (column, row)
        };
        let index = batch * matrix.stride + column as i64 * matrix.leading + row as i64;
        // SAFETY: the ranges were checked when the product was given to its stream.
        let value = unsafe { matrix.read(at, index) };
        if self.operation.compute == COMPUTE_TF32 {
            tf32(value)
        } else {
            value
        }
    }
}

impl Call for Product {
    fn ranges(&self) -> Vec<(u64, usize)> {
        let mut ranges: Vec<_> = [&self.a, &self.b, &self.c, &self.d]
            .iter()
            .map(|(at, matrix)| (*at, matrix.reach() * matrix.element_bytes()))
            .collect();
        if self.operation.epilogue & EPILOGUE_BIAS != 0 {
            let bytes = self.d.1.rows as usize * self.d.1.element_bytes();
            ranges.push((self.operation.bias, bytes));
        }
        ranges
    }

    fn run(&self) {
        let operation = self.operation;
        let (m, n) = (self.d.1.rows, self.d.1.columns);
        let k = if operation.transpose_a == 0 {
            self.a.1.columns
        } else {
            self.a.1.rows
        };
        for batch in 0..i64::from(self.d.1.batch) {
            let rows: Vec<f32> = (0..m * k)
                .map(|i| self.element(self.a, operation.transpose_a, batch, i / k, i % k))
                .collect();
            for column in 0..n {
                let other: Vec<f32> = (0..k)
                    .map(|i| self.element(self.b, operation.transpose_b, batch, i, column))
                    .collect();
                for row in 0..m {
                    let own = &rows[(row * k) as usize..((row + 1) * k) as usize];
                    let mut value = self.alpha * dot(own, &other);
                    if self.beta != 0.0 {
                        value += self.beta * self.element(self.c, 0, batch, row, column);
                    }
                    if operation.epilogue & EPILOGUE_BIAS != 0 {
                        // SAFETY: checked as above.
                        value += unsafe { self.d.1.read(operation.bias, row as i64) };
                    }
                    if operation.epilogue & EPILOGUE_RELU != 0 && value < 0.0 {
                        value = 0.0;
                    }
                    let (at, matrix) = self.d;
                    let index = batch * matrix.stride + column as i64 * matrix.leading + row as i64;
                    // SAFETY: checked as above.
                    unsafe { matrix.write(at, index, value) };
                }
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
pub struct Heuristic {
    algorithm: [u64; 8],
    workspace_bytes: usize,
    state: c_uint,
    waves: f32,
    reserved: [c_int; 4],
}

/// Reads an attribute's value. Errors: where it is not of the type's size.
fn value<T: Copy>(from: *const c_void, bytes: usize) -> Result<T, c_uint> {
    if from.is_null() || bytes != size_of::<T>() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and the caller passes so many bytes.
    Ok(unsafe { from.cast::<T>().read_unaligned() })
}

fn matmul_attribute(
    operation: *mut Operation,
    attribute: c_int,
    from: *const c_void,
    bytes: usize,
) -> Result<(), c_uint> {
    // SAFETY: made by `handle::make` and not destroyed yet, as cublasLt.h asks.
    let operation = unsafe { operation.as_mut() }.ok_or(INVALID_VALUE)?;
    match attribute {
        3 => operation.transpose_a = value(from, bytes)?,
        4 => operation.transpose_b = value(from, bytes)?,
        7 => operation.epilogue = value(from, bytes)?,
        8 => operation.bias = value(from, bytes)?,
        _ => return Err(NOT_SUPPORTED),
    }
    Ok(())
}

fn matrix_attribute(
    matrix: *mut Matrix,
    attribute: c_int,
    from: *const c_void,
    bytes: usize,
) -> Result<(), c_uint> {
    // SAFETY: made by `handle::make` and not destroyed yet, as cublasLt.h asks.
    let matrix = unsafe { matrix.as_mut() }.ok_or(INVALID_VALUE)?;
    match attribute {
        5 => matrix.batch = value(from, bytes)?,
        6 => matrix.stride = value(from, bytes)?,
        _ => return Err(NOT_SUPPORTED),
    }
    Ok(())
}

exported! {
    /// Starts the library.
    fn cublasLtCreate(handle: *mut *mut u8) {
        handle::make(INVALID_VALUE, handle, 0)
    }

    /// Ends it.
    fn cublasLtDestroy(handle: *mut u8) {
        handle::drop(INVALID_VALUE, handle)
    }

    /// A product's description.
    fn cublasLtMatmulDescCreate(operation: *mut *mut Operation, compute: c_int, scale: c_int) {
        if scale != FLOAT || ![COMPUTE_32F, COMPUTE_TF32].contains(&compute) {
            return NOT_SUPPORTED;
        }
        handle::make(INVALID_VALUE, operation, Operation {
            compute,
            transpose_a: 0,
            transpose_b: 0,
            epilogue: EPILOGUE_DEFAULT,
            bias: 0,
        })
    }

    /// Sets a part of it.
    fn cublasLtMatmulDescSetAttribute(operation: *mut Operation, attribute: c_int, from: *const c_void, bytes: usize) {
        matmul_attribute(operation, attribute, from, bytes).err().unwrap_or(0)
    }

    /// Drops it.
    fn cublasLtMatmulDescDestroy(operation: *mut Operation) {
        handle::drop(INVALID_VALUE, operation)
    }

    /// A matrix's description.
    fn cublasLtMatrixLayoutCreate(matrix: *mut *mut Matrix, kind: c_int, rows: u64, columns: u64, leading: i64) {
        if ![FLOAT, BFLOAT16].contains(&kind) {
            return NOT_SUPPORTED;
        }
        if rows == 0 || columns == 0 || leading < rows as i64 {
            return INVALID_VALUE;
        }
        handle::make(INVALID_VALUE, matrix, Matrix { kind, rows, columns, leading, batch: 1, stride: 0 })
    }

    /// Sets a part of it.
    fn cublasLtMatrixLayoutSetAttribute(matrix: *mut Matrix, attribute: c_int, from: *const c_void, bytes: usize) {
        matrix_attribute(matrix, attribute, from, bytes).err().unwrap_or(0)
    }

    /// Drops it.
    fn cublasLtMatrixLayoutDestroy(matrix: *mut Matrix) {
        handle::drop(INVALID_VALUE, matrix)
    }

    /// What to look for in an algorithm.
    fn cublasLtMatmulPreferenceCreate(preference: *mut *mut u8) {
        handle::make(INVALID_VALUE, preference, 0)
    }

    /// Sets a part of it; the one algorithm here fits every wish.
    fn cublasLtMatmulPreferenceSetAttribute(_preference: *mut u8, _attribute: c_int, _from: *const c_void, _bytes: usize) {
        0
    }

    /// Drops it.
    fn cublasLtMatmulPreferenceDestroy(preference: *mut u8) {
        handle::drop(INVALID_VALUE, preference)
    }

    /// The algorithms for a product: one.
    fn cublasLtMatmulAlgoGetHeuristic(
        _handle: *mut u8, _operation: *const Operation, _a: *const Matrix, _b: *const Matrix,
        _c: *const Matrix, _d: *const Matrix, _preference: *const u8, wanted: c_int,
        results: *mut Heuristic, found: *mut c_int
    ) {
        if wanted < 1 || results.is_null() || found.is_null() {
            return INVALID_VALUE;
        }
        // SAFETY: not null, and the caller passes places for at least one result and a number.
        unsafe {
            results.write(Heuristic {
                algorithm: [1; 8],
                workspace_bytes: 0,
                state: 0,
                waves: 1.0,
                reserved: [0; 4],
            });
            found.write(1);
        }
        0
    }

    /// Gives a product to a stream.
    fn cublasLtMatmul(
        _handle: *mut u8, operation: *const Operation, alpha: *const f32, a: u64,
        a_matrix: *const Matrix, b: u64, b_matrix: *const Matrix, beta: *const f32, c: u64,
        c_matrix: *const Matrix, d: u64, d_matrix: *const Matrix, _algorithm: *const c_void,
        _workspace: u64, _workspace_bytes: usize, stream: u64
    ) {
        // SAFETY: made by `handle::make` and not destroyed yet, and the factors are in host memory.
        let parts = unsafe {
            (operation.as_ref(), alpha.as_ref(), beta.as_ref(), a_matrix.as_ref(), b_matrix.as_ref(), c_matrix.as_ref(), d_matrix.as_ref())
        };
        let (Some(operation), Some(alpha), Some(beta), Some(am), Some(bm), Some(cm), Some(dm)) = parts else {
            return INVALID_VALUE;
        };
        let of = |matrix: &Matrix, transposed: i32| match transposed {
            0 => (matrix.rows, matrix.columns),
            _ => (matrix.columns, matrix.rows),
        };
        let ((m, k), (inner, n)) = (of(am, operation.transpose_a), of(bm, operation.transpose_b));
        let batches = [am.batch, bm.batch, cm.batch];
        // A float32 product has a float32 result.
        if am.kind != bm.kind || cm.kind != dm.kind || (am.kind == FLOAT && dm.kind != FLOAT) {
            return NOT_SUPPORTED;
        }
        if k != inner || (m, n) != (dm.rows, dm.columns) || (m, n) != (cm.rows, cm.columns) || batches != [dm.batch; 3] {
            return INVALID_VALUE;
        }
        let product = Product {
            operation: *operation,
            alpha: *alpha,
            beta: *beta,
            a: (a, *am),
            b: (b, *bm),
            c: (c, *cm),
            d: (d, *dm),
        };
        if push_call("cublasLtMatmul", stream, Arc::new(product)) == 0 { 0 } else { EXECUTION_FAILED }
    }
}
