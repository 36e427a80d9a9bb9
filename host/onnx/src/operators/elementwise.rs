//! Element by element.

use compute::{DType, Value};
use serde_json::{Value as Json, json};

use super::{Results, one};
use crate::error::{Refusal, refuse};
use crate::graph::{Graph, Item};
use crate::import::Node;
use crate::tensor::{computed, dtype};

pub(super) const NAMES: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Where",
    "Xor",
];

/// The contract's operator of one float32 operand that does the same.
fn plain(name: &str) -> Option<&'static str> {
    Some(match name {
        "Abs" => "abs",
        "Acos" => "acos",
        "Acosh" => "acosh",
        "Asin" => "asin",
        "Asinh" => "asinh",
        "Atan" => "atan",
        "Atanh" => "atanh",
        "Ceil" => "ceil",
        "Cos" => "cos",
        "Cosh" => "cosh",
        "Erf" => "erf",
        "Exp" => "exp",
        "Floor" => "floor",
        "HardSwish" => "hard-swish",
        "Log" => "log",
        "Neg" => "neg",
        "Relu" => "relu",
        "Round" => "round",
        "Sigmoid" => "sigmoid",
        "Sign" => "sign",
        "Sin" => "sin",
        "Sinh" => "sinh",
        "Softplus" => "softplus",
        "Sqrt" => "sqrt",
        "Tan" => "tan",
        "Tanh" => "tanh",
        _ => return None,
    })
}

fn pair(name: &str) -> Option<&'static str> {
    Some(match name {
        "Add" => "add",
        "Sub" => "sub",
        "Mul" => "mul",
        "Div" => "div",
        "Max" => "maximum",
        "Min" => "minimum",
        "Equal" => "equal",
        "Less" => "less",
        "LessOrEqual" => "less-or-equal",
        "Greater" => "greater",
        "GreaterOrEqual" => "greater-or-equal",
        "And" => "logical-and",
        "Or" => "logical-or",
        "Xor" => "not-equal",
        _ => return None,
    })
}

/// The same of integers.
fn of_integers(g: &mut Graph, name: &str, x: Value) -> Result<Option<Value>, Refusal> {
    let zero = g.integer(0)?;
    Ok(Some(match name {
        "Neg" => g.binary("sub", zero, x)?,
        "Relu" => g.binary("maximum", x, zero)?,
        "Abs" => {
            let negative = g.binary("sub", zero, x)?;
            g.binary("maximum", x, negative)?
        }
        "Sign" => {
            let (above, below) = (g.binary("greater", x, zero)?, g.binary("less", x, zero)?);
            let (above, below) = (g.cast(above, DType::I64)?, g.cast(below, DType::I64)?);
            g.binary("sub", above, below)?
        }
        _ => return Ok(None),
    }))
}

/// x − y·⌊x/y⌋ of the divisor's sign, or of the dividend's where `fmod`.
fn modulo(g: &mut Graph, x: Value, y: Value, fmod: bool) -> Result<Value, Refusal> {
    let ratio = g.binary("div", x, y)?;
    let integers = g.dtype(x)? == DType::I64;
    let whole = if integers {
        ratio
    } else if fmod {
        let sign = g.unary("sign", ratio)?;
        let size = g.unary("abs", ratio)?;
        let size = g.unary("floor", size)?;
        g.binary("mul", sign, size)?
    } else {
        g.unary("floor", ratio)?
    };
    let back = g.binary("mul", whole, y)?;
    let rest = g.binary("sub", x, back)?;
    if integers && fmod {
        return Ok(rest);
    }
    if !integers {
        return infinite_modulo(g, (x, y), rest, fmod);
    }
    // Quotients of integers go towards zero: a rest of the other sign is one divisor short.
    let zero = g.integer(0)?;
    let (a, b) = (g.binary("less", rest, zero)?, g.binary("less", y, zero)?);
    let differ = g.binary("not-equal", a, b)?;
    let left = g.binary("not-equal", rest, zero)?;
    let short = g.binary("logical-and", differ, left)?;
    let moved = g.binary("add", rest, y)?;
    g.call("select", &[short, moved, rest], Json::Null)
}

/// The rest where the divisor is infinite: the dividend, or without `fmod` the divisor where signs
/// differ.
fn infinite_modulo(
    g: &mut Graph,
    (x, y): (Value, Value),
    rest: Value,
    fmod: bool,
) -> Result<Value, Refusal> {
    let limit = g.scalar(f64::INFINITY)?;
    let (size, divisor) = (g.unary("abs", x)?, g.unary("abs", y)?);
    let (finite, infinite) = (
        g.binary("less", size, limit)?,
        g.binary("equal", divisor, limit)?,
    );
    let applies = g.binary("logical-and", finite, infinite)?;
    let mut whole = x;
    if !fmod {
        let product = g.binary("mul", x, y)?;
        let zero = g.scalar(0.0)?;
        let differ = g.binary("less", product, zero)?;
        whole = g.call("select", &[differ, y, x], Json::Null)?;
    }
    g.call("select", &[applies, whole, rest], Json::Null)
}

/// x · tanh(softplus(x)) and the like: x times a function of it.
fn gated(g: &mut Graph, x: Value, functions: &[&str]) -> Result<Value, Refusal> {
    let mut y = x;
    for function in functions {
        y = g.unary(function, y)?;
    }
    g.binary("mul", x, y)
}

fn clip(n: &mut Node<'_>) -> Result<Value, Refusal> {
    let mut x = n.x(0)?;
    for (name, operand, op) in [("min", 1, "maximum"), ("max", 2, "minimum")] {
        let limit = match n.attribute(name).map(|a| f64::from(a.f)) {
            Some(limit) => Some(n.graph.like(x, limit)?),
            None => n.optional(operand)?,
        };
        if let Some(limit) = limit {
            x = n.graph.binary(op, x, limit)?;
        }
    }
    Ok(x)
}

fn pow(n: &mut Node<'_>) -> Result<Value, Refusal> {
    let x = n.x(0)?;
    let of = n.graph.dtype(x)?;
    let x = n.graph.cast(x, DType::F32)?;
    let exponent = match n.graph.known(n.item(1)?) {
        Ok(tensor) if tensor.shape().iter().product::<usize>() == 1 => {
            n.graph.numbers(&Item::Known(tensor))?.first().copied()
        }
        _ => None,
    };
    let y = match exponent {
        Some(exponent) => n.graph.call("pow", &[x], json!([exponent]))?,
        None => {
            let exponent = n.x(1)?;
            let exponent = n.graph.cast(exponent, DType::F32)?;
            let log = n.graph.unary("log", x)?;
            let product = n.graph.binary("mul", exponent, log)?;
            n.graph.unary("exp", product)?
        }
    };
    if of == DType::I64 {
        // What is nearly a whole number is one.
        let whole = n.graph.unary("round", y)?;
        return n.graph.cast(whole, of);
    }
    Ok(y)
}

/// A value by value of several operands.
fn fold(n: &mut Node<'_>, op: &str) -> Result<Value, Refusal> {
    let values = n.all()?;
    let Some((&first, rest)) = values.split_first() else {
        return refuse("it has no operand");
    };
    let mut total = first;
    for &x in rest {
        total = n.graph.binary(op, total, x)?;
    }
    Ok(total)
}

pub(super) fn convert(n: &mut Node<'_>) -> Results {
    let name = n.operator().to_owned();
    if let Some(op) = plain(&name) {
        let x = n.x(0)?;
        if n.graph.dtype(x)? == DType::I64
            && let Some(y) = of_integers(n.graph, &name, x)?
        {
            return one(y);
        }
        return one(n.graph.unary(op, x)?);
    }
    match &*name {
        "Max" | "Min" => return one(fold(n, pair(&name).unwrap_or_default())?),
        "Sum" => return one(fold(n, "add")?),
        "Mean" => {
            let (sum, count) = (fold(n, "add")?, n.operands() as f64);
            return one(n.graph.affine(sum, 1.0 / count, 0.0)?);
        }
        _ => {}
    }
    if let Some(op) = pair(&name) {
        let (a, b) = (n.x(0)?, n.x(1)?);
        return one(n.graph.binary(op, a, b)?);
    }
    let y = match &*name {
        "Identity" => return Ok(Some(vec![n.item(0)?.clone()])),
        "Dropout" => {
            if let Some(item) = n.maybe(2)
                && n.graph.known(item)?.bytes() != [0]
            {
                return refuse("only inference is imported");
            }
            let x = n.x(0)?;
            let same = n.graph.binary("equal", x, x)?;
            // No element is dropped; not even one that is no number.
            let no = n.graph.unary("logical-not", same)?;
            let mask = n.graph.binary("logical-or", same, no)?;
            return Ok(Some(vec![n.item(0)?.clone(), Item::Computed(mask)]));
        }
        "Cast" => {
            let to = dtype(n.i("to", 1) as i32);
            let Some(to) = to else {
                return refuse("the target's type is not supported");
            };
            let x = n.x(0)?;
            n.graph.cast(x, computed(to))?
        }
        "CastLike" => {
            let (x, like) = (n.x(0)?, n.x(1)?);
            let to = n.graph.dtype(like)?;
            n.graph.cast(x, to)?
        }
        "Celu" => {
            // max(0, x) + min(0, α·(e^(x/α) − 1)) = α·elu(x/α).
            let (x, alpha) = (n.x(0)?, n.f("alpha", 1.0));
            let x = n.graph.affine(x, 1.0 / alpha, 0.0)?;
            let y = n.graph.call("elu", &[x], json!([1.0]))?;
            n.graph.affine(y, alpha, 0.0)?
        }
        "Clip" => clip(n)?,
        "Elu" => {
            let (x, alpha) = (n.x(0)?, n.f("alpha", 1.0));
            n.graph.call("elu", &[x], json!([alpha]))?
        }
        "Selu" => {
            let (x, alpha) = (n.x(0)?, n.f("alpha", 1.673_263_192_176_818_8));
            let y = n.graph.call("elu", &[x], json!([alpha]))?;
            n.graph
                .affine(y, n.f("gamma", 1.050_701_022_148_132_3), 0.0)?
        }
        "Gelu" => {
            let (x, tanh) = (n.x(0)?, n.s("approximate", "none") == "tanh");
            n.graph.call("gelu", &[x], json!([tanh]))?
        }
        "HardSigmoid" => {
            let x = n.x(0)?;
            let y = n.graph.affine(x, n.f("alpha", 0.2), n.f("beta", 0.5))?;
            n.graph.call("clamp", &[y], json!([0.0, 1.0]))?
        }
        "IsNaN" => {
            let x = n.x(0)?;
            n.graph.binary("not-equal", x, x)?
        }
        "IsInf" => {
            let x = n.x(0)?;
            let mut found = Vec::new();
            for (name, value) in [
                ("detect_positive", f64::INFINITY),
                ("detect_negative", f64::NEG_INFINITY),
            ] {
                let limit = n.graph.scalar(value)?;
                let hit = n.graph.binary("equal", x, limit)?;
                let asked = n.i(name, 1) != 0;
                let asked = n.graph.like(hit, f64::from(u8::from(asked)))?;
                found.push(n.graph.binary("logical-and", hit, asked)?);
            }
            n.graph.binary("logical-or", found[0], found[1])?
        }
        "LeakyRelu" => {
            let (x, slope) = (n.x(0)?, n.f("alpha", 0.01));
            n.graph.call("leaky-relu", &[x], json!([slope]))?
        }
        "Mish" => {
            let x = n.x(0)?;
            gated(n.graph, x, &["softplus", "tanh"])?
        }
        "Swish" => {
            let (x, alpha) = (n.x(0)?, n.f("alpha", 1.0));
            let y = n.graph.affine(x, alpha, 0.0)?;
            let y = n.graph.unary("sigmoid", y)?;
            n.graph.binary("mul", x, y)?
        }
        "Mod" => {
            let (x, y, fmod) = (n.x(0)?, n.x(1)?, n.i("fmod", 0) != 0);
            modulo(n.graph, x, y, fmod)?
        }
        "Not" => {
            let x = n.x(0)?;
            n.graph.unary("logical-not", x)?
        }
        "PRelu" => {
            let (x, slope) = (n.x(0)?, n.x(1)?);
            let zero = n.graph.like(x, 0.0)?;
            let below = n.graph.binary("less", x, zero)?;
            let scaled = n.graph.binary("mul", x, slope)?;
            n.graph.call("select", &[below, scaled, x], Json::Null)?
        }
        "Pow" => pow(n)?,
        "Reciprocal" => {
            let x = n.x(0)?;
            let unit = n.graph.like(x, 1.0)?;
            n.graph.binary("div", unit, x)?
        }
        "Shrink" => {
            let (x, limit, bias) = (n.x(0)?, n.f("lambd", 0.5), n.f("bias", 0.0));
            let (low, high, zero) = (
                n.graph.scalar(-limit)?,
                n.graph.scalar(limit)?,
                n.graph.scalar(0.0)?,
            );
            let (below, above) = (
                n.graph.binary("less", x, low)?,
                n.graph.binary("greater", x, high)?,
            );
            let (up, down) = (
                n.graph.affine(x, 1.0, bias)?,
                n.graph.affine(x, 1.0, -bias)?,
            );
            let y = n.graph.call("select", &[above, down, zero], Json::Null)?;
            n.graph.call("select", &[below, up, y], Json::Null)?
        }
        "Softsign" => {
            let x = n.x(0)?;
            let size = n.graph.unary("abs", x)?;
            let size = n.graph.affine(size, 1.0, 1.0)?;
            n.graph.binary("div", x, size)?
        }
        "ThresholdedRelu" => {
            let x = n.x(0)?;
            let (limit, zero) = (n.graph.scalar(n.f("alpha", 1.0))?, n.graph.scalar(0.0)?);
            let above = n.graph.binary("greater", x, limit)?;
            n.graph.call("select", &[above, x, zero], Json::Null)?
        }
        "Where" => {
            let (condition, a, b) = (n.x(0)?, n.x(1)?, n.x(2)?);
            n.graph.call("select", &[condition, a, b], Json::Null)?
        }
        _ => return Ok(None),
    };
    one(y)
}
