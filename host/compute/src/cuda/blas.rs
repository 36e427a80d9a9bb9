//! Matrix products through cuBLASLt, each with its description and algorithm found once.
//!
//! Matrices here are in row-major order, which cuBLASLt sees as their transposes: for C = A·B it
//! computes Cᵀ = Bᵀ·Aᵀ.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::driver::{Context, LIBRARY_WORKSPACE_BYTES, Stream};
use crate::error::Error;

fn failed(doing: &str, error: CublasError) -> Error {
    Error::new("device.failed", format!("{doing}: {:?}", error.0))
}

/// The library.
#[derive(Debug)]
pub(super) struct Blas {
    _context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
}

// SAFETY: cuBLASLt's handles may be used from any thread.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Blas {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, Error> {
        let handle = result::create_handle().map_err(|e| failed("starting cuBLASLt", e))?;
        Ok(Self {
            _context: Arc::clone(context),
            handle,
        })
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let _dropped = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Sizes of a product of row-major matrices: out `[batch, m, n]` = a·b (+ bias `[n]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) m: u64,
    pub(super) n: u64,
    pub(super) k: u64,
    pub(super) batch: u64,
    /// Elements from one matrix to the next; 0 uses one for all.
    pub(super) stride_a: u64,
    pub(super) stride_b: u64,
    /// a is stored `[k, m]`, b `[n, k]`.
    pub(super) transpose_a: bool,
    pub(super) transpose_b: bool,
    /// Whether a bias is added, of the result's type.
    pub(super) bias: bool,
    /// Of a and b.
    pub(super) operands: Element,
    pub(super) result: Element,
}

/// The type of a matrix's elements; products are added up in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Element {
    Float32,
    Bfloat16,
}

impl Element {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 => 2,
        }
    }

    fn kind(self) -> sys::cudaDataType_t {
        match self {
            Self::Float32 => sys::cudaDataType_t::CUDA_R_32F,
            Self::Bfloat16 => sys::cudaDataType_t::CUDA_R_16BF,
        }
    }
}

/// Where a product's matrices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operands {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) out: u64,
    /// 0 where there is none.
    pub(super) bias: u64,
}

/// The bytes that an address and a distance are both multiples of, up to 256.
fn alignment(address: u64, distance: u64) -> u32 {
    1 << (address | distance | 256).trailing_zeros()
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Columns of a row-major matrix are cuBLASLt's rows.
    fn new(
        element: Element,
        (rows, columns): (u64, u64),
        batch: u64,
        stride: u64,
    ) -> Result<Self, Error> {
        let doing = |e| failed("describing a matrix", e);
        let kind = element.kind();
        let layout = result::create_matrix_layout(kind, columns, rows, columns as i64);
        let layout = Self(layout.map_err(doing)?);
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let count =
            i32::try_from(batch).map_err(|_| Error::limit("too many matrices in a product"))?;
        let stride = stride as i64;
        // SAFETY: the layout lives, and each value has its attribute's type.
        unsafe {
            let batch = Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
            result::set_matrix_layout_attribute(layout.0, batch, (&raw const count).cast(), 4)
                .map_err(doing)?;
            let offset = Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            result::set_matrix_layout_attribute(layout.0, offset, (&raw const stride).cast(), 8)
                .map_err(doing)?;
        }
        Ok(layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let _dropped = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made in `Product::new`.
        let _dropped = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `Product::new`.
        let _dropped = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// A product ready to run.
pub(super) struct Product {
    blas: Arc<Blas>,
    description: Description,
    a: Layout,
    b: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    operands: Operands,
    workspace: u64,
}

// SAFETY: cuBLASLt's descriptions are plain memory, owned here.
unsafe impl Send for Product {}

impl Product {
    /// Describes a product and asks for the best algorithm. `tf32` rounds inputs to 10 bits of
    /// fraction where matrix units are faster for it.
    pub(super) fn new(
        blas: &Arc<Blas>,
        shape: Shape,
        operands: Operands,
        workspace: u64,
        tf32: bool,
    ) -> Result<Self, Error> {
        let doing = |e| failed("preparing a matrix product", e);
        let compute = if tf32 {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32
        } else {
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F
        };
        let description = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F);
        let description = Description(description.map_err(doing)?);
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the description lives, and callers pass a value of the attribute's type.
            unsafe { result::set_matmul_desc_attribute(description.0, attribute, value, bytes) }
                .map_err(doing)
        };
        // cuBLASLt's first operand is b, its second a.
        let first = i32::from(shape.transpose_b);
        let second = i32::from(shape.transpose_a);
        set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            (&raw const first).cast(),
            4,
        )?;
        set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            (&raw const second).cast(),
            4,
        )?;
        use sys::cublasLtEpilogue_t as Epilogue;
        let epilogue = if shape.bias {
            Epilogue::CUBLASLT_EPILOGUE_BIAS
        } else {
            Epilogue::CUBLASLT_EPILOGUE_DEFAULT
        } as u32;
        set(
            Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
            (&raw const epilogue).cast(),
            4,
        )?;
        if shape.bias {
            let bias = operands.bias;
            set(
                Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                (&raw const bias).cast(),
                8,
            )?;
        }
        let Shape { m, n, k, batch, .. } = shape;
        let a = if shape.transpose_a { (k, m) } else { (m, k) };
        let b = if shape.transpose_b { (n, k) } else { (k, n) };
        let a = Layout::new(shape.operands, a, batch, shape.stride_a)?;
        let b = Layout::new(shape.operands, b, batch, shape.stride_b)?;
        let out = Layout::new(shape.result, (m, n), batch, m * n)?;
        let preference = Preference(result::create_matmul_pref().map_err(doing)?);
        // The library takes addresses for multiples of 256 bytes unless told.
        use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
        let alignments = [
            (
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                operands.b,
                shape.stride_b * shape.operands.bytes(),
            ),
            (
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                operands.a,
                shape.stride_a * shape.operands.bytes(),
            ),
            (
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                operands.out,
                m * n * shape.result.bytes(),
            ),
            (
                Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                operands.out,
                m * n * shape.result.bytes(),
            ),
        ];
        for (wish, address, stride) in alignments {
            let stride = if batch > 1 { stride } else { 0 };
            let bytes = alignment(address, stride);
            // SAFETY: the preference lives, and the value is a number of 32 bits.
            unsafe {
                result::set_matmul_pref_attribute(preference.0, wish, (&raw const bytes).cast(), 4)
            }
            .map_err(doing)?;
        }
        let most = LIBRARY_WORKSPACE_BYTES as usize;
        let limit = Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: the preference lives, and the value is a size; the descriptions live as well.
        let found = unsafe {
            result::set_matmul_pref_attribute(preference.0, limit, (&raw const most).cast(), 8)
                .map_err(doing)?;
            result::get_matmul_algo_heuristic(
                blas.handle,
                description.0,
                b.0,
                a.0,
                out.0,
                out.0,
                preference.0,
            )
        };
        let algorithm = found.map_err(doing)?.algo;
        let blas = Arc::clone(blas);
        Ok(Self {
            blas,
            description,
            a,
            b,
            out,
            algorithm,
            operands,
            workspace,
        })
    }

    /// Gives the product to a stream.
    pub(super) fn run(&self, stream: &Stream) -> Result<(), Error> {
        let (alpha, beta) = (1.0f32, 0.0f32);
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: the descriptions live; the operands lie in the session's memory with the sizes
        // described, and the workspace has as many bytes as the algorithm was allowed.
        let given = unsafe {
            result::matmul(
                self.blas.handle,
                self.description.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(self.operands.b),
                self.b.0,
                pointer(self.operands.a),
                self.a.0,
                pointer(self.operands.out),
                self.out.0,
                pointer(self.operands.out).cast_mut(),
                self.out.0,
                &raw const self.algorithm,
                pointer(self.workspace).cast_mut(),
                LIBRARY_WORKSPACE_BYTES as usize,
                stream.raw.cast(),
            )
        };
        given.map_err(|e| failed("a matrix product", e))
    }
}

#[cfg(test)]
mod tests {
    use super::alignment;

    #[test]
    fn alignments_are_of_address_and_distance() {
        assert_eq!(alignment(0x7f00_0000_1000, 0), 256);
        assert_eq!(alignment(0x7f00_0000_1000, 12 * 4), 16);
        assert_eq!(alignment(0x7f00_0000_1004, 64), 4);
    }
}
