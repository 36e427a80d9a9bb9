//! The computation as it grows: calls made on a builder and kept, and what is known of values.

use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

use compute::cpu::CpuBackend;
use compute::{Backend, Builder, DType, Dim, HostTensor, Plan, Value};
use serde_json::{Value as Json, json};

use crate::calls::{Call, apply};
use crate::error::{Refusal, refuse};

/// Float32 tensors of more elements are weights of their own; others are constants.
const MOST_CONSTANT_ELEMENTS: usize = 64;
/// What computing a value while a model is imported may take, in bytes.
const MOST_KNOWN_BYTES: u64 = 256 << 20;

/// A number as an attribute; JSON has no word for those that are not finite.
pub(crate) fn number(x: f64) -> Json {
    if x.is_finite() {
        json!(x)
    } else {
        json!(x.to_string())
    }
}

/// A value of the model.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// Its elements are known. A size of 0 among integers that are a shape is the batch.
    Known(HostTensor),
    /// It is computed.
    Computed(Value),
}

/// Calls, weights and the builder that the calls were made on.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    builder: Builder,
    pub(crate) calls: Vec<Call>,
    pub(crate) weights: Vec<(String, HostTensor)>,
    /// The numbers of values among the results of calls.
    numbers: HashMap<Value, u32>,
    results: u32,
}

impl Graph {
    /// Makes a call that has one result.
    pub(crate) fn call(&mut self, op: &str, x: &[Value], a: Json) -> Result<Value, Refusal> {
        let attributes = match a {
            Json::Array(list) => list,
            Json::Null => Vec::new(),
            one => vec![one],
        };
        let results = apply(&mut self.builder, op, x, &attributes)?;
        let operands = x.iter().filter_map(|v| self.numbers.get(v).copied());
        let operands = operands.collect();
        self.calls.push(Call(op.to_owned(), operands, attributes));
        let Some(&value) = results.first() else {
            return refuse("the call has no result");
        };
        self.numbers.insert(value, self.results);
        self.results += 1;
        Ok(value)
    }

    /// Names a value as a result of the model.
    pub(crate) fn output(&mut self, name: &str, x: Value) -> Result<(), Refusal> {
        let attributes = vec![json!(name)];
        apply(&mut self.builder, "output", &[x], &attributes)?;
        let operands = self.numbers.get(&x).copied().into_iter().collect();
        self.calls
            .push(Call("output".to_owned(), operands, attributes));
        Ok(())
    }

    pub(crate) fn finished(&self) -> compute::Graph {
        self.builder.graph()
    }

    /// The sizes of a value.
    pub(crate) fn dims(&self, x: Value) -> Result<Vec<Dim>, Refusal> {
        Ok(self.builder.typed(x)?.1.0.clone())
    }

    /// The sizes, 0 for the batch.
    pub(crate) fn sizes(&self, x: Value) -> Result<Vec<u64>, Refusal> {
        let size = |d: Dim| match d {
            Dim::Fixed(n) => Ok(n),
            Dim::Batch(1) => Ok(0),
            Dim::Batch(_) => refuse("a size is a multiple of the batch"),
        };
        self.dims(x)?.into_iter().map(size).collect()
    }

    /// The sizes; refused where one is the batch.
    pub(crate) fn fixed(&self, x: Value) -> Result<Vec<u64>, Refusal> {
        let sizes = self.sizes(x)?;
        if sizes.contains(&0) {
            return refuse("a size that has to be known is the batch");
        }
        Ok(sizes)
    }

    /// The size of an axis, which must not be the batch.
    pub(crate) fn fixed_axis(&self, x: Value, axis: usize) -> Result<u64, Refusal> {
        match self.sizes(x)?.get(axis) {
            Some(&size) if size > 0 => Ok(size),
            _ => refuse(format!("the size of axis {axis} has to be known")),
        }
    }

    pub(crate) fn dtype(&self, x: Value) -> Result<DType, Refusal> {
        Ok(self.builder.typed(x)?.0)
    }

    /// A constant, or a weight where it is large.
    pub(crate) fn constant(&mut self, tensor: &HostTensor) -> Result<Value, Refusal> {
        let shape: Vec<u64> = tensor.shape().iter().map(|&n| n as u64).collect();
        let count = tensor.shape().iter().product::<usize>();
        if tensor.dtype() == DType::F32 && count > MOST_CONSTANT_ELEMENTS {
            let name = format!("weight.{}", self.weights.len());
            self.weights.push((name.clone(), tensor.clone()));
            return self.call("parameter", &[], json!([name, shape, "zeros", 0]));
        }
        let mut text = String::with_capacity(2 * tensor.bytes().len());
        for byte in tensor.bytes() {
            text.push_str(&format!("{byte:02x}"));
        }
        let dtype = tensor.dtype().name();
        self.call("constant", &[], json!([dtype, shape, text]))
    }

    pub(crate) fn scalar(&mut self, value: f64) -> Result<Value, Refusal> {
        self.constant(&HostTensor::from_f32(&[], &[value as f32])?)
    }

    pub(crate) fn integer(&mut self, value: i64) -> Result<Value, Refusal> {
        self.constant(&HostTensor::from_i64(&[], &[value])?)
    }

    /// A number of x's dtype.
    pub(crate) fn like(&mut self, x: Value, value: f64) -> Result<Value, Refusal> {
        match self.dtype(x)? {
            DType::F32 => self.scalar(value),
            DType::I64 => self.integer(value as i64),
            _ => Ok(self.constant(&HostTensor::new(
                DType::Bool,
                vec![],
                vec![(value != 0.0).into()],
            )?)?),
        }
    }

    /// The value of an item.
    pub(crate) fn value(&mut self, item: &Item) -> Result<Value, Refusal> {
        match item {
            Item::Computed(value) => Ok(*value),
            Item::Known(tensor) => self.constant(tensor),
        }
    }

    /// The elements of an item, computed now where they depend on nothing that is fed.
    pub(crate) fn known(&self, item: &Item) -> Result<HostTensor, Refusal> {
        let value = match item {
            Item::Known(tensor) => return Ok(tensor.clone()),
            Item::Computed(value) => *value,
        };
        let Some(graph) = self.builder.closed(value) else {
            return refuse("a value that has to be known when the model is imported is not");
        };
        let plan = Plan::new(&graph, 1)?;
        let mut session = CpuBackend::new(1)?.open(vec![plan], MOST_KNOWN_BYTES)?;
        session.run(0, 1, &[], &AtomicBool::new(false))?;
        Ok(session.output(0, compute::graph::CLOSED_OUTPUT)?)
    }

    /// The integers of an item.
    pub(crate) fn integers(&self, item: &Item) -> Result<Vec<i64>, Refusal> {
        let tensor = self.known(item)?;
        match tensor.to_i64() {
            Some(integers) => Ok(integers),
            None => refuse(format!("int64 is expected, not {}", tensor.dtype())),
        }
    }

    /// The numbers of an item.
    pub(crate) fn numbers(&self, item: &Item) -> Result<Vec<f64>, Refusal> {
        let tensor = self.known(item)?;
        let floats = tensor
            .to_f32()
            .map(|v| v.into_iter().map(f64::from).collect());
        let integers = || Some(tensor.to_i64()?.into_iter().map(|v| v as f64).collect());
        match floats.or_else(integers) {
            Some(numbers) => Ok(numbers),
            None => refuse(format!("numbers are expected, not {}", tensor.dtype())),
        }
    }

    /// Reshapes to sizes, 0 for the batch.
    pub(crate) fn reshape(&mut self, x: Value, sizes: &[u64]) -> Result<Value, Refusal> {
        if self.sizes(x)? == sizes {
            return Ok(x);
        }
        self.call("reshape", &[x], json!([sizes]))
    }

    /// Casts where the dtype is another.
    pub(crate) fn cast(&mut self, x: Value, dtype: DType) -> Result<Value, Refusal> {
        if self.dtype(x)? == dtype {
            return Ok(x);
        }
        self.call("cast", &[x], json!([dtype.name()]))
    }

    /// A part of one axis.
    pub(crate) fn part(
        &mut self,
        x: Value,
        axis: usize,
        (start, end): (u64, u64),
    ) -> Result<Value, Refusal> {
        let sizes = self.sizes(x)?;
        let rank = sizes.len();
        if (start, Some(&end)) == (0, sizes.get(axis)) {
            return Ok(x);
        }
        let at = |value: u64, other: u64| -> Vec<u64> {
            (0..rank)
                .map(|i| if i == axis { value } else { other })
                .collect()
        };
        let all = compute::builder::END;
        let attributes = json!([at(start, 0), at(end, all), vec![1; rank]]);
        self.call("slice", &[x], attributes)
    }

    pub(crate) fn binary(&mut self, op: &str, a: Value, b: Value) -> Result<Value, Refusal> {
        self.call(op, &[a, b], Json::Null)
    }

    pub(crate) fn unary(&mut self, op: &str, x: Value) -> Result<Value, Refusal> {
        self.call(op, &[x], Json::Null)
    }

    pub(crate) fn affine(&mut self, x: Value, factor: f64, offset: f64) -> Result<Value, Refusal> {
        self.call("affine", &[x], json!([factor, offset]))
    }

    /// A reduction over axes, which stay where `keep`.
    pub(crate) fn reduce(
        &mut self,
        op: &str,
        x: Value,
        axes: &[usize],
        keep: bool,
    ) -> Result<Value, Refusal> {
        self.call(op, &[x], json!([axes, keep]))
    }

    pub(crate) fn permute(&mut self, x: Value, order: &[usize]) -> Result<Value, Refusal> {
        if order.iter().copied().eq(0..order.len()) {
            return Ok(x);
        }
        self.call("permute", &[x], json!([order]))
    }

    pub(crate) fn concat(&mut self, parts: &[Value], axis: usize) -> Result<Value, Refusal> {
        match parts {
            [one] => Ok(*one),
            _ => self.call("concat", parts, json!([axis])),
        }
    }
}
