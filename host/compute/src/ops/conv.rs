//! Two-dimensional convolution.

use super::{Op, Typed, float};
use crate::builder::Builder;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Node, Value};
use crate::shape::{Dim, Shape};

/// Attributes; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Distance between windows.
    pub stride: (u32, u32),
    /// Zeros on either side.
    pub padding: (u32, u32),
    /// Distance between the elements of a window.
    pub dilation: (u32, u32),
    /// Groups of channels that do not mix.
    pub groups: u32,
}

impl Default for Conv2d {
    /// Stride 1, no padding, dilation 1, one group.
    fn default() -> Self {
        Self {
            stride: (1, 1),
            padding: (0, 0),
            dilation: (1, 1),
            groups: 1,
        }
    }
}

/// ⌊(size + 2·padding − dilation·(kernel − 1) − 1) / stride⌋ + 1; none where no window fits.
pub(crate) fn windows(
    size: u64,
    kernel: u64,
    stride: u32,
    padding: u32,
    dilation: u32,
) -> Option<u64> {
    let reach = u64::from(dilation)
        .checked_mul(kernel.checked_sub(1)?)?
        .checked_add(1)?;
    let padded = size.checked_add(2 * u64::from(padding))?;
    Some(padded.checked_sub(reach)? / u64::from(stride) + 1)
}

/// `[batch, channels, height, width]` of a node.
pub(crate) fn image(name: &str, node: &Node) -> Result<(Dim, u64, u64, u64), Error> {
    float(name, node)?;
    match node.shape.0[..] {
        [n, Dim::Fixed(c), Dim::Fixed(h), Dim::Fixed(w)] => Ok((n, c, h, w)),
        _ => Err(Error::shape(format!(
            "{name} takes [batch, channels, height, width], not {}",
            node.shape
        ))),
    }
}

pub(crate) fn conv2d(
    c: &Conv2d,
    x: &Node,
    weight: &Node,
    bias: Option<&Node>,
) -> Result<Typed, Error> {
    let (n, channels, height, width) = image("conv2d", x)?;
    let (out, per_group, kernel_height, kernel_width) = image("conv2d", weight)?;
    let Dim::Fixed(out) = out else {
        return Err(Error::shape(format!(
            "conv2d: weight {} holds the batch",
            weight.shape
        )));
    };
    let positive = [c.stride.0, c.stride.1, c.dilation.0, c.dilation.1, c.groups];
    if positive.contains(&0) {
        return Err(Error::attribute(
            "conv2d: stride, dilation and groups must be at least 1",
        ));
    }
    let groups = u64::from(c.groups);
    let refuse = |why: String| {
        Error::shape(format!(
            "conv2d: x {} and weight {}: {why}",
            x.shape, weight.shape
        ))
    };
    if per_group.checked_mul(groups) != Some(channels) || out == 0 || out % groups != 0 {
        return Err(refuse(format!("channels do not fit {groups} groups")));
    }
    if let Some(bias) = bias {
        float("conv2d", bias)?;
        if bias.shape != Shape::fixed(&[out]) {
            return Err(refuse(format!("bias {} is not [{out}]", bias.shape)));
        }
    }
    let rows = windows(height, kernel_height, c.stride.0, c.padding.0, c.dilation.0);
    let columns = windows(width, kernel_width, c.stride.1, c.padding.1, c.dilation.1);
    let (Some(rows), Some(columns)) = (rows, columns) else {
        return Err(refuse(
            "the kernel does not fit into the padded image".into(),
        ));
    };
    let shape = vec![n, Dim::Fixed(out), Dim::Fixed(rows), Dim::Fixed(columns)];
    Ok((DType::F32, Shape(shape)))
}

/// y = x ⋆ w + b: dx is the transposed convolution of dy with w, dw the correlation of x with dy,
/// db the sum of dy over batch, height and width.
pub(crate) fn gradient(
    b: &mut Builder,
    conv: &Conv2d,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let (x, weight) = (inputs[0], inputs[1]);
    let typed = |b: &Builder, v: Value| (DType::F32, b.node(v).shape.clone());
    let dx = b.push(Op::Conv2dInputGradient(*conv), &[dy, weight], typed(b, x))?;
    let dw = b.push(Op::Conv2dWeightGradient(*conv), &[x, dy], typed(b, weight))?;
    let mut gradients = vec![Some(dx), Some(dw)];
    if inputs.len() > 2 {
        gradients.push(Some(b.sum(dy, &[0, 2, 3], false)?));
    }
    Ok(gradients)
}

/// x·w with w's axes swapped: dx is the convolution of dy with w, dw that of dy's patches with x.
pub(crate) fn transpose_gradient(
    b: &mut Builder,
    conv: &Conv2d,
    inputs: &[Value],
    dy: Value,
) -> Result<Vec<Option<Value>>, Error> {
    let (x, weight) = (inputs[0], inputs[1]);
    let typed = |b: &Builder, v: Value| (DType::F32, b.node(v).shape.clone());
    let dx = b.push(Op::Conv2d(*conv), &[dy, weight], typed(b, x))?;
    let dw = b.push(Op::Conv2dWeightGradient(*conv), &[dy, x], typed(b, weight))?;
    Ok(vec![Some(dx), Some(dw)])
}

impl Builder {
    /// Cross-correlation of `[batch, in, height, width]` with `[out, in/groups, height, width]`.
    pub fn conv2d(
        &mut self,
        x: Value,
        weight: Value,
        bias: Option<Value>,
        attributes: Conv2d,
    ) -> Result<Value, Error> {
        let bias_node = bias.map(|b| self.operand(b)).transpose()?;
        let typed = conv2d(
            &attributes,
            self.operand(x)?,
            self.operand(weight)?,
            bias_node,
        );
        let typed = self.at_next(typed)?;
        let inputs: Vec<Value> = [x, weight].into_iter().chain(bias).collect();
        self.push(Op::Conv2d(attributes), &inputs, typed)
    }

    /// Cross-correlation of `[batch, in, length]` with `[out, in/groups, length]`.
    pub fn conv1d(
        &mut self,
        x: Value,
        weight: Value,
        bias: Option<Value>,
        (stride, padding, dilation, groups): (u32, u32, u32, u32),
    ) -> Result<Value, Error> {
        let line = |b: &mut Self, v: Value| -> Result<Value, Error> {
            let shape = b.operand(v)?.shape.clone();
            let [first, second, length] = shape.0[..] else {
                let why = format!("conv1d takes three axes, not {shape}");
                return b.at_next(Err(Error::shape(why)));
            };
            b.reshape_to(v, &Shape(vec![first, second, Dim::Fixed(1), length]))
        };
        let (x, weight) = (line(self, x)?, line(self, weight)?);
        let attributes = Conv2d {
            stride: (1, stride),
            padding: (0, padding),
            dilation: (1, dilation),
            groups,
        };
        let y = self.conv2d(x, weight, bias, attributes)?;
        let mut shape = self.node(y).shape.clone();
        shape.0.remove(2);
        self.reshape_to(y, &shape)
    }

    /// The gradient of a convolution as an operator: x `[batch, in, height, width]`, weight
    /// `[in, out/groups, height, width]`; the result grows by the stride, and by `extra` rows and
    /// columns (fewer than the stride) at the end.
    pub fn conv_transpose2d(
        &mut self,
        x: Value,
        weight: Value,
        bias: Option<Value>,
        attributes: Conv2d,
        extra: (u32, u32),
    ) -> Result<Value, Error> {
        let name = "conv-transpose2d";
        let c = &attributes;
        let (n, channels, height, width) = self.at_next(image(name, self.operand(x)?))?;
        let (from, per_group, kernel_height, kernel_width) =
            self.at_next(image(name, self.operand(weight)?))?;
        let refuse = |b: &Self| {
            let (x, weight) = (&b.node(x).shape, &b.node(weight).shape);
            b.at_next(Err(Error::shape(format!(
                "{name}: x {x} and weight {weight} do not fit with {attributes:?} and {extra:?} more"
            ))))
        };
        let size =
            |size: u64, kernel: u64, stride: u32, padding: u32, dilation: u32, extra: u32| {
                let reach = u64::from(dilation).checked_mul(kernel.checked_sub(1)?)?;
                let grown = u64::from(stride).checked_mul(size.checked_sub(1)?)?;
                let all = grown
                    .checked_add(reach)?
                    .checked_add(1 + u64::from(extra))?;
                (extra < stride.max(dilation)).then_some(())?;
                all.checked_sub(2 * u64::from(padding)).filter(|&n| n > 0)
            };
        let rows = size(
            height,
            kernel_height,
            c.stride.0,
            c.padding.0,
            c.dilation.0,
            extra.0,
        );
        let columns = size(
            width,
            kernel_width,
            c.stride.1,
            c.padding.1,
            c.dilation.1,
            extra.1,
        );
        let out = per_group.checked_mul(u64::from(c.groups));
        let (Some(rows), Some(columns), Some(out)) = (rows, columns, out) else {
            return refuse(self);
        };
        let shape = Shape(vec![
            n,
            Dim::Fixed(out),
            Dim::Fixed(rows),
            Dim::Fixed(columns),
        ]);
        // The convolution of such a result is of x's shape.
        let result = Node {
            op: Op::Reshape,
            inputs: Vec::new(),
            dtype: DType::F32,
            shape: shape.clone(),
            origin: x,
            again: 0,
        };
        let back = conv2d(c, &result, self.node(weight), None);
        if from != Dim::Fixed(channels)
            || back.ok().map(|(_, shape)| shape).as_ref() != Some(&self.node(x).shape)
        {
            return refuse(self);
        }
        let op = Op::Conv2dInputGradient(attributes);
        let y = self.push(op, &[x, weight], (DType::F32, shape))?;
        let Some(bias) = bias else {
            return Ok(y);
        };
        if self.operand(bias)?.shape != Shape::fixed(&[out]) {
            return refuse(self);
        }
        let column = self.reshape_to(bias, &Shape::fixed(&[out, 1, 1]))?;
        self.add(y, column)
    }
}
