//! Element-wise operators.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Unary {
    Affine { factor: f64, offset: f64 },
    Abs,
    Exp,
    Log,
    Sqrt,
    Rsqrt,
    Sin,
    Cos,
    Erf,
    Pow { exponent: f64 },
    Clamp { low: f64, high: f64 },
    Relu,
    LeakyRelu { slope: f64 },
    Gelu,
    GeluTanh,
    Silu,
    Sigmoid,
    Tanh,
    Elu { alpha: f64 },
    Softplus,
    HardSigmoid,
    HardSwish,
    Sign,
    Floor,
    Ceil,
    Round,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Asinh,
    Acosh,
    Atanh,
}

/// A function of two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Maximum,
    Minimum,
}

impl Binary {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
            Self::Div => "div",
            Self::Maximum => "maximum",
            Self::Minimum => "minimum",
        }
    }

    /// The same of integers, which wrap around; a quotient goes towards zero, and is 0 where the
    /// divisor is.
    pub(crate) fn of_integers(self, a: i64, b: i64) -> i64 {
        match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::Div if b == 0 => 0,
            Self::Div => a.wrapping_div(b),
            Self::Maximum => a.max(b),
            Self::Minimum => a.min(b),
        }
    }
}

/// How two elements are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::NotEqual => "not-equal",
            Self::Less => "less",
            Self::LessOrEqual => "less-or-equal",
            Self::Greater => "greater",
            Self::GreaterOrEqual => "greater-or-equal",
        }
    }

    /// Whether it holds; of what is not a number, only `NotEqual`.
    pub(crate) fn holds<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            Self::Equal => a == b,
            Self::NotEqual => a != b,
            Self::Less => a < b,
            Self::LessOrEqual => a <= b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
        }
    }
}

/// How two truths are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
}

impl Logic {
    fn name(self) -> &'static str {
        match self {
            Self::And => "logical-and",
            Self::Or => "logical-or",
        }
    }
}

fn broadcast(name: &str, a: &Node, b: &Node) -> Result<Typed, Error> {
    if a.dtype != b.dtype {
        return Err(Error::dtype(format!(
            "{name}: {} and {} differ",
            a.dtype, b.dtype
        )));
    }
    let shape = a.shape.broadcast(&b.shape).ok_or_else(|| {
        Error::shape(format!(
            "{name}: shapes {} and {} do not broadcast",
            a.shape, b.shape
        ))
    })?;
    Ok((a.dtype, shape))
}

fn binary(kind: Binary, a: &Node, b: &Node) -> Result<Typed, Error> {
    if a.dtype != DType::I64 || b.dtype != DType::I64 {
        float(kind.name(), a)?;
        float(kind.name(), b)?;
    }
    broadcast(kind.name(), a, b)
}

fn boolean(name: &str, node: &Node) -> Result<(), Error> {
    if node.dtype == DType::Bool {
        return Ok(());
    }
    Err(Error::dtype(format!(
        "{name} takes boolean, not {}",
        node.dtype
    )))
}

fn select(condition: &Node, a: &Node, b: &Node) -> Result<Typed, Error> {
    boolean("select", condition)?;
    let (dtype, shape) = broadcast("select", a, b)?;
    let all = shape.broadcast(&condition.shape).ok_or_else(|| {
        Error::shape(format!(
            "select: the condition {} does not broadcast to {shape}",
            condition.shape
        ))
    })?;
    Ok((dtype, all))
}

pub(crate) fn unary_gradient(
    b: &mut Builder,
    kind: Unary,
    x: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    // d(f·x + o) = f·dx needs no x, so x need not be kept.
    if let Unary::Affine { factor, .. } = kind {
        return Ok(vec![Some(b.affine(dy, factor, 0.0)?)]);
    }
    let typed = (DType::F32, b.node(x).shape.clone());
    Ok(vec![Some(b.push(
        Op::UnaryGradient(kind),
        &[x, dy],
        typed,
    )?)])
}

pub(crate) fn binary_gradient(
    b: &mut Builder,
    kind: Binary,
    x: Value,
    y: Value,
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let (dx, dz) = match kind {
        Binary::Add => (dy, dy),
        Binary::Sub => (dy, b.neg(dy)?),
        Binary::Mul => (b.mul(dy, y)?, b.mul(dy, x)?),
        // d(x/y) = dx/y − x·dy/y²
        Binary::Div => {
            let dx = b.div(dy, y)?;
            let scaled = b.mul(dx, x)?;
            let ratio = b.div(scaled, y)?;
            (dx, b.neg(ratio)?)
        }
        Binary::Maximum | Binary::Minimum => {
            let op = Op::ExtremumGradient {
                maximum: kind == Binary::Maximum,
            };
            let typed = (DType::F32, b.node(dy).shape.clone());
            let dx = b.push(op.clone(), &[x, y, dy], typed.clone())?;
            (dx, b.push(op, &[y, x, dy], typed)?)
        }
    };
    Ok(vec![
        Some(b.reduce_like(dx, x)?),
        Some(b.reduce_like(dz, y)?),
    ])
}

/// dy goes to the operand that was taken.
pub(crate) fn select_gradient(
    g: &mut Builder,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let &[condition, a, b] = inputs else {
        return Ok(vec![None; inputs.len()]);
    };
    let zero = g.scalar(0.0)?;
    let (da, db) = (
        g.select(condition, dy, zero)?,
        g.select(condition, zero, dy)?,
    );
    Ok(vec![
        None,
        Some(g.reduce_like(da, a)?),
        Some(g.reduce_like(db, b)?),
    ])
}

/// Methods of one operand and no attributes.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident = $kind:expr;)*) => {
        impl Builder {
            $($(#[$doc])* pub fn $name(&mut self, x: Value) -> Result<Value, Error> {
                self.unary(stringify!($name), $kind, x)
            })*
        }
    };
}

/// Methods of two operands, which broadcast.
macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident = $method:ident $kind:expr;)*) => {
        impl Builder {
            $($(#[$doc])* pub fn $name(&mut self, a: Value, b: Value) -> Result<Value, Error> {
                self.$method($kind, a, b)
            })*
        }
    };
}

unary! {
    /// −x.
    neg = Unary::Affine { factor: -1.0, offset: 0.0 };
    /// |x|.
    abs = Unary::Abs;
    /// eˣ.
    exp = Unary::Exp;
    /// Natural logarithm.
    log = Unary::Log;
    /// √x.
    sqrt = Unary::Sqrt;
    /// 1/√x.
    rsqrt = Unary::Rsqrt;
    /// sin x.
    sin = Unary::Sin;
    /// cos x.
    cos = Unary::Cos;
    /// tan x.
    tan = Unary::Tan;
    /// Arc sine.
    asin = Unary::Asin;
    /// Arc cosine.
    acos = Unary::Acos;
    /// Arc tangent.
    atan = Unary::Atan;
    /// Hyperbolic sine.
    sinh = Unary::Sinh;
    /// Hyperbolic cosine.
    cosh = Unary::Cosh;
    /// Inverse hyperbolic sine.
    asinh = Unary::Asinh;
    /// Inverse hyperbolic cosine.
    acosh = Unary::Acosh;
    /// Inverse hyperbolic tangent.
    atanh = Unary::Atanh;
    /// The error function.
    erf = Unary::Erf;
    /// −1, 0 or 1.
    sign = Unary::Sign;
    /// The largest integer that is not above x.
    floor = Unary::Floor;
    /// The smallest integer that is not below x.
    ceil = Unary::Ceil;
    /// The nearest integer, the even one of two.
    round = Unary::Round;
    /// max(x, 0).
    relu = Unary::Relu;
    /// x · σ(x).
    silu = Unary::Silu;
    /// 1 / (1 + e⁻ˣ).
    sigmoid = Unary::Sigmoid;
    /// Hyperbolic tangent.
    tanh = Unary::Tanh;
    /// log(1 + eˣ).
    softplus = Unary::Softplus;
    /// x/6 + ½ limited to 0 to 1 (Howard et al. 2019).
    hard_sigmoid = Unary::HardSigmoid;
    /// x · hard-sigmoid(x) (Howard et al. 2019).
    hard_swish = Unary::HardSwish;
}

binary! {
    /// a + b.
    add = binary Binary::Add;
    /// a − b.
    sub = binary Binary::Sub;
    /// a · b.
    mul = binary Binary::Mul;
    /// a / b.
    div = binary Binary::Div;
    /// The larger operand.
    maximum = binary Binary::Maximum;
    /// The smaller operand.
    minimum = binary Binary::Minimum;
    /// Whether elements are equal.
    equal = compare Comparison::Equal;
    /// Whether elements differ.
    not_equal = compare Comparison::NotEqual;
    /// Whether a < b.
    less = compare Comparison::Less;
    /// Whether a ≤ b.
    less_or_equal = compare Comparison::LessOrEqual;
    /// Whether a > b.
    greater = compare Comparison::Greater;
    /// Whether a ≥ b.
    greater_or_equal = compare Comparison::GreaterOrEqual;
    /// Whether both hold.
    logical_and = logic Logic::And;
    /// Whether one holds.
    logical_or = logic Logic::Or;
}

impl Builder {
    fn unary(&mut self, name: &str, kind: Unary, x: Value) -> Result<Value, Error> {
        let node = self.operand(x)?;
        float(&name.replace('_', "-"), node).map_err(|e| e.at(x))?;
        let typed = (node.dtype, node.shape.clone());
        self.push(Op::Unary(kind), &[x], typed)
    }

    fn binary(&mut self, kind: Binary, a: Value, b: Value) -> Result<Value, Error> {
        let typed = binary(kind, self.operand(a)?, self.operand(b)?);
        let typed = self.at_next(typed)?;
        self.push(Op::Binary(kind), &[a, b], typed)
    }

    fn compare(&mut self, kind: Comparison, a: Value, b: Value) -> Result<Value, Error> {
        let typed = broadcast(kind.name(), self.operand(a)?, self.operand(b)?);
        let (_, shape) = self.at_next(typed)?;
        self.push(Op::Compare(kind), &[a, b], (DType::Bool, shape))
    }

    fn logic(&mut self, kind: Logic, a: Value, b: Value) -> Result<Value, Error> {
        for x in [a, b] {
            boolean(kind.name(), self.operand(x)?).map_err(|e| e.at(x))?;
        }
        let typed = broadcast(kind.name(), self.operand(a)?, self.operand(b)?);
        let typed = self.at_next(typed)?;
        self.push(Op::Logic(kind), &[a, b], typed)
    }

    /// Whether x does not hold.
    pub fn logical_not(&mut self, x: Value) -> Result<Value, Error> {
        boolean("logical-not", self.operand(x)?).map_err(|e| e.at(x))?;
        let no = self.constant(DType::Bool, &[], &[0])?;
        self.equal(x, no)
    }

    /// a where the condition holds, else b.
    pub fn select(&mut self, condition: Value, a: Value, b: Value) -> Result<Value, Error> {
        let typed = select(self.operand(condition)?, self.operand(a)?, self.operand(b)?);
        let typed = self.at_next(typed)?;
        self.push(Op::Select, &[condition, a, b], typed)
    }

    /// x · factor + offset.
    pub fn affine(&mut self, x: Value, factor: f64, offset: f64) -> Result<Value, Error> {
        self.unary("affine", Unary::Affine { factor, offset }, x)
    }

    /// xᵖ.
    pub fn pow(&mut self, x: Value, exponent: f64) -> Result<Value, Error> {
        self.unary("pow", Unary::Pow { exponent }, x)
    }

    /// x limited to [low, high].
    pub fn clamp(&mut self, x: Value, low: f64, high: f64) -> Result<Value, Error> {
        if low.is_nan() || high.is_nan() || low > high {
            return self.at_next(Err(Error::attribute(format!(
                "clamp: {low} to {high} is not a range"
            ))));
        }
        self.unary("clamp", Unary::Clamp { low, high }, x)
    }

    /// x where x > 0, else slope · x.
    pub fn leaky_relu(&mut self, x: Value, slope: f64) -> Result<Value, Error> {
        self.unary("leaky-relu", Unary::LeakyRelu { slope }, x)
    }

    /// x where x > 0, else alpha · (eˣ − 1).
    pub fn elu(&mut self, x: Value, alpha: f64) -> Result<Value, Error> {
        self.unary("elu", Unary::Elu { alpha }, x)
    }

    /// x · Φ(x), or its tanh form.
    pub fn gelu(&mut self, x: Value, approximate: bool) -> Result<Value, Error> {
        let kind = if approximate {
            Unary::GeluTanh
        } else {
            Unary::Gelu
        };
        self.unary("gelu", kind, x)
    }

    /// The same numbers as float32, int64 or boolean.
    pub fn cast(&mut self, x: Value, dtype: DType) -> Result<Value, Error> {
        let shape = self.operand(x)?.shape.clone();
        if !matches!(dtype, DType::F32 | DType::I64 | DType::Bool) {
            return self.at_next(Err(Error::dtype(format!(
                "cast: {dtype} is not computed with; use float32, int64 or boolean"
            ))));
        }
        self.push(Op::Cast, &[x], (dtype, shape))
    }
}
