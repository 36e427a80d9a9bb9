//! Calls of the contract's builder, kept as JSON, made again.

use hangar_sdk::host::graph::Builder;
use hangar_sdk::host::types::Dtype;
use hangar_sdk::{Result, error};
use serde_json::Value;

/// A call: operator, operands by the numbers of earlier results, attributes.
pub(crate) struct Call<'a> {
    pub(crate) op: &'a str,
    operands: Vec<u32>,
    attributes: &'a [Value],
}

fn malformed<T>(op: &str) -> Result<T> {
    let message = format!("a call of `{op}` in the weights' metadata is malformed");
    Err(error("weights.calls", message))
}

impl<'a> Call<'a> {
    /// From `[op, [operands], [attributes]]`; operands become the values that they number.
    pub(crate) fn parse(call: &'a Value, results: &[u32]) -> Result<Self> {
        let [
            Value::String(op),
            Value::Array(operands),
            Value::Array(attributes),
        ] = call.as_array().map_or(&[][..], Vec::as_slice)
        else {
            return malformed("?");
        };
        let value = |number: &Value| {
            let number = usize::try_from(number.as_u64()?).ok()?;
            results.get(number).copied()
        };
        match operands.iter().map(value).collect() {
            Some(operands) => Ok(Self {
                op,
                operands,
                attributes,
            }),
            None => malformed(op),
        }
    }

    /// The first operand.
    pub(crate) fn operand(&self) -> Option<u32> {
        self.operands.first().copied()
    }

    fn x(&self, i: usize) -> Result<u32> {
        match self.operands.get(i) {
            Some(value) => Ok(*value),
            None => malformed(self.op),
        }
    }

    fn attribute<T>(&self, i: usize, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        match self.attributes.get(i).and_then(read) {
            Some(value) => Ok(value),
            None => malformed(self.op),
        }
    }

    pub(crate) fn text(&self, i: usize) -> Result<&str> {
        match self.attributes.get(i).and_then(Value::as_str) {
            Some(text) => Ok(text),
            None => malformed(self.op),
        }
    }

    pub(crate) fn list(&self, i: usize) -> Result<Vec<u32>> {
        let number = |v: &Value| u32::try_from(v.as_u64()?).ok();
        self.attribute(i, |v| v.as_array()?.iter().map(number).collect())
    }

    fn integer(&self, i: usize) -> Result<u32> {
        self.attribute(i, |v| u32::try_from(v.as_u64()?).ok())
    }

    fn number(&self, i: usize) -> Result<f64> {
        self.attribute(i, |v| match v {
            Value::String(name) => name.parse().ok(),
            number => number.as_f64(),
        })
    }

    fn flag(&self, i: usize) -> Result<bool> {
        self.attribute(i, Value::as_bool)
    }

    fn pair(&self, i: usize) -> Result<(u32, u32)> {
        match self.list(i)?[..] {
            [first, second] => Ok((first, second)),
            _ => malformed(self.op),
        }
    }

    fn dtype(&self, i: usize) -> Result<Dtype> {
        match self.text(i)? {
            "float32" => Ok(Dtype::Float32),
            "int64" => Ok(Dtype::Int64),
            "boolean" => Ok(Dtype::Boolean),
            _ => malformed(self.op),
        }
    }

    fn bytes(&self, i: usize) -> Result<Vec<u8>> {
        let (pairs, _) = self.text(i)?.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
        match pairs.iter().map(byte).collect() {
            Some(bytes) => Ok(bytes),
            None => malformed(self.op),
        }
    }

    /// Makes the call; its result, if it has one.
    pub(crate) fn make(&self, b: &Builder) -> Result<Option<u32>> {
        let bias = || self.operands.get(2).copied();
        let value = match self.op {
            "input" => b.input(self.text(0)?, self.dtype(1)?, &self.list(2)?)?,
            "parameter" => b.parameter(self.text(0)?, &self.list(1)?, self.text(2)?, 0)?,
            "constant" => b.constant(self.dtype(0)?, &self.list(1)?, &self.bytes(2)?)?,
            "add" => b.add(self.x(0)?, self.x(1)?)?,
            "sub" => b.sub(self.x(0)?, self.x(1)?)?,
            "mul" => b.mul(self.x(0)?, self.x(1)?)?,
            "div" => b.div(self.x(0)?, self.x(1)?)?,
            "maximum" => b.maximum(self.x(0)?, self.x(1)?)?,
            "minimum" => b.minimum(self.x(0)?, self.x(1)?)?,
            "equal" => b.equal(self.x(0)?, self.x(1)?)?,
            "not-equal" => b.not_equal(self.x(0)?, self.x(1)?)?,
            "less" => b.less(self.x(0)?, self.x(1)?)?,
            "less-or-equal" => b.less_or_equal(self.x(0)?, self.x(1)?)?,
            "greater" => b.greater(self.x(0)?, self.x(1)?)?,
            "greater-or-equal" => b.greater_or_equal(self.x(0)?, self.x(1)?)?,
            "logical-and" => b.logical_and(self.x(0)?, self.x(1)?)?,
            "logical-or" => b.logical_or(self.x(0)?, self.x(1)?)?,
            "logical-not" => b.logical_not(self.x(0)?)?,
            "select" => b.select(self.x(0)?, self.x(1)?, self.x(2)?)?,
            "affine" => b.affine(self.x(0)?, self.number(0)?, self.number(1)?)?,
            "neg" => b.neg(self.x(0)?)?,
            "abs" => b.abs(self.x(0)?)?,
            "exp" => b.exp(self.x(0)?)?,
            "log" => b.log(self.x(0)?)?,
            "sqrt" => b.sqrt(self.x(0)?)?,
            "rsqrt" => b.rsqrt(self.x(0)?)?,
            "sin" => b.sin(self.x(0)?)?,
            "cos" => b.cos(self.x(0)?)?,
            "tan" => b.tan(self.x(0)?)?,
            "asin" => b.asin(self.x(0)?)?,
            "acos" => b.acos(self.x(0)?)?,
            "atan" => b.atan(self.x(0)?)?,
            "sinh" => b.sinh(self.x(0)?)?,
            "cosh" => b.cosh(self.x(0)?)?,
            "asinh" => b.asinh(self.x(0)?)?,
            "acosh" => b.acosh(self.x(0)?)?,
            "atanh" => b.atanh(self.x(0)?)?,
            "erf" => b.erf(self.x(0)?)?,
            "sign" => b.sign(self.x(0)?)?,
            "floor" => b.floor(self.x(0)?)?,
            "ceil" => b.ceil(self.x(0)?)?,
            "round" => b.round(self.x(0)?)?,
            "relu" => b.relu(self.x(0)?)?,
            "silu" => b.silu(self.x(0)?)?,
            "sigmoid" => b.sigmoid(self.x(0)?)?,
            "tanh" => b.tanh(self.x(0)?)?,
            "softplus" => b.softplus(self.x(0)?)?,
            "hard-swish" => b.hard_swish(self.x(0)?)?,
            "elu" => b.elu(self.x(0)?, self.number(0)?)?,
            "leaky-relu" => b.leaky_relu(self.x(0)?, self.number(0)?)?,
            "gelu" => b.gelu(self.x(0)?, self.flag(0)?)?,
            "pow" => b.pow(self.x(0)?, self.number(0)?)?,
            "clamp" => b.clamp(self.x(0)?, self.number(0)?, self.number(1)?)?,
            "cast" => b.cast(self.x(0)?, self.dtype(0)?)?,
            "reshape" => b.reshape(self.x(0)?, &self.list(0)?)?,
            "permute" => b.permute(self.x(0)?, &self.list(0)?)?,
            "expand" => b.expand(self.x(0)?, &self.list(0)?)?,
            "slice" => b.slice(self.x(0)?, &self.list(0)?, &self.list(1)?, &self.list(2)?)?,
            "concat" => b.concat(&self.operands, self.integer(0)?)?,
            "pad" => b.pad(self.x(0)?, &self.list(0)?, &self.list(1)?, self.number(2)?)?,
            "flip" => b.flip(self.x(0)?, &self.list(0)?)?,
            "gather" => b.gather(self.x(0)?, self.x(1)?, self.integer(0)?)?,
            "scatter-add" => b.scatter_add(self.x(0)?, self.x(1)?, self.x(2)?, self.integer(0)?)?,
            "take" => b.take(self.x(0)?, self.x(1)?, self.integer(0)?)?,
            "one-hot" => b.one_hot(self.x(0)?, self.integer(0)?)?,
            "sum" => b.sum(self.x(0)?, &self.list(0)?, self.flag(1)?)?,
            "mean" => b.mean(self.x(0)?, &self.list(0)?, self.flag(1)?)?,
            "amax" => b.amax(self.x(0)?, &self.list(0)?, self.flag(1)?)?,
            "amin" => b.amin(self.x(0)?, &self.list(0)?, self.flag(1)?)?,
            "argmax" => b.argmax(self.x(0)?, self.integer(0)?)?,
            "argmin" => b.argmin(self.x(0)?, self.integer(0)?)?,
            "top-k" => b.top_k(
                self.x(0)?,
                self.integer(0)?,
                self.integer(1)?,
                self.flag(2)?,
            )?,
            "cumsum" => b.cumsum(self.x(0)?, self.integer(0)?, self.flag(1)?)?,
            "matmul" => b.matmul(self.x(0)?, self.x(1)?)?,
            "conv2d" => b.conv2d(
                self.x(0)?,
                self.x(1)?,
                bias(),
                self.pair(0)?,
                self.pair(1)?,
                self.pair(2)?,
                self.integer(3)?,
            )?,
            "conv-transpose2d" => b.conv_transpose2d(
                self.x(0)?,
                self.x(1)?,
                bias(),
                self.pair(0)?,
                self.pair(1)?,
                self.pair(2)?,
                self.integer(3)?,
                self.pair(4)?,
            )?,
            "max-pool2d" => {
                b.max_pool2d(self.x(0)?, self.pair(0)?, self.pair(1)?, self.pair(2)?)?
            }
            "avg-pool2d" => {
                b.avg_pool2d(self.x(0)?, self.pair(0)?, self.pair(1)?, self.pair(2)?)?
            }
            "batch-norm-eval" => b.batch_norm_eval(
                self.x(0)?,
                self.x(1)?,
                self.x(2)?,
                self.x(3)?,
                self.x(4)?,
                self.number(0)?,
            )?,
            "layer-norm" => b.layer_norm(self.x(0)?, self.x(1)?, self.x(2)?, self.number(0)?)?,
            "rms-norm" => b.rms_norm(self.x(0)?, self.x(1)?, self.number(0)?)?,
            "group-norm" => b.group_norm(
                self.x(0)?,
                self.integer(0)?,
                self.x(1)?,
                self.x(2)?,
                self.number(1)?,
            )?,
            "softmax" => b.softmax(self.x(0)?, self.integer(0)?)?,
            "log-softmax" => b.log_softmax(self.x(0)?, self.integer(0)?)?,
            "output" => {
                b.output(self.text(0)?, self.x(0)?)?;
                return Ok(None);
            }
            _ => return malformed(self.op),
        };
        Ok(Some(value))
    }
}
