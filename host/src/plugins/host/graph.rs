//! `graph`: the builder's methods, each checked by `compute`.

use compute::builder::{Conv2d, Interpolation, Target, Window};
use compute::{DType, Dim, Value};
use wasmtime::component::Resource;

use super::State;
use super::error::{HostError, Result};
use crate::plugins::bindings::hangar::pipeline::{graph, types};

/// What a node of a graph is counted for, in bytes.
const NODE_BYTES: usize = 256;
/// In a reshape, the size that stands for "the rest".
const REST: u32 = u32::MAX;

/// A graph under construction, and the bytes that it is charged for.
pub struct Builder {
    pub(super) graph: compute::Builder,
    pub(super) bytes: usize,
}

impl State {
    /// Builds on a graph and pays for the nodes that it gained, beside `bytes` of data.
    fn build<T>(
        &mut self,
        builder: &Resource<Builder>,
        bytes: usize,
        build: impl FnOnce(&mut compute::Builder) -> std::result::Result<T, compute::Error>,
    ) -> Result<T> {
        self.charge(builder, bytes)?;
        let graph = &mut self.table.get_mut(builder)?.graph;
        let (nodes, constants) = (graph.nodes(), graph.constant_bytes());
        let built = build(graph)?;
        let gained = (graph.nodes() - nodes).saturating_mul(NODE_BYTES);
        let gained = gained.saturating_add(graph.constant_bytes() - constants);
        // The data given is paid for already.
        self.charge(builder, gained.saturating_sub(bytes))?;
        Ok(built)
    }

    fn charge(&mut self, builder: &Resource<Builder>, bytes: usize) -> Result<()> {
        self.charge_graph(bytes)?;
        let builder = self.table.get_mut(builder)?;
        builder.bytes = builder.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Builds one operator.
    fn operator(
        &mut self,
        builder: &Resource<Builder>,
        build: impl FnOnce(&mut compute::Builder) -> std::result::Result<Value, compute::Error>,
    ) -> Result<u32> {
        self.build(builder, 0, build).map(|value| value.0)
    }
}

/// Methods of the builder that pass values through and give one.
macro_rules! operators {
    ($($name:ident($($value:ident),+ $(; $($attribute:ident: $kind:ty),+)?);)+) => {
        $(fn $name(
            &mut self,
            builder: Resource<Builder>,
            $($value: u32,)+
            $($($attribute: $kind,)+)?
        ) -> Result<u32> {
            self.operator(&builder, |graph| graph.$name($(Value($value),)+ $($($attribute,)+)?))
        })+
    };
}

/// Methods of the builder that reduce axes.
macro_rules! reductions {
    ($($name:ident)+) => {
        $(fn $name(
            &mut self,
            builder: Resource<Builder>,
            x: u32,
            axes: Vec<u32>,
            keep: bool,
        ) -> Result<u32> {
            self.operator(&builder, |graph| graph.$name(Value(x), &axes, keep))
        })+
    };
}

/// Sizes of the contract, where 0 stands for the batch.
fn dims(shape: &[u32]) -> Vec<Dim> {
    let dim = |&size| match size {
        0 => Dim::Batch(1),
        size => Dim::Fixed(u64::from(size)),
    };
    shape.iter().map(dim).collect()
}

/// Sizes of a tensor that does not depend on the batch.
fn fixed(what: &str, shape: &[u32]) -> Result<Vec<u64>> {
    if shape.contains(&0) {
        let message = format!("{what}: {shape:?} has a size of 0, which stands for the batch");
        return Err(HostError::new("graph.shape", message));
    }
    Ok(shape.iter().map(|&size| u64::from(size)).collect())
}

fn wide(list: &[u32]) -> Vec<u64> {
    list.iter().copied().map(u64::from).collect()
}

fn values(of: &[u32]) -> Vec<Value> {
    of.iter().copied().map(Value).collect()
}

impl graph::Host for State {
    fn ops(&mut self) -> wasmtime::Result<Vec<String>> {
        Ok(compute::OPS.iter().map(|&name| name.to_owned()).collect())
    }
}

impl graph::HostBuilder for State {
    fn new(&mut self) -> wasmtime::Result<Resource<Builder>> {
        let builder = Builder {
            graph: compute::Builder::new(),
            bytes: 0,
        };
        Ok(self.table.push(builder)?)
    }

    fn input(
        &mut self,
        builder: Resource<Builder>,
        name: String,
        element: types::Dtype,
        shape: Vec<u32>,
    ) -> Result<u32> {
        self.operator(&builder, |graph| {
            graph.input(&name, dtype(element), &dims(&shape))
        })
    }

    fn parameter(
        &mut self,
        builder: Resource<Builder>,
        name: String,
        shape: Vec<u32>,
        initializer: String,
        seed: u64,
    ) -> Result<u32> {
        let shape = fixed("parameter", &shape)?;
        self.operator(&builder, |graph| {
            graph.parameter(&name, &shape, &initializer, seed)
        })
    }

    fn buffer(
        &mut self,
        builder: Resource<Builder>,
        name: String,
        shape: Vec<u32>,
        initializer: String,
    ) -> Result<u32> {
        let shape = fixed("buffer", &shape)?;
        self.operator(&builder, |graph| graph.buffer(&name, &shape, &initializer))
    }

    fn constant(
        &mut self,
        builder: Resource<Builder>,
        element: types::Dtype,
        shape: Vec<u32>,
        data: Vec<u8>,
    ) -> Result<u32> {
        let shape = fixed("constant", &shape)?;
        self.build(&builder, data.len(), |graph| {
            graph.constant(dtype(element), &shape, &data)
        })
        .map(|value| value.0)
    }

    operators! {
        add(a, b);
        sub(a, b);
        mul(a, b);
        div(a, b);
        maximum(a, b);
        minimum(a, b);
        equal(a, b);
        affine(x; factor: f64, offset: f64);
        neg(x);
        abs(x);
        exp(x);
        log(x);
        sqrt(x);
        rsqrt(x);
        sin(x);
        cos(x);
        erf(x);
        pow(x; exponent: f64);
        clamp(x; low: f64, high: f64);
        relu(x);
        leaky_relu(x; slope: f64);
        gelu(x; approximate: bool);
        silu(x);
        sigmoid(x);
        tanh(x);
        tan(x);
        asin(x);
        acos(x);
        atan(x);
        sinh(x);
        cosh(x);
        asinh(x);
        acosh(x);
        atanh(x);
        sign(x);
        floor(x);
        ceil(x);
        round(x);
        softplus(x);
        elu(x; alpha: f64);
        hard_sigmoid(x);
        hard_swish(x);
        not_equal(a, b);
        less(a, b);
        less_or_equal(a, b);
        greater(a, b);
        greater_or_equal(a, b);
        logical_and(a, b);
        logical_or(a, b);
        logical_not(x);
        select(condition, a, b);
        gather(x, indices; axis: u32);
        scatter_add(x, indices, updates; axis: u32);
        take(x, indices; axis: u32);
        embedding(table, indices);
        argmin(x; axis: u32);
        cumsum(x; axis: u32, reverse: bool);
        layer_norm(x, scale, bias; epsilon: f64);
        rms_norm(x, scale; epsilon: f64);
        dropout(x; probability: f64, seed: u64);
        drop_path(x; probability: f64, seed: u64);
        mse_loss(x, target);
        bce_with_logits(x, target);
        kl_divergence(x, target);
        argmax(x; axis: u32);
        matmul(a, b);
        max_pool2d(x; window: (u32, u32), stride: (u32, u32), padding: (u32, u32));
        avg_pool2d(x; window: (u32, u32), stride: (u32, u32), padding: (u32, u32));
        batch_norm_train(x, scale, bias, running_mean, running_variance; momentum: f64, epsilon: f64);
        batch_norm_eval(x, scale, bias, mean, variance; epsilon: f64);
        softmax(x; axis: u32);
        log_softmax(x; axis: u32);
        cross_entropy(logits, labels; label_smoothing: f64);
    }

    reductions! { sum mean amax amin }

    fn cast(&mut self, builder: Resource<Builder>, x: u32, element: types::Dtype) -> Result<u32> {
        self.operator(&builder, |graph| graph.cast(Value(x), dtype(element)))
    }

    fn reshape(&mut self, builder: Resource<Builder>, x: u32, shape: Vec<u32>) -> Result<u32> {
        let target = |&size| match size {
            0 => Target::Size(Dim::Batch(1)),
            REST => Target::Rest,
            size => Target::Size(Dim::Fixed(u64::from(size))),
        };
        let targets: Vec<_> = shape.iter().map(target).collect();
        self.operator(&builder, |graph| graph.reshape(Value(x), &targets))
    }

    fn permute(&mut self, builder: Resource<Builder>, x: u32, axes: Vec<u32>) -> Result<u32> {
        self.operator(&builder, |graph| graph.permute(Value(x), &axes))
    }

    fn expand(&mut self, builder: Resource<Builder>, x: u32, shape: Vec<u32>) -> Result<u32> {
        self.operator(&builder, |graph| graph.expand(Value(x), &dims(&shape)))
    }

    fn variance(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        axes: Vec<u32>,
        keep: bool,
        unbiased: bool,
    ) -> Result<u32> {
        self.operator(&builder, |graph| {
            graph.variance(Value(x), &axes, keep, unbiased)
        })
    }

    fn top_k(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        count: u32,
        axis: u32,
        smallest: bool,
    ) -> Result<u32> {
        self.operator(&builder, |graph| {
            graph.top_k(Value(x), u64::from(count), axis, smallest)
        })
    }

    fn slice(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        starts: Vec<u32>,
        ends: Vec<u32>,
        steps: Vec<u32>,
    ) -> Result<u32> {
        let [starts, ends, steps] = [starts, ends, steps].map(|list| wide(&list));
        self.operator(&builder, |graph| {
            graph.slice(Value(x), &starts, &ends, &steps)
        })
    }

    fn split(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        sizes: Vec<u32>,
        axis: u32,
    ) -> Result<Vec<u32>> {
        let sizes = wide(&sizes);
        let parts = self.build(&builder, 0, |graph| graph.split(Value(x), &sizes, axis))?;
        Ok(parts.into_iter().map(|value| value.0).collect())
    }

    fn concat(&mut self, builder: Resource<Builder>, of: Vec<u32>, axis: u32) -> Result<u32> {
        let of = values(&of);
        self.operator(&builder, |graph| graph.concat(&of, axis))
    }

    fn pad(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        before: Vec<u32>,
        after: Vec<u32>,
        value: f64,
    ) -> Result<u32> {
        let (before, after) = (wide(&before), wide(&after));
        self.operator(&builder, |graph| {
            graph.pad(Value(x), &before, &after, value)
        })
    }

    fn flip(&mut self, builder: Resource<Builder>, x: u32, axes: Vec<u32>) -> Result<u32> {
        self.operator(&builder, |graph| graph.flip(Value(x), &axes))
    }

    fn roll(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        shifts: Vec<i32>,
        axes: Vec<u32>,
    ) -> Result<u32> {
        self.operator(&builder, |graph| graph.roll(Value(x), &shifts, &axes))
    }

    fn one_hot(&mut self, builder: Resource<Builder>, indices: u32, classes: u32) -> Result<u32> {
        self.operator(&builder, |graph| {
            graph.one_hot(Value(indices), u64::from(classes))
        })
    }

    fn conv1d(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        weight: u32,
        bias: Option<u32>,
        stride: u32,
        padding: u32,
        dilation: u32,
        groups: u32,
    ) -> Result<u32> {
        let attributes = (stride, padding, dilation, groups);
        self.operator(&builder, |graph| {
            graph.conv1d(Value(x), Value(weight), bias.map(Value), attributes)
        })
    }

    fn conv_transpose2d(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        weight: u32,
        bias: Option<u32>,
        stride: (u32, u32),
        padding: (u32, u32),
        dilation: (u32, u32),
        groups: u32,
        extra: (u32, u32),
    ) -> Result<u32> {
        let attributes = Conv2d {
            stride,
            padding,
            dilation,
            groups,
        };
        self.operator(&builder, |graph| {
            let (x, weight, bias) = (Value(x), Value(weight), bias.map(Value));
            graph.conv_transpose2d(x, weight, bias, attributes, extra)
        })
    }

    fn adaptive_avg_pool2d(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        size: (u32, u32),
    ) -> Result<u32> {
        let size = (u64::from(size.0), u64::from(size.1));
        self.operator(&builder, |graph| graph.adaptive_avg_pool2d(Value(x), size))
    }

    fn resize2d(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        size: (u32, u32),
        interpolation: String,
    ) -> Result<u32> {
        let size = (u64::from(size.0), u64::from(size.1));
        let interpolation: Interpolation = interpolation.parse()?;
        self.operator(&builder, |graph| {
            graph.resize2d(Value(x), size, interpolation)
        })
    }

    fn group_norm(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        groups: u32,
        scale: u32,
        bias: u32,
        epsilon: f64,
    ) -> Result<u32> {
        let groups = u64::from(groups);
        self.operator(&builder, |graph| {
            graph.group_norm(Value(x), groups, Value(scale), Value(bias), epsilon)
        })
    }

    fn l2_normalize(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        axes: Vec<u32>,
        epsilon: f64,
    ) -> Result<u32> {
        self.operator(&builder, |graph| {
            graph.l2_normalize(Value(x), &axes, epsilon)
        })
    }

    fn attention(
        &mut self,
        builder: Resource<Builder>,
        q: u32,
        k: u32,
        v: u32,
        bias: Option<u32>,
        causal: bool,
        scale: Option<f64>,
    ) -> Result<u32> {
        let operands = (Value(q), Value(k), Value(v));
        self.operator(&builder, |graph| {
            graph.attention(operands, bias.map(Value), causal, scale)
        })
    }

    fn random_uniform(
        &mut self,
        builder: Resource<Builder>,
        shape: Vec<u32>,
        seed: u64,
    ) -> Result<u32> {
        self.operator(&builder, |graph| graph.random_uniform(&dims(&shape), seed))
    }

    fn random_normal(
        &mut self,
        builder: Resource<Builder>,
        shape: Vec<u32>,
        seed: u64,
    ) -> Result<u32> {
        self.operator(&builder, |graph| graph.random_normal(&dims(&shape), seed))
    }

    fn linear(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        weight: u32,
        bias: Option<u32>,
    ) -> Result<u32> {
        self.operator(&builder, |graph| {
            graph.linear(Value(x), Value(weight), bias.map(Value))
        })
    }

    fn conv2d(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        weight: u32,
        bias: Option<u32>,
        stride: (u32, u32),
        padding: (u32, u32),
        dilation: (u32, u32),
        groups: u32,
    ) -> Result<u32> {
        let attributes = Conv2d {
            stride,
            padding,
            dilation,
            groups,
        };
        self.operator(&builder, |graph| {
            graph.conv2d(Value(x), Value(weight), bias.map(Value), attributes)
        })
    }

    fn stft_power(
        &mut self,
        builder: Resource<Builder>,
        x: u32,
        size: u32,
        hop: u32,
        window: String,
    ) -> Result<u32> {
        let window: Window = window.parse()?;
        self.operator(&builder, |graph| {
            graph.stft_power(Value(x), size, hop, window)
        })
    }

    fn begin_recompute(&mut self, builder: Resource<Builder>) -> Result<()> {
        // A block costs about as much as a node.
        self.build(&builder, NODE_BYTES, compute::Builder::begin_recompute)
    }

    fn end_recompute(&mut self, builder: Resource<Builder>) -> Result<()> {
        self.build(&builder, 0, compute::Builder::end_recompute)
    }

    fn gradients(
        &mut self,
        builder: Resource<Builder>,
        loss: u32,
        of: Vec<u32>,
    ) -> Result<Vec<u32>> {
        let of = values(&of);
        let gradients = self.build(&builder, 0, |graph| graph.gradients(Value(loss), &of))?;
        Ok(gradients.into_iter().map(|value| value.0).collect())
    }

    fn sgd(
        &mut self,
        builder: Resource<Builder>,
        parameters: Vec<u32>,
        gradients: Vec<u32>,
        momentum: f64,
        nesterov: bool,
        weight_decay: f64,
    ) -> Result<()> {
        let (parameters, gradients) = (values(&parameters), values(&gradients));
        self.build(&builder, 0, |graph| {
            graph.sgd(&parameters, &gradients, momentum, nesterov, weight_decay)
        })
    }

    fn adam(
        &mut self,
        builder: Resource<Builder>,
        parameters: Vec<u32>,
        gradients: Vec<u32>,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
    ) -> Result<()> {
        let (parameters, gradients) = (values(&parameters), values(&gradients));
        self.build(&builder, 0, |graph| {
            graph.adam(
                &parameters,
                &gradients,
                (beta1, beta2),
                epsilon,
                weight_decay,
            )
        })
    }

    fn adamw(
        &mut self,
        builder: Resource<Builder>,
        parameters: Vec<u32>,
        gradients: Vec<u32>,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
    ) -> Result<()> {
        let (parameters, gradients) = (values(&parameters), values(&gradients));
        self.build(&builder, 0, |graph| {
            graph.adamw(
                &parameters,
                &gradients,
                (beta1, beta2),
                epsilon,
                weight_decay,
            )
        })
    }

    fn clip_gradients(
        &mut self,
        builder: Resource<Builder>,
        gradients: Vec<u32>,
        most: f64,
    ) -> Result<Vec<u32>> {
        let gradients = values(&gradients);
        let clipped = self.build(&builder, 0, |graph| graph.clip_gradients(&gradients, most))?;
        Ok(clipped.into_iter().map(|value| value.0).collect())
    }

    fn average(
        &mut self,
        builder: Resource<Builder>,
        parameters: Vec<u32>,
        decay: f64,
    ) -> Result<Vec<u32>> {
        let parameters = values(&parameters);
        let averages = self.build(&builder, 0, |graph| graph.average(&parameters, decay))?;
        Ok(averages.into_iter().map(|value| value.0).collect())
    }

    fn output(&mut self, builder: Resource<Builder>, name: String, x: u32) -> Result<()> {
        self.build(&builder, name.len(), |graph| graph.output(&name, Value(x)))
    }

    fn shape(&mut self, builder: Resource<Builder>, x: u32) -> Result<Vec<u32>> {
        let (_, shape) = self.table.get(&builder)?.graph.typed(Value(x))?;
        let size = |dim: &Dim| match *dim {
            Dim::Batch(1) => Ok(0),
            Dim::Fixed(size) => u32::try_from(size).map_err(|_| too_large(shape)),
            Dim::Batch(_) => Err(too_large(shape)),
        };
        shape.0.iter().map(size).collect()
    }

    fn element(&mut self, builder: Resource<Builder>, x: u32) -> Result<types::Dtype> {
        let (element, _) = self.table.get(&builder)?.graph.typed(Value(x))?;
        Ok(contract_dtype(element))
    }

    fn drop(&mut self, builder: Resource<Builder>) -> wasmtime::Result<()> {
        let builder = self.table.delete(builder)?;
        self.graph_bytes = self.graph_bytes.saturating_sub(builder.bytes);
        Ok(())
    }
}

fn too_large(shape: &compute::Shape) -> HostError {
    HostError::new(
        "graph.shape",
        format!("the sizes of {shape} cannot be told in 32 bits, 0 for the batch"),
    )
}

/// Pairs of dtypes: of the contract, of `compute`.
macro_rules! dtypes {
    ($($contract:ident = $compute:ident,)+) => {
        fn dtype(element: types::Dtype) -> DType {
            match element {
                $(types::Dtype::$contract => DType::$compute,)+
            }
        }

        fn contract_dtype(element: DType) -> types::Dtype {
            match element {
                $(DType::$compute => types::Dtype::$contract,)+
            }
        }
    };
}

dtypes! {
    Float64 = F64,
    Float32 = F32,
    Float16 = F16,
    Bfloat16 = BF16,
    Float8E4m3 = F8E4M3,
    Float8E5m2 = F8E5M2,
    Int64 = I64,
    Int32 = I32,
    Int16 = I16,
    Int8 = I8,
    Uint64 = U64,
    Uint32 = U32,
    Uint16 = U16,
    Uint8 = U8,
    Boolean = Bool,
}
