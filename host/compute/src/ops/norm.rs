//! Batch normalisation (Ioffe and Szegedy 2015), layer normalisation (Ba et al. 2016) and what is
//! made of it.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Leaf, Node, Role, Value};
use crate::shape::{Dim, Shape};

/// The channels of x `[batch, channels, …]`, after checking that every other operand is
/// `[channels]`.
pub(crate) fn check(name: &str, x: &Node, vectors: &[&Node]) -> Result<u64, Error> {
    float(name, x)?;
    let Some(&Dim::Fixed(channels)) = x.shape.0.get(1) else {
        return Err(Error::shape(format!(
            "{name} takes [batch, channels, …], not {}",
            x.shape
        )));
    };
    for vector in vectors {
        float(name, vector)?;
        if vector.shape != Shape::fixed(&[channels]) {
            return Err(Error::shape(format!(
                "{name}: {} does not fit x {}, expected [{channels}]",
                vector.shape, x.shape
            )));
        }
    }
    Ok(channels)
}

pub(crate) fn check_epsilon(name: &str, epsilon: f64) -> Result<(), Error> {
    if epsilon.is_finite() && epsilon >= 0.0 {
        return Ok(());
    }
    Err(Error::attribute(format!(
        "{name}: epsilon must be a number of at least 0"
    )))
}

pub(crate) fn statistics(channels: u64) -> Typed {
    (DType::F32, Shape::fixed(&[3, channels]))
}

/// With x̂ = (x − mean)·r and r = 1/√(variance + ε): dscale = Σ dy·x̂, dbias = Σ dy; in evaluation
/// dx = scale·r·dy; in training dx = scale·r·(dy − (dbias + x̂·dscale)/count).
pub(crate) fn gradient(
    b: &mut Builder,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let &[x, scale, _, statistics] = inputs else {
        return Ok(vec![None; inputs.len()]);
    };
    let typed = (DType::F32, b.node(x).shape.clone());
    let channels = b.node(scale).shape.clone();
    let pair = Shape([vec![Dim::Fixed(2)], channels.0.clone()].concat());
    let parameters = b.push(
        Op::BatchNormParameterGradient,
        &[x, dy, statistics],
        (DType::F32, pair),
    )?;
    let dx = if matches!(b.node(statistics).op, Op::BatchStatistics { .. }) {
        let operands = [dy, scale, statistics, x, parameters];
        b.push(Op::BatchNormTrainGradient, &operands, typed)?
    } else {
        b.push(Op::BatchNormEvalGradient, &[dy, scale, statistics], typed)?
    };
    let dscale = b.push(
        Op::Row { index: 0 },
        &[parameters],
        (DType::F32, channels.clone()),
    )?;
    let dbias = b.push(Op::Row { index: 1 }, &[parameters], (DType::F32, channels))?;
    // The statistics' own gradient is part of dx; fixed statistics are not trained.
    Ok(vec![Some(dx), Some(dscale), Some(dbias), None])
}

/// Attributes of a normalisation of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LayerNorm {
    pub(crate) epsilon: f64,
    /// Whether the mean is taken off first; RMS norm does not.
    pub(crate) centre: bool,
}

/// Rows that one partial sum of the parameters' gradients covers.
pub(crate) const PART_ROWS: usize = 64;

impl LayerNorm {
    /// Elements of workspace for the parameters' gradients: their partial sums.
    pub(crate) fn workspace(rows: usize, size: usize) -> Option<usize> {
        rows.div_ceil(PART_ROWS).checked_mul(2)?.checked_mul(size)
    }
}

/// The gradients of x, and of scale and bias where it has them. With x̂ = (x − mean)·r,
/// r = 1/√(variance + ε) and g = scale·dy: dx = r·(g − mean(g) − x̂·mean(g·x̂)), without mean(g)
/// where the mean is not taken off; dscale = Σ dy·x̂, dbias = Σ dy over rows.
pub(crate) fn layer_gradient(
    b: &mut Builder,
    attributes: LayerNorm,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let x = inputs[0];
    let typed = (DType::F32, b.node(x).shape.clone());
    let operands: Vec<Value> = [x, dy].into_iter().chain(inputs.get(1).copied()).collect();
    let dx = b.push(Op::LayerNormGradient(attributes), &operands, typed)?;
    let mut gradients = vec![Some(dx)];
    if let Some(&scale) = inputs.get(1) {
        let row = b.node(scale).shape.clone();
        let pair = Shape([vec![Dim::Fixed(2)], row.0.clone()].concat());
        let op = Op::LayerNormParameterGradient(attributes);
        let both = b.push(op, &[x, dy], (DType::F32, pair))?;
        for index in 0..inputs.len() - 1 {
            let typed = (DType::F32, row.clone());
            gradients.push(Some(b.push(Op::Row { index }, &[both], typed)?));
        }
    }
    Ok(gradients)
}

impl Builder {
    /// Batch normalisation with the batch's statistics; moves the running ones when the plan has
    /// an optimizer step.
    #[expect(clippy::too_many_arguments, reason = "the contract's operands")]
    pub fn batch_norm_train(
        &mut self,
        x: Value,
        scale: Value,
        bias: Value,
        running_mean: Value,
        running_variance: Value,
        momentum: f64,
        epsilon: f64,
    ) -> Result<Value, Error> {
        let name = "batch-norm-train";
        let vectors = [scale, bias, running_mean, running_variance];
        let nodes = vectors
            .iter()
            .map(|&v| self.operand(v))
            .collect::<Result<Vec<_>, _>>()?;
        let channels = self.at_next(check(name, self.operand(x)?, &nodes))?;
        self.at_next(check_epsilon(name, epsilon))?;
        if !(0.0..=1.0).contains(&momentum) {
            return self.at_next(Err(Error::attribute(format!(
                "{name}: momentum lies between 0 and 1"
            ))));
        }
        for running in [running_mean, running_variance] {
            let buffer = matches!(&self.node(running).op, Op::Leaf(Leaf::Variable(v)) if v.role == Role::Buffer);
            if !buffer {
                return Err(Error::attribute(format!(
                    "{name}: running statistics must be buffers"
                ))
                .at(running));
            }
        }
        if running_mean == running_variance {
            let why = format!("{name}: the running mean and variance are one buffer");
            return Err(Error::attribute(why).at(running_variance));
        }
        let typed = (DType::F32, self.node(x).shape.clone());
        let others = [&typed.1.0[..1], &typed.1.0[2..]].concat();
        let count = Shape::product(&others)
            .ok_or_else(|| Error::limit(format!("{name}: {} has too many elements", typed.1)));
        let count = self.at_next(count)?;
        let statistics = self.push(Op::BatchStatistics { epsilon }, &[x], statistics(channels))?;
        let update = [running_mean, running_variance, statistics];
        let moved = (DType::F32, Shape::default());
        self.push(Op::UpdateRunning { momentum, count }, &update, moved)?;
        self.push(Op::BatchNorm, &[x, scale, bias, statistics], typed)
    }

    /// Batch normalisation with given mean and variance, which get no gradient.
    pub fn batch_norm_eval(
        &mut self,
        x: Value,
        scale: Value,
        bias: Value,
        mean: Value,
        variance: Value,
        epsilon: f64,
    ) -> Result<Value, Error> {
        let name = "batch-norm-eval";
        let vectors = [scale, bias, mean, variance];
        let nodes = vectors
            .iter()
            .map(|&v| self.operand(v))
            .collect::<Result<Vec<_>, _>>()?;
        let channels = self.at_next(check(name, self.operand(x)?, &nodes))?;
        self.at_next(check_epsilon(name, epsilon))?;
        let typed = (DType::F32, self.node(x).shape.clone());
        let op = Op::FixedStatistics { epsilon };
        let statistics = self.push(op, &[mean, variance], statistics(channels))?;
        self.push(Op::BatchNorm, &[x, scale, bias, statistics], typed)
    }

    /// Rows of the last axes of x, as many as `scale` has, normalised.
    fn layer(
        &mut self,
        name: &str,
        attributes: LayerNorm,
        x: Value,
        parameters: &[Value],
        axes: usize,
    ) -> Result<Value, Error> {
        let node = self.operand(x)?;
        self.at_next(float(name, node))?;
        self.at_next(check_epsilon(name, attributes.epsilon))?;
        let shape = node.shape.clone();
        let refuse = |why: String| Err(Error::shape(format!("{name} of {shape}: {why}")));
        let Some(lead) = shape.rank().checked_sub(axes).filter(|_| axes > 0) else {
            return self.at_next(refuse(format!("it has no {axes} last axes")));
        };
        let (rows, row) = shape.0.split_at(lead);
        let Some(Dim::Fixed(size)) = Shape::product(row) else {
            return self.at_next(refuse("the batch is among the axes".into()));
        };
        let mut operands = Vec::with_capacity(3);
        let flat = Shape([rows, &[Dim::Fixed(size)]].concat());
        operands.push(self.reshape_to(x, &flat)?);
        for &parameter in parameters {
            let own = &self.operand(parameter)?.shape;
            if own.0 != row {
                return self.at_next(refuse(format!("{own} does not fit its last axes")));
            }
            self.at_next(float(name, self.node(parameter)))?;
            operands.push(self.reshape_to(parameter, &Shape::fixed(&[size]))?);
        }
        let y = self.push(Op::LayerNorm(attributes), &operands, (DType::F32, flat))?;
        self.reshape_to(y, &shape)
    }

    /// The last axes, as many as scale and bias have, with mean 0 and variance 1, then scaled and
    /// shifted.
    pub fn layer_norm(
        &mut self,
        x: Value,
        scale: Value,
        bias: Value,
        epsilon: f64,
    ) -> Result<Value, Error> {
        let attributes = LayerNorm {
            epsilon,
            centre: true,
        };
        let axes = self.operand(scale)?.shape.rank();
        self.layer("layer-norm", attributes, x, &[scale, bias], axes)
    }

    /// The last axes, as many as scale has, divided by their root mean square (Zhang and Sennrich
    /// 2019), then scaled.
    pub fn rms_norm(&mut self, x: Value, scale: Value, epsilon: f64) -> Result<Value, Error> {
        let attributes = LayerNorm {
            epsilon,
            centre: false,
        };
        let axes = self.operand(scale)?.shape.rank();
        self.layer("rms-norm", attributes, x, &[scale], axes)
    }

    /// Groups of neighbouring channels of x `[batch, channels, …]` with mean 0 and variance 1 (Wu
    /// and He 2018), each channel then scaled and shifted.
    pub fn group_norm(
        &mut self,
        x: Value,
        groups: u64,
        scale: Value,
        bias: Value,
        epsilon: f64,
    ) -> Result<Value, Error> {
        let name = "group-norm";
        let vectors = [self.operand(scale)?, self.operand(bias)?];
        let channels = self.at_next(check(name, self.operand(x)?, &vectors))?;
        if groups == 0 || channels % groups != 0 {
            let why = format!("{name}: {channels} channels in {groups} groups");
            return self.at_next(Err(Error::attribute(why)));
        }
        let shape = self.node(x).shape.clone();
        let plane = &shape.0[2..];
        let Some(Dim::Fixed(size)) = Shape::product(plane) else {
            let why = format!("{name}: only the first size of {shape} may be the batch");
            return self.at_next(Err(Error::shape(why)));
        };
        let rows = Shape(vec![
            shape.0[0],
            Dim::Fixed(groups),
            Dim::Fixed((channels / groups).saturating_mul(size)),
        ]);
        let attributes = LayerNorm {
            epsilon,
            centre: true,
        };
        let rows = self.reshape_to(x, &rows)?;
        let normal = self.layer(name, attributes, rows, &[], 1)?;
        let normal = self.reshape_to(normal, &shape)?;
        let mut column = vec![Dim::Fixed(channels)];
        column.extend(plane.iter().map(|_| Dim::Fixed(1)));
        let column = Shape(column);
        let (scale, bias) = (
            self.reshape_to(scale, &column)?,
            self.reshape_to(bias, &column)?,
        );
        let scaled = self.mul(normal, scale)?;
        self.add(scaled, bias)
    }

    /// x divided by the square root of its sum of squares along axes, which counts as `epsilon` at
    /// least.
    pub fn l2_normalize(&mut self, x: Value, axes: &[u32], epsilon: f64) -> Result<Value, Error> {
        self.at_next(check_epsilon("l2-normalize", epsilon))?;
        let square = self.mul(x, x)?;
        let sum = self.sum(square, axes, true)?;
        let least = self.clamp(sum, epsilon * epsilon, f64::MAX)?;
        let norm = self.sqrt(least)?;
        self.div(x, norm)
    }
}
