//! Calls of the contract's builder as data.

use compute::builder::{Conv2d, Target};
use compute::{Builder, DType, Dim, Error, Value};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// One call: the operator by the contract's name, its operands by the numbers of earlier results,
/// and its attributes in the contract's order. A constant's elements are hexadecimal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Call(pub String, pub Vec<u32>, pub Vec<Json>);

fn malformed(op: &str) -> Error {
    Error::new("graph.call", format!("a call of `{op}` is malformed"))
}

/// The attributes of a call.
struct Attributes<'a>(&'a str, &'a [Json]);

impl Attributes<'_> {
    fn json(&self, i: usize) -> Result<&Json, Error> {
        self.1.get(i).ok_or_else(|| malformed(self.0))
    }

    fn unsigned(&self, i: usize) -> Result<u64, Error> {
        self.json(i)?.as_u64().ok_or_else(|| malformed(self.0))
    }

    fn small(&self, i: usize) -> Result<u32, Error> {
        u32::try_from(self.unsigned(i)?).map_err(|_| malformed(self.0))
    }

    fn number(&self, i: usize) -> Result<f64, Error> {
        let json = self.json(i)?;
        let named = || json.as_str()?.parse().ok();
        json.as_f64()
            .or_else(named)
            .ok_or_else(|| malformed(self.0))
    }

    fn flag(&self, i: usize) -> Result<bool, Error> {
        self.json(i)?.as_bool().ok_or_else(|| malformed(self.0))
    }

    fn text(&self, i: usize) -> Result<&str, Error> {
        self.json(i)?.as_str().ok_or_else(|| malformed(self.0))
    }

    fn list(&self, i: usize) -> Result<Vec<u64>, Error> {
        let list = self.json(i)?.as_array().ok_or_else(|| malformed(self.0))?;
        let numbers = list.iter().map(|v| v.as_u64());
        numbers
            .collect::<Option<_>>()
            .ok_or_else(|| malformed(self.0))
    }

    fn axes(&self, i: usize) -> Result<Vec<u32>, Error> {
        let list = self.list(i)?;
        let axes = list.into_iter().map(|n| u32::try_from(n).ok());
        axes.collect::<Option<_>>().ok_or_else(|| malformed(self.0))
    }

    fn pair(&self, i: usize) -> Result<(u32, u32), Error> {
        match self.axes(i)?[..] {
            [a, b] => Ok((a, b)),
            _ => Err(malformed(self.0)),
        }
    }

    /// Sizes, 0 for the batch.
    fn dims(&self, i: usize) -> Result<Vec<Dim>, Error> {
        let dim = |size| match size {
            0 => Dim::Batch(1),
            size => Dim::Fixed(size),
        };
        Ok(self.list(i)?.into_iter().map(dim).collect())
    }

    fn dtype(&self, i: usize) -> Result<DType, Error> {
        match self.text(i)? {
            "float32" => Ok(DType::F32),
            "int64" => Ok(DType::I64),
            "boolean" => Ok(DType::Bool),
            _ => Err(malformed(self.0)),
        }
    }

    fn conv2d(&self) -> Result<Conv2d, Error> {
        Ok(Conv2d {
            stride: self.pair(0)?,
            padding: self.pair(1)?,
            dilation: self.pair(2)?,
            groups: self.small(3)?,
        })
    }
}

fn bytes(op: &str, hexadecimal: &str) -> Result<Vec<u8>, Error> {
    let digits = hexadecimal.as_bytes().as_chunks::<2>().0;
    let byte = |pair: &[u8; 2]| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    };
    let bytes = digits.iter().map(byte).collect::<Option<Vec<u8>>>();
    bytes.ok_or_else(|| malformed(op))
}

/// Makes a call; its results. Errors: the builder's, and `graph.call` for a call that is not
/// one of those that an import makes.
pub fn apply(
    b: &mut Builder,
    op: &str,
    x: &[Value],
    attributes: &[Json],
) -> Result<Vec<Value>, Error> {
    let a = Attributes(op, attributes);
    // An index past the operands is a malformed call, never a panic.
    let at = |i: usize| x.get(i).copied().ok_or_else(|| malformed(op));
    let y = match op {
        "input" => b.input(a.text(0)?, a.dtype(1)?, &a.dims(2)?)?,
        "parameter" => b.parameter(a.text(0)?, &a.list(1)?, a.text(2)?, a.unsigned(3)?)?,
        "constant" => b.constant(a.dtype(0)?, &a.list(1)?, &bytes(op, a.text(2)?)?)?,
        "add" => b.add(at(0)?, at(1)?)?,
        "sub" => b.sub(at(0)?, at(1)?)?,
        "mul" => b.mul(at(0)?, at(1)?)?,
        "div" => b.div(at(0)?, at(1)?)?,
        "maximum" => b.maximum(at(0)?, at(1)?)?,
        "minimum" => b.minimum(at(0)?, at(1)?)?,
        "equal" => b.equal(at(0)?, at(1)?)?,
        "not-equal" => b.not_equal(at(0)?, at(1)?)?,
        "less" => b.less(at(0)?, at(1)?)?,
        "less-or-equal" => b.less_or_equal(at(0)?, at(1)?)?,
        "greater" => b.greater(at(0)?, at(1)?)?,
        "greater-or-equal" => b.greater_or_equal(at(0)?, at(1)?)?,
        "logical-and" => b.logical_and(at(0)?, at(1)?)?,
        "logical-or" => b.logical_or(at(0)?, at(1)?)?,
        "logical-not" => b.logical_not(at(0)?)?,
        "select" => b.select(at(0)?, at(1)?, at(2)?)?,
        "affine" => b.affine(at(0)?, a.number(0)?, a.number(1)?)?,
        "neg" => b.neg(at(0)?)?,
        "abs" => b.abs(at(0)?)?,
        "exp" => b.exp(at(0)?)?,
        "log" => b.log(at(0)?)?,
        "sqrt" => b.sqrt(at(0)?)?,
        "rsqrt" => b.rsqrt(at(0)?)?,
        "sin" => b.sin(at(0)?)?,
        "cos" => b.cos(at(0)?)?,
        "tan" => b.tan(at(0)?)?,
        "asin" => b.asin(at(0)?)?,
        "acos" => b.acos(at(0)?)?,
        "atan" => b.atan(at(0)?)?,
        "sinh" => b.sinh(at(0)?)?,
        "cosh" => b.cosh(at(0)?)?,
        "asinh" => b.asinh(at(0)?)?,
        "acosh" => b.acosh(at(0)?)?,
        "atanh" => b.atanh(at(0)?)?,
        "erf" => b.erf(at(0)?)?,
        "sign" => b.sign(at(0)?)?,
        "floor" => b.floor(at(0)?)?,
        "ceil" => b.ceil(at(0)?)?,
        "round" => b.round(at(0)?)?,
        "relu" => b.relu(at(0)?)?,
        "silu" => b.silu(at(0)?)?,
        "sigmoid" => b.sigmoid(at(0)?)?,
        "tanh" => b.tanh(at(0)?)?,
        "softplus" => b.softplus(at(0)?)?,
        "hard-swish" => b.hard_swish(at(0)?)?,
        "elu" => b.elu(at(0)?, a.number(0)?)?,
        "leaky-relu" => b.leaky_relu(at(0)?, a.number(0)?)?,
        "gelu" => b.gelu(at(0)?, a.flag(0)?)?,
        "pow" => b.pow(at(0)?, a.number(0)?)?,
        "clamp" => b.clamp(at(0)?, a.number(0)?, a.number(1)?)?,
        "cast" => b.cast(at(0)?, a.dtype(0)?)?,
        "reshape" => {
            let target: Vec<Target> = a.dims(0)?.into_iter().map(Target::Size).collect();
            b.reshape(at(0)?, &target)?
        }
        "permute" => b.permute(at(0)?, &a.axes(0)?)?,
        "expand" => b.expand(at(0)?, &a.dims(0)?)?,
        "slice" => b.slice(at(0)?, &a.list(0)?, &a.list(1)?, &a.list(2)?)?,
        "concat" => b.concat(x, a.small(0)?)?,
        "pad" => b.pad(at(0)?, &a.list(0)?, &a.list(1)?, a.number(2)?)?,
        "flip" => b.flip(at(0)?, &a.axes(0)?)?,
        "gather" => b.gather(at(0)?, at(1)?, a.small(0)?)?,
        "scatter-add" => b.scatter_add(at(0)?, at(1)?, at(2)?, a.small(0)?)?,
        "take" => b.take(at(0)?, at(1)?, a.small(0)?)?,
        "one-hot" => b.one_hot(at(0)?, a.unsigned(0)?)?,
        "sum" => b.sum(at(0)?, &a.axes(0)?, a.flag(1)?)?,
        "mean" => b.mean(at(0)?, &a.axes(0)?, a.flag(1)?)?,
        "amax" => b.amax(at(0)?, &a.axes(0)?, a.flag(1)?)?,
        "amin" => b.amin(at(0)?, &a.axes(0)?, a.flag(1)?)?,
        "argmax" => b.argmax(at(0)?, a.small(0)?)?,
        "argmin" => b.argmin(at(0)?, a.small(0)?)?,
        "top-k" => b.top_k(at(0)?, a.unsigned(0)?, a.small(1)?, a.flag(2)?)?,
        "cumsum" => b.cumsum(at(0)?, a.small(0)?, a.flag(1)?)?,
        "matmul" => b.matmul(at(0)?, at(1)?)?,
        "conv2d" => b.conv2d(at(0)?, at(1)?, x.get(2).copied(), a.conv2d()?)?,
        "conv-transpose2d" => {
            let bias = x.get(2).copied();
            b.conv_transpose2d(at(0)?, at(1)?, bias, a.conv2d()?, a.pair(4)?)?
        }
        "max-pool2d" => b.max_pool2d(at(0)?, a.pair(0)?, a.pair(1)?, a.pair(2)?)?,
        "avg-pool2d" => b.avg_pool2d(at(0)?, a.pair(0)?, a.pair(1)?, a.pair(2)?)?,
        "batch-norm-eval" => {
            b.batch_norm_eval(at(0)?, at(1)?, at(2)?, at(3)?, at(4)?, a.number(0)?)?
        }
        "layer-norm" => b.layer_norm(at(0)?, at(1)?, at(2)?, a.number(0)?)?,
        "rms-norm" => b.rms_norm(at(0)?, at(1)?, a.number(0)?)?,
        "group-norm" => b.group_norm(at(0)?, a.unsigned(0)?, at(1)?, at(2)?, a.number(1)?)?,
        "softmax" => b.softmax(at(0)?, a.small(0)?)?,
        "log-softmax" => b.log_softmax(at(0)?, a.small(0)?)?,
        "output" => {
            b.output(a.text(0)?, at(0)?)?;
            return Ok(Vec::new());
        }
        _ => return Err(malformed(op)),
    };
    Ok(vec![y])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The names that a source's calls are told apart by.
    fn names(source: &'static str) -> BTreeSet<&'static str> {
        let arm = |line: &'static str| {
            let (name, _) = line.trim().strip_prefix('"')?.split_once("\" => ")?;
            (!matches!(name, "float32" | "int64" | "boolean")).then_some(name)
        };
        source.lines().filter_map(arm).collect()
    }

    #[test]
    fn the_plugin_that_makes_calls_again_knows_all_of_them() {
        let own = names(include_str!("calls.rs"));
        let plugin = names(include_str!("../../../plugins/imported/src/replay.rs"));
        assert!(own.contains("conv2d") && own.len() > 70);
        assert_eq!(own, plugin);
    }
}
