//! The functions of cuDNN that convolutions take, as `cudnn_graph.h`, `cudnn_ops.h` and
//! `cudnn_cnn.h` declare them: float32 or bfloat16, row-major, one algorithm for each direction.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

use crate::cuda::{Call, push_call};
use crate::half::{narrowed, widened};
use crate::handle;

const BAD_PARAM: c_uint = 2000;
const EXECUTION_FAILED: c_uint = 5000;
/// `CUDNN_TENSOR_NCHW`, `CUDNN_DATA_FLOAT`, `CUDNN_DATA_BFLOAT16` and `CUDNN_CROSS_CORRELATION`.
const ROW_MAJOR: c_int = 0;
const FLOAT: c_int = 0;
const BFLOAT16: c_int = 9;
const CROSS_CORRELATION: c_int = 1;
/// `CUDNN_DETERMINISTIC`.
const DETERMINISTIC: c_uint = 1;

type Sizes = [c_int; 4];

/// A tensor's or a filter's description.
#[derive(Clone, Copy, Default)]
pub struct Tensor {
    kind: c_int,
    sizes: Sizes,
}

impl Tensor {
    fn bytes(&self) -> usize {
        count(self.sizes) * if self.kind == BFLOAT16 { 2 } else { 4 }
    }

    /// The elements from an address on.
    ///
    /// # Safety
    ///
    /// They lie in memory that was given.
    unsafe fn read(&self, at: u64) -> Vec<f32> {
        let count = count(self.sizes);
        // SAFETY: the caller's promise.
        unsafe {
            if self.kind == BFLOAT16 {
                let bits = std::slice::from_raw_parts(at as *const u16, count);
                bits.iter().map(|&bits| widened(bits)).collect()
            } else {
                std::slice::from_raw_parts(at as *const f32, count).to_vec()
            }
        }
    }

    /// Writes the elements from an address on.
    ///
    /// # Safety
    ///
    /// They lie in memory that was given, which nothing else uses meanwhile.
    unsafe fn write(&self, at: u64, values: impl Iterator<Item = f32>) {
        let count = count(self.sizes);
        // SAFETY: the caller's promise.
        unsafe {
            if self.kind == BFLOAT16 {
                let to = std::slice::from_raw_parts_mut(at as *mut u16, count);
                to.iter_mut()
                    .zip(values)
                    .for_each(|(to, value)| *to = narrowed(value));
            } else {
                let to = std::slice::from_raw_parts_mut(at as *mut f32, count);
                to.iter_mut()
                    .zip(values)
                    .for_each(|(to, value)| *to = value);
            }
        }
    }
}

/// `cudnnConvolutionDescriptor_t`'s contents; pairs are vertical and horizontal.
#[derive(Clone, Copy, Default)]
pub struct Description {
    padding: [c_int; 2],
    stride: [c_int; 2],
    dilation: [c_int; 2],
    groups: c_int,
}

/// `cudnnConvolution*AlgoPerf_t`.
#[repr(C)]
pub struct Performance {
    algorithm: c_uint,
    status: c_uint,
    milliseconds: f32,
    memory: usize,
    determinism: c_uint,
    math: c_uint,
    reserved: [c_int; 3],
}

#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Input,
    Weight,
}

/// A convolution given to a stream.
struct Convolution {
    direction: Direction,
    x: (u64, Tensor),
    weight: (u64, Tensor),
    y: (u64, Tensor),
    description: Description,
}

fn count(sizes: Sizes) -> usize {
    sizes.iter().map(|&size| size as usize).product()
}

fn at([_, b, c, d]: Sizes, index: [usize; 4]) -> usize {
    ((index[0] * b as usize + index[1]) * c as usize + index[2]) * d as usize + index[3]
}

impl Call for Convolution {
    fn ranges(&self) -> Vec<(u64, usize)> {
        [self.x, self.weight, self.y]
            .map(|(at, tensor)| (at, tensor.bytes()))
            .to_vec()
    }

    fn run(&self) {
        // SAFETY: the ranges were checked when the convolution was given to its stream, and one call
        // runs at a time.
        let read = |(at, tensor): (u64, Tensor)| unsafe { tensor.read(at) };
        let (x, weight, y) = (read(self.x), read(self.weight), read(self.y));
        let (to, result) = match self.direction {
            Direction::Forward => self.y,
            Direction::Input => self.x,
            Direction::Weight => self.weight,
        };
        let mut sums = vec![0.0f64; count(result.sizes)];
        let sizes = [self.x.1.sizes, self.weight.1.sizes, self.y.1.sizes];
        let [batch, channels, height, width] = sizes[0];
        let [out, per_group, kernel_height, kernel_width] = sizes[1];
        let [_, _, rows, columns] = sizes[2];
        let d = &self.description;
        let out_per_group = out / d.groups;
        for (n, o, i, j) in grid([batch, out, rows, columns]) {
            for (_, c, a, b) in grid([1, per_group, kernel_height, kernel_width]) {
                let row = i * d.stride[0] + a * d.dilation[0] - d.padding[0];
                let column = j * d.stride[1] + b * d.dilation[1] - d.padding[1];
                if row < 0 || row >= height || column < 0 || column >= width {
                    continue;
                }
                let channel = o / out_per_group * per_group + c;
                debug_assert!(channel < channels);
                let index = |v: [c_int; 4]| v.map(|v| v as usize);
                let at_x = at(sizes[0], index([n, channel, row, column]));
                let at_weight = at(sizes[1], index([o, c, a, b]));
                let at_y = at(sizes[2], index([n, o, i, j]));
                let (element, product) = match self.direction {
                    Direction::Forward => (at_y, (x[at_x], weight[at_weight])),
                    Direction::Input => (at_x, (y[at_y], weight[at_weight])),
                    Direction::Weight => (at_weight, (x[at_x], y[at_y])),
                };
                sums[element] += f64::from(product.0) * f64::from(product.1);
            }
        }
        // SAFETY: as above.
        unsafe { result.write(to, sums.into_iter().map(|sum| sum as f32)) };
    }
}

fn grid([a, b, c, d]: Sizes) -> impl Iterator<Item = (c_int, c_int, c_int, c_int)> {
    (0..a).flat_map(move |i| {
        (0..b).flat_map(move |j| (0..c).flat_map(move |k| (0..d).map(move |l| (i, j, k, l))))
    })
}

fn found(algorithm: c_uint, wanted: c_int, count: *mut c_int, results: *mut Performance) -> c_uint {
    if wanted < 1 {
        return BAD_PARAM;
    }
    let best = Performance {
        algorithm,
        status: 0,
        milliseconds: -1.0,
        memory: 0,
        determinism: DETERMINISTIC,
        math: 0,
        reserved: [0; 3],
    };
    handle::put(BAD_PARAM, results, best).max(handle::put(BAD_PARAM, count, 1))
}

/// The sizes of y are those that x, weight and the description give.
fn fits(x: Sizes, weight: Sizes, y: Sizes, d: &Description) -> bool {
    let windows = |size: c_int, kernel: c_int, axis: usize| {
        (size + 2 * d.padding[axis] - d.dilation[axis] * (kernel - 1) - 1) / d.stride[axis] + 1
    };
    d.groups > 0
        && weight[1] * d.groups == x[1]
        && y == [
            x[0],
            weight[0],
            windows(x[2], weight[2], 0),
            windows(x[3], weight[3], 1),
        ]
}

/// Gives a convolution to its handle's stream.
#[allow(clippy::too_many_arguments, reason = "the operands, one each")]
fn convolve(
    direction: Direction,
    handle: *const u64,
    factors: (*const f32, *const f32),
    x: (*const Tensor, u64),
    weight: (*const Tensor, u64),
    y: (*const Tensor, u64),
    description: *const Description,
    algorithm: c_uint,
) -> c_uint {
    // SAFETY: made by `handle::make` and not destroyed yet, and the factors are in host memory.
    let parts = unsafe {
        (
            handle.as_ref(),
            factors.0.as_ref(),
            factors.1.as_ref(),
            x.0.as_ref(),
            weight.0.as_ref(),
            y.0.as_ref(),
            description.as_ref(),
        )
    };
    let (Some(&stream), Some(&alpha), Some(&beta), Some(&xs), Some(&ws), Some(&ys), Some(&d)) =
        parts
    else {
        return BAD_PARAM;
    };
    let alike = xs.kind == ws.kind && xs.kind == ys.kind;
    let fits = alike && fits(xs.sizes, ws.sizes, ys.sizes, &d);
    if alpha != 1.0 || beta != 0.0 || algorithm != 1 || !fits {
        return BAD_PARAM;
    }
    let convolution = Convolution {
        direction,
        x: (x.1, xs),
        weight: (weight.1, ws),
        y: (y.1, ys),
        description: d,
    };
    match push_call("cudnnConvolution", stream, Arc::new(convolution)) {
        0 => 0,
        _ => EXECUTION_FAILED,
    }
}

exported! {
    /// Starts the library.
    fn cudnnCreate(handle: *mut *mut u64) {
        handle::make(BAD_PARAM, handle, 0)
    }

    /// Ends it.
    fn cudnnDestroy(handle: *mut u64) {
        handle::drop(BAD_PARAM, handle)
    }

    /// The stream of later calls.
    fn cudnnSetStream(handle: *mut u64, stream: u64) {
        handle::put(BAD_PARAM, handle, stream)
    }

    /// A tensor's description.
    fn cudnnCreateTensorDescriptor(tensor: *mut *mut Tensor) {
        handle::make(BAD_PARAM, tensor, Tensor::default())
    }

    /// Its sizes.
    fn cudnnSetTensor4dDescriptor(tensor: *mut Tensor, format: c_int, kind: c_int, n: c_int, c: c_int, h: c_int, w: c_int) {
        if format != ROW_MAJOR || ![FLOAT, BFLOAT16].contains(&kind) || [n, c, h, w].iter().any(|&size| size < 1) {
            return BAD_PARAM;
        }
        handle::put(BAD_PARAM, tensor, Tensor { kind, sizes: [n, c, h, w] })
    }

    /// Drops it.
    fn cudnnDestroyTensorDescriptor(tensor: *mut Tensor) {
        handle::drop(BAD_PARAM, tensor)
    }

    /// A filter's description.
    fn cudnnCreateFilterDescriptor(filter: *mut *mut Tensor) {
        handle::make(BAD_PARAM, filter, Tensor::default())
    }

    /// Its sizes.
    fn cudnnSetFilter4dDescriptor(filter: *mut Tensor, kind: c_int, format: c_int, k: c_int, c: c_int, h: c_int, w: c_int) {
        cudnnSetTensor4dDescriptor(filter, format, kind, k, c, h, w)
    }

    /// Drops it.
    fn cudnnDestroyFilterDescriptor(filter: *mut Tensor) {
        handle::drop(BAD_PARAM, filter)
    }

    /// A convolution's description.
    fn cudnnCreateConvolutionDescriptor(convolution: *mut *mut Description) {
        handle::make(BAD_PARAM, convolution, Description { groups: 1, ..Description::default() })
    }

    /// Its attributes.
    fn cudnnSetConvolution2dDescriptor(
        convolution: *mut Description, padding_height: c_int, padding_width: c_int,
        stride_height: c_int, stride_width: c_int, dilation_height: c_int, dilation_width: c_int,
        mode: c_int, kind: c_int
    ) {
        if mode != CROSS_CORRELATION || kind != FLOAT {
            return BAD_PARAM;
        }
        handle::put(BAD_PARAM, convolution, Description {
            padding: [padding_height, padding_width],
            stride: [stride_height, stride_width],
            dilation: [dilation_height, dilation_width],
            groups: 1,
        })
    }

    /// Its groups.
    fn cudnnSetConvolutionGroupCount(convolution: *mut Description, groups: c_int) {
        // SAFETY: made by `handle::make` and not destroyed yet, as cuDNN asks.
        match unsafe { convolution.as_mut() } {
            Some(convolution) => convolution.groups = groups,
            None => return BAD_PARAM,
        }
        0
    }

    /// Which units compute it; here it makes no difference.
    fn cudnnSetConvolutionMathType(_convolution: *mut Description, _math: c_int) {
        0
    }

    /// Drops it.
    fn cudnnDestroyConvolutionDescriptor(convolution: *mut Description) {
        handle::drop(BAD_PARAM, convolution)
    }

    /// The algorithms for y: number 1.
    fn cudnnGetConvolutionForwardAlgorithm_v7(
        _handle: *mut u64, _x: *const Tensor, _weight: *const Tensor, _convolution: *const Description,
        _y: *const Tensor, wanted: c_int, count: *mut c_int, results: *mut Performance
    ) {
        found(1, wanted, count, results)
    }

    /// The algorithms for the gradient of x: number 1.
    fn cudnnGetConvolutionBackwardDataAlgorithm_v7(
        _handle: *mut u64, _weight: *const Tensor, _y: *const Tensor, _convolution: *const Description,
        _x: *const Tensor, wanted: c_int, count: *mut c_int, results: *mut Performance
    ) {
        found(1, wanted, count, results)
    }

    /// The algorithms for the gradient of the weight: number 1.
    fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(
        _handle: *mut u64, _x: *const Tensor, _y: *const Tensor, _convolution: *const Description,
        _weight: *const Tensor, wanted: c_int, count: *mut c_int, results: *mut Performance
    ) {
        found(1, wanted, count, results)
    }

    /// y of x and weight.
    fn cudnnConvolutionForward(
        handle: *mut u64, alpha: *const f32, x_sizes: *const Tensor, x: u64,
        weight_sizes: *const Tensor, weight: u64, convolution: *const Description,
        algorithm: c_uint, _workspace: *mut c_void, _workspace_bytes: usize, beta: *const f32,
        y_sizes: *const Tensor, y: u64
    ) {
        convolve(Direction::Forward, handle, (alpha, beta), (x_sizes, x), (weight_sizes, weight), (y_sizes, y), convolution, algorithm)
    }

    /// The gradient of x, of that of y and weight.
    fn cudnnConvolutionBackwardData(
        handle: *mut u64, alpha: *const f32, weight_sizes: *const Tensor, weight: u64,
        y_sizes: *const Tensor, y: u64, convolution: *const Description, algorithm: c_uint,
        _workspace: *mut c_void, _workspace_bytes: usize, beta: *const f32, x_sizes: *const Tensor, x: u64
    ) {
        convolve(Direction::Input, handle, (alpha, beta), (x_sizes, x), (weight_sizes, weight), (y_sizes, y), convolution, algorithm)
    }

    /// The gradient of the weight, of x and that of y.
    fn cudnnConvolutionBackwardFilter(
        handle: *mut u64, alpha: *const f32, x_sizes: *const Tensor, x: u64, y_sizes: *const Tensor,
        y: u64, convolution: *const Description, algorithm: c_uint, _workspace: *mut c_void,
        _workspace_bytes: usize, beta: *const f32, weight_sizes: *const Tensor, weight: u64
    ) {
        convolve(Direction::Weight, handle, (alpha, beta), (x_sizes, x), (weight_sizes, weight), (y_sizes, y), convolution, algorithm)
    }
}
