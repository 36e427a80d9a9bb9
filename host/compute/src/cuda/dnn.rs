//! Convolutions through cuDNN, where it is installed: each with its descriptions and algorithm
//! found once. Only algorithms that give the same bits in every run are used.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cudnn::sys;

use super::driver::{Context, Stream};
use crate::error::Error;

/// Algorithms that are looked at for one convolution.
const ALGORITHMS: usize = 8;

fn check(doing: &str, status: sys::cudnnStatus_t) -> Result<(), Error> {
    match status {
        sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS => Ok(()),
        other => Err(Error::new("device.failed", format!("{doing}: {other:?}"))),
    }
}

/// The library.
#[derive(Debug)]
pub(super) struct Dnn {
    _context: Arc<Context>,
    handle: sys::cudnnHandle_t,
}

// SAFETY: a handle may be used from any thread, one at a time: a session's calls are.
unsafe impl Send for Dnn {}
// SAFETY: as above; sessions of one GPU belong to one task, whose calls come one after another.
unsafe impl Sync for Dnn {}

impl Dnn {
    /// Starts the library; none where it is not installed or does not start, as there are kernels
    /// of our own for everything that it does.
    pub(super) fn new(context: &Arc<Context>) -> Option<Self> {
        // SAFETY: loading NVIDIA's own library runs its initialisers only.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        let mut handle = std::ptr::null_mut();
        // SAFETY: a place for a handle.
        let status = unsafe { sys::cudnnCreate(&raw mut handle) };
        check("starting cuDNN", status).ok()?;
        Some(Self {
            _context: Arc::clone(context),
            handle,
        })
    }
}

impl Drop for Dnn {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let _dropped = unsafe { sys::cudnnDestroy(self.handle) };
    }
}

/// What is computed of x, weight and y.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// y of x and weight.
    Forward,
    /// The gradient of x, of that of y and weight.
    Input,
    /// The gradient of the weight, of x and that of y.
    Weight,
}

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) direction: Direction,
    /// `[batch, channels, height, width]`.
    pub(super) x: [i32; 4],
    /// `[out, channels/groups, height, width]`.
    pub(super) weight: [i32; 4],
    /// `[batch, out, height, width]`.
    pub(super) y: [i32; 4],
    /// Vertical and horizontal.
    pub(super) padding: [i32; 2],
    pub(super) stride: [i32; 2],
    pub(super) dilation: [i32; 2],
    pub(super) groups: i32,
    /// Whether all three are bfloat16, added up in float32.
    pub(super) bfloat16: bool,
}

impl Shape {
    fn element(&self) -> sys::cudnnDataType_t {
        if self.bfloat16 {
            sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16
        } else {
            sys::cudnnDataType_t::CUDNN_DATA_FLOAT
        }
    }
}

/// Where x, weight and y, or their gradients, are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Operands {
    pub(super) x: u64,
    pub(super) weight: u64,
    pub(super) y: u64,
}

/// `cudnnConvolution*AlgoPerf_t`, with numbers in place of enumerations, which newer releases
/// extend.
#[repr(C)]
#[derive(Clone, Copy)]
struct Performance {
    algorithm: u32,
    status: u32,
    milliseconds: f32,
    memory: usize,
    determinism: u32,
    math: u32,
    reserved: [i32; 3],
}

struct Tensor(sys::cudnnTensorDescriptor_t);

impl Tensor {
    fn new([n, c, h, w]: [i32; 4], element: sys::cudnnDataType_t) -> Result<Self, Error> {
        let doing = "describing a tensor";
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for a description.
        check(doing, unsafe {
            sys::cudnnCreateTensorDescriptor(&raw mut raw)
        })?;
        let tensor = Self(raw);
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        // SAFETY: the description was just made.
        check(doing, unsafe {
            sys::cudnnSetTensor4dDescriptor(raw, format, element, n, c, h, w)
        })?;
        Ok(tensor)
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let _dropped = unsafe { sys::cudnnDestroyTensorDescriptor(self.0) };
    }
}

struct Filter(sys::cudnnFilterDescriptor_t);

impl Filter {
    fn new([k, c, h, w]: [i32; 4], element: sys::cudnnDataType_t) -> Result<Self, Error> {
        let doing = "describing a filter";
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for a description.
        check(doing, unsafe {
            sys::cudnnCreateFilterDescriptor(&raw mut raw)
        })?;
        let filter = Self(raw);
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        // SAFETY: the description was just made.
        check(doing, unsafe {
            sys::cudnnSetFilter4dDescriptor(raw, element, format, k, c, h, w)
        })?;
        Ok(filter)
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let _dropped = unsafe { sys::cudnnDestroyFilterDescriptor(self.0) };
    }
}

struct Description(sys::cudnnConvolutionDescriptor_t);

impl Description {
    fn new(shape: &Shape, tf32: bool) -> Result<Self, Error> {
        let doing = "describing a convolution";
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for a description.
        check(doing, unsafe {
            sys::cudnnCreateConvolutionDescriptor(&raw mut raw)
        })?;
        let description = Self(raw);
        let ([ph, pw], [sh, sw], [dh, dw]) = (shape.padding, shape.stride, shape.dilation);
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let float = sys::cudnnDataType_t::CUDNN_DATA_FLOAT;
        // The default may use TF32, but no matrix units for bfloat16 (cuDNN API, cudnnMathType_t).
        let math = match (shape.bfloat16, tf32) {
            (true, _) => sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
            (false, true) => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
            (false, false) => sys::cudnnMathType_t::CUDNN_FMA_MATH,
        };
        // SAFETY: the description was just made.
        unsafe {
            check(
                doing,
                sys::cudnnSetConvolution2dDescriptor(raw, ph, pw, sh, sw, dh, dw, mode, float),
            )?;
            check(doing, sys::cudnnSetConvolutionGroupCount(raw, shape.groups))?;
            check(doing, sys::cudnnSetConvolutionMathType(raw, math))?;
        }
        Ok(description)
    }

    /// Computes as an algorithm was found with: a `cudnnMathType_t`.
    fn permit(&self, math: u32) -> Result<(), Error> {
        use sys::cudnnMathType_t as Math;
        let math = match math {
            1 => Math::CUDNN_TENSOR_OP_MATH,
            2 => Math::CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION,
            3 => Math::CUDNN_FMA_MATH,
            _ => Math::CUDNN_DEFAULT_MATH,
        };
        // SAFETY: the description lives.
        let status = unsafe { sys::cudnnSetConvolutionMathType(self.0, math) };
        check("describing a convolution", status)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        let _dropped = unsafe { sys::cudnnDestroyConvolutionDescriptor(self.0) };
    }
}

/// A convolution ready to run.
pub(super) struct Convolution {
    dnn: Arc<Dnn>,
    x: Tensor,
    weight: Filter,
    y: Tensor,
    description: Description,
    algorithm: Algorithm,
    operands: Operands,
    /// Address and bytes.
    workspace: (u64, u64),
}

// SAFETY: cuDNN's descriptions are plain memory, owned here.
unsafe impl Send for Convolution {}

enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Input(sys::cudnnConvolutionBwdDataAlgo_t),
    Weight(sys::cudnnConvolutionBwdFilterAlgo_t),
}

impl Algorithm {
    /// The algorithm of a number of cudnn_cnn.h. Transforms by Fourier are left out: they take much
    /// memory.
    fn of(direction: Direction, number: u32) -> Option<Self> {
        use sys::cudnnConvolutionBwdDataAlgo_t as D;
        use sys::cudnnConvolutionBwdFilterAlgo_t as W;
        use sys::cudnnConvolutionFwdAlgo_t as F;
        Some(match (direction, number) {
            (Direction::Forward, 0) => Self::Forward(F::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM),
            (Direction::Forward, 1) => {
                Self::Forward(F::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM)
            }
            (Direction::Forward, 2) => Self::Forward(F::CUDNN_CONVOLUTION_FWD_ALGO_GEMM),
            (Direction::Forward, 6) => Self::Forward(F::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD),
            (Direction::Forward, 7) => {
                Self::Forward(F::CUDNN_CONVOLUTION_FWD_ALGO_WINOGRAD_NONFUSED)
            }
            (Direction::Input, 1) => Self::Input(D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1),
            (Direction::Input, 4) => Self::Input(D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD),
            (Direction::Input, 5) => {
                Self::Input(D::CUDNN_CONVOLUTION_BWD_DATA_ALGO_WINOGRAD_NONFUSED)
            }
            (Direction::Weight, 1) => Self::Weight(W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1),
            (Direction::Weight, 5) => {
                Self::Weight(W::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_WINOGRAD_NONFUSED)
            }
            _ => return None,
        })
    }
}

impl Convolution {
    /// Describes a convolution and asks for the best algorithm. Errors: `device.failed` where there
    /// is none that fits: then our own kernels compute it.
    pub(super) fn new(
        dnn: &Arc<Dnn>,
        shape: &Shape,
        operands: Operands,
        workspace: (u64, u64),
        tf32: bool,
    ) -> Result<Self, Error> {
        let (x, weight, y) = (
            Tensor::new(shape.x, shape.element())?,
            Filter::new(shape.weight, shape.element())?,
            Tensor::new(shape.y, shape.element())?,
        );
        let description = Description::new(shape, tf32)?;
        let empty = Performance {
            algorithm: 0,
            status: 1,
            milliseconds: 0.0,
            memory: 0,
            determinism: 0,
            math: 0,
            reserved: [0; 3],
        };
        let mut found = [empty; ALGORITHMS];
        let (mut count, most) = (0, ALGORITHMS as i32);
        let (results, number) = (found.as_mut_ptr(), &raw mut count);
        let conv = description.0;
        // SAFETY: the descriptions live, and there is room for as many results as asked for, of
        // the layout of cudnn_cnn.h.
        let status = unsafe {
            match shape.direction {
                Direction::Forward => sys::cudnnGetConvolutionForwardAlgorithm_v7(
                    dnn.handle,
                    x.0,
                    weight.0,
                    conv,
                    y.0,
                    most,
                    number,
                    results.cast(),
                ),
                Direction::Input => sys::cudnnGetConvolutionBackwardDataAlgorithm_v7(
                    dnn.handle,
                    weight.0,
                    y.0,
                    conv,
                    x.0,
                    most,
                    number,
                    results.cast(),
                ),
                Direction::Weight => sys::cudnnGetConvolutionBackwardFilterAlgorithm_v7(
                    dnn.handle,
                    x.0,
                    y.0,
                    conv,
                    weight.0,
                    most,
                    number,
                    results.cast(),
                ),
            }
        };
        check("finding a convolution's algorithm", status)?;
        let fits = |p: &&Performance| {
            let deterministic =
                p.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC as u32;
            p.status == 0 && deterministic && p.memory as u64 <= workspace.1
        };
        let count = usize::try_from(count).unwrap_or(0).min(ALGORITHMS);
        let mut fitting = found[..count].iter().filter(fits);
        let algorithm =
            fitting.find_map(|p| Some((Algorithm::of(shape.direction, p.algorithm)?, p.math)));
        let (algorithm, math) = algorithm.ok_or_else(|| {
            Error::new("device.failed", "cuDNN has no algorithm for a convolution")
        })?;
        if shape.bfloat16 {
            description.permit(math)?;
        }
        let dnn = Arc::clone(dnn);
        Ok(Self {
            dnn,
            x,
            weight,
            y,
            description,
            algorithm,
            operands,
            workspace,
        })
    }

    /// Gives the convolution to a stream.
    pub(super) fn run(&self, stream: &Stream) -> Result<(), Error> {
        let (one, zero) = (1.0f32, 0.0f32);
        let (alpha, beta): (*const c_void, *const c_void) =
            ((&raw const one).cast(), (&raw const zero).cast());
        let pointer = |address: u64| address as *mut c_void;
        let Operands { x, weight, y } = self.operands;
        let (x, weight, y) = (pointer(x), pointer(weight), pointer(y));
        let (workspace, bytes) = (pointer(self.workspace.0), self.workspace.1 as usize);
        let (handle, conv) = (self.dnn.handle, self.description.0);
        // SAFETY: the descriptions live; the operands lie in the session's memory with the sizes
        // described, and the workspace has as many bytes as the algorithm was allowed.
        let status = unsafe {
            check(
                "choosing a stream",
                sys::cudnnSetStream(handle, stream.raw.cast()),
            )?;
            match self.algorithm {
                Algorithm::Forward(algorithm) => sys::cudnnConvolutionForward(
                    handle,
                    alpha,
                    self.x.0,
                    x,
                    self.weight.0,
                    weight,
                    conv,
                    algorithm,
                    workspace,
                    bytes,
                    beta,
                    self.y.0,
                    y,
                ),
                Algorithm::Input(algorithm) => sys::cudnnConvolutionBackwardData(
                    handle,
                    alpha,
                    self.weight.0,
                    weight,
                    self.y.0,
                    y,
                    conv,
                    algorithm,
                    workspace,
                    bytes,
                    beta,
                    self.x.0,
                    x,
                ),
                Algorithm::Weight(algorithm) => sys::cudnnConvolutionBackwardFilter(
                    handle,
                    alpha,
                    self.x.0,
                    x,
                    self.y.0,
                    y,
                    conv,
                    algorithm,
                    workspace,
                    bytes,
                    beta,
                    self.weight.0,
                    weight,
                ),
            }
        };
        check("a convolution", status)
    }
}
