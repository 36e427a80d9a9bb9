//! A model, operator by operator.

use std::collections::{BTreeSet, HashMap};

use compute::{DType, Dim, HostTensor, Value};
use prost::Message;
use serde_json::json;

use crate::calls::Call;
use crate::error::{Error, Refusal, refuse};
use crate::graph::{Graph, Item};
use crate::operators;
use crate::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use crate::tensor::{self, computed};

/// A model as it was read.
#[derive(Debug)]
pub struct Model {
    graph: GraphProto,
    opset: i64,
}

/// A tensor that is fed or computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// The name.
    pub name: String,
    /// What it is computed as: float32, int64 or boolean.
    pub dtype: DType,
    /// The sizes.
    pub dims: Vec<Dim>,
}

/// A model as calls of the contract's builder.
#[derive(Debug)]
pub struct Imported {
    /// The calls, in order.
    pub calls: Vec<Call>,
    /// The parameters that calls name, with their elements.
    pub weights: Vec<(String, HostTensor)>,
    /// What is fed.
    pub inputs: Vec<Port>,
    /// What is computed, by the model's names; outputs are named by their numbers in calls:
    /// `output.0`, `output.1`, ….
    pub outputs: Vec<Port>,
    /// The graph that the calls build.
    pub graph: compute::Graph,
}

impl Imported {
    /// Gives the first input another name.
    pub fn rename_input(&mut self, name: &str) {
        let call = self.calls.iter_mut().find(|call| call.0 == "input");
        if let (Some(Call(_, _, attributes)), Some(port)) = (call, self.inputs.first_mut()) {
            name.clone_into(&mut port.name);
            if let Some(attribute) = attributes.first_mut() {
                *attribute = json!(name);
            }
        }
    }

    /// Takes means off the channels of the only input, which is an image, and divides by
    /// deviations, before anything else. Errors: [`Error::Port`] where the numbers do not fit.
    pub fn normalize(&mut self, mean: &[f32], deviation: &[f32]) -> Result<(), Error> {
        let fail = |name: &str, why: &str| {
            Err(Error::Port {
                name: name.to_owned(),
                why: why.to_owned(),
            })
        };
        let [port] = &self.inputs[..] else {
            return fail("", "only a model of one input is normalised");
        };
        let channels = mean.len();
        let fits = matches!(port.dims[..], [_, Dim::Fixed(c), _, _] if c == channels as u64);
        if !fits || deviation.len() != channels || port.dtype != DType::F32 {
            return fail(
                &port.name,
                "it does not have as many channels as there are numbers",
            );
        }
        if deviation.iter().any(|d| !d.is_finite() || *d <= 0.0) {
            return fail(&port.name, "a deviation is not above 0");
        }
        let constant = |values: &mut dyn Iterator<Item = f32>| {
            let hexadecimal: String = values
                .flat_map(f32::to_le_bytes)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let attributes = vec![
                json!("float32"),
                json!([channels, 1, 1]),
                json!(hexadecimal),
            ];
            Call("constant".to_owned(), Vec::new(), attributes)
        };
        // The input is result 0; these are 1 to 4, and what follows moves by as many.
        let added = [
            constant(&mut mean.iter().copied()),
            constant(&mut deviation.iter().map(|d| 1.0 / d)),
            Call("sub".to_owned(), vec![0, 1], Vec::new()),
            Call("mul".to_owned(), vec![3, 2], Vec::new()),
        ];
        let moved = |operand: &mut u32| *operand += added.len() as u32;
        for Call(_, operands, _) in self.calls.iter_mut().skip(1) {
            operands.iter_mut().for_each(moved);
        }
        self.calls.splice(1..1, added);
        Ok(())
    }
}

impl Model {
    /// Reads a model. Errors: [`Error::Format`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let model = ModelProto::decode(bytes).map_err(|e| Error::Format(e.to_string()))?;
        let graph = model
            .graph
            .ok_or_else(|| Error::Format("it has no graph".to_owned()))?;
        let own = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        let set = model.opset_import.iter().find(|set| own(&set.domain));
        Ok(Self {
            graph,
            opset: set.map_or(1, |set| set.version),
        })
    }

    /// The names of what is fed: inputs that are no initializers.
    pub fn inputs(&self) -> Vec<&str> {
        let known: BTreeSet<&str> = self.graph.initializer.iter().map(|t| &*t.name).collect();
        let names = self.graph.input.iter().map(|input| &*input.name);
        names.filter(|name| !known.contains(name)).collect()
    }
}

/// Shape and dtype of an input. Its first size may be unknown: the batch.
fn port(info: &ValueInfoProto) -> Result<Port, Error> {
    let fail = |why: &str| {
        Err(Error::Port {
            name: info.name.clone(),
            why: why.to_owned(),
        })
    };
    let Some(tensor) = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()) else {
        return fail("it is no tensor");
    };
    let Some(dtype) = tensor::dtype(tensor.elem_type) else {
        return fail("its type is not supported");
    };
    let Some(shape) = &tensor.shape else {
        return fail("its shape is unknown");
    };
    let mut dims = Vec::with_capacity(shape.dim.len());
    for (axis, dim) in shape.dim.iter().enumerate() {
        dims.push(match dim.dim_value {
            Some(size @ 1..) => Dim::Fixed(size as u64),
            Some(0) | None if axis == 0 && dim.dim_value.is_none() => Dim::Batch(1),
            _ => return fail(&format!("the size of its axis {axis} is unknown")),
        });
    }
    Ok(Port {
        name: info.name.clone(),
        dtype: computed(dtype),
        dims,
    })
}

/// Imports a model; inputs in `known` are taken to be these tensors always.
///
/// Errors: [`Error::Operators`] with every operator that is not supported, otherwise the first
/// thing that stands against the model.
pub fn import(model: &Model, known: &HashMap<String, HostTensor>) -> Result<Imported, Error> {
    let unsupported: BTreeSet<String> = model
        .graph
        .node
        .iter()
        .filter(|node| !operators::is_supported(node))
        .map(operators::name)
        .collect();
    if !unsupported.is_empty() {
        return Err(Error::Operators(unsupported.into_iter().collect()));
    }
    let mut graph = Graph::default();
    let mut items: HashMap<String, Item> = HashMap::new();
    for proto in &model.graph.initializer {
        items.insert(proto.name.clone(), Item::Known(tensor::read(proto)?));
    }
    let mut inputs = Vec::new();
    for info in &model.graph.input {
        if items.contains_key(&info.name) {
            continue;
        }
        if let Some(tensor) = known.get(&info.name) {
            items.insert(info.name.clone(), Item::Known(tensor.clone()));
            continue;
        }
        let port = port(info)?;
        let sizes = port.dims.iter().map(|d| match d {
            Dim::Fixed(n) => *n,
            Dim::Batch(_) => 0,
        });
        let attributes = json!([port.name, port.dtype.name(), sizes.collect::<Vec<u64>>()]);
        let value = graph.call("input", &[], attributes);
        let value = value.map_err(|why| Error::Port {
            name: info.name.clone(),
            why: why.to_string(),
        })?;
        items.insert(info.name.clone(), Item::Computed(value));
        inputs.push(port);
    }
    for proto in &model.graph.node {
        let mut node = Node {
            graph: &mut graph,
            items: &items,
            proto,
            opset: model.opset,
        };
        let results = operators::convert(&mut node).and_then(|results| {
            let wanted = proto.output.iter().rposition(|name| !name.is_empty());
            if results.len() > wanted.unwrap_or(0) || wanted.is_none() {
                return Ok(results);
            }
            let used = |name: &String| {
                let nodes = model.graph.node.iter().flat_map(|node| &node.input);
                let outputs = model.graph.output.iter().map(|output| &output.name);
                !name.is_empty() && nodes.chain(outputs).any(|other| other == name)
            };
            if proto.output[results.len()..].iter().any(used) {
                return refuse("one of its further results is not supported");
            }
            Ok(results)
        });
        let results = results.map_err(|why| Error::Node {
            node: format!("{} `{}`", proto.op_type, proto.name),
            why: why.to_string(),
        })?;
        for (name, item) in proto.output.iter().zip(results) {
            items.insert(name.clone(), item);
        }
    }
    let mut outputs = Vec::new();
    for (i, info) in model.graph.output.iter().enumerate() {
        let mut finish = || -> Result<Port, Refusal> {
            let Some(item) = items.get(&info.name) else {
                return refuse("nothing computes it");
            };
            let value = graph.value(item)?;
            graph.output(&format!("output.{i}"), value)?;
            Ok(Port {
                name: info.name.clone(),
                dtype: graph.dtype(value)?,
                dims: graph.dims(value)?,
            })
        };
        outputs.push(finish().map_err(|why| Error::Port {
            name: info.name.clone(),
            why: why.to_string(),
        })?);
    }
    Ok(Imported {
        graph: graph.finished(),
        calls: graph.calls,
        weights: graph.weights,
        inputs,
        outputs,
    })
}

/// An operator of the model, and the computation that it is added to.
pub(crate) struct Node<'a> {
    pub(crate) graph: &'a mut Graph,
    items: &'a HashMap<String, Item>,
    pub(crate) proto: &'a NodeProto,
    pub(crate) opset: i64,
}

impl Node<'_> {
    pub(crate) fn operator(&self) -> &str {
        &self.proto.op_type
    }

    /// The number of operands, those that are left out among them.
    pub(crate) fn operands(&self) -> usize {
        self.proto.input.len()
    }

    /// An operand; none where it is left out.
    pub(crate) fn maybe(&self, i: usize) -> Option<&Item> {
        let name = self.proto.input.get(i).filter(|name| !name.is_empty())?;
        self.items.get(name)
    }

    pub(crate) fn item(&self, i: usize) -> Result<&Item, Refusal> {
        match self.maybe(i) {
            Some(item) => Ok(item),
            None => refuse(format!("operand {i} is missing")),
        }
    }

    /// The value of an operand.
    pub(crate) fn x(&mut self, i: usize) -> Result<Value, Refusal> {
        let item = self.item(i)?.clone();
        self.graph.value(&item)
    }

    pub(crate) fn optional(&mut self, i: usize) -> Result<Option<Value>, Refusal> {
        match self.maybe(i).cloned() {
            Some(item) => self.graph.value(&item).map(Some),
            None => Ok(None),
        }
    }

    /// The values of all operands.
    pub(crate) fn all(&mut self) -> Result<Vec<Value>, Refusal> {
        (0..self.operands()).map(|i| self.x(i)).collect()
    }

    /// The integers of an operand, which must be known.
    pub(crate) fn integers(&self, i: usize) -> Result<Option<Vec<i64>>, Refusal> {
        self.maybe(i)
            .map(|item| self.graph.integers(item))
            .transpose()
    }

    /// The numbers of an operand, which must be known.
    pub(crate) fn numbers(&self, i: usize) -> Result<Option<Vec<f64>>, Refusal> {
        self.maybe(i)
            .map(|item| self.graph.numbers(item))
            .transpose()
    }

    pub(crate) fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.proto.attribute.iter().find(|a| a.name == name)
    }

    pub(crate) fn i(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |a| a.i)
    }

    pub(crate) fn f(&self, name: &str, default: f64) -> f64 {
        self.attribute(name).map_or(default, |a| f64::from(a.f))
    }

    pub(crate) fn s(&self, name: &str, default: &str) -> String {
        let text = |a: &AttributeProto| String::from_utf8_lossy(&a.s).into_owned();
        self.attribute(name)
            .map_or_else(|| default.to_owned(), text)
    }

    pub(crate) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.attribute(name).map(|a| a.ints.clone())
    }

    /// Integers of an attribute, or in newer operator sets of an operand.
    pub(crate) fn listed(&self, name: &str, operand: usize) -> Result<Option<Vec<i64>>, Refusal> {
        match self.ints(name) {
            Some(list) => Ok(Some(list)),
            None => self.integers(operand),
        }
    }

    /// An axis that may count from the end.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> Result<usize, Refusal> {
        let counted = if axis < 0 { axis + rank as i64 } else { axis };
        match usize::try_from(counted) {
            Ok(axis) if axis < rank => Ok(axis),
            _ => refuse(format!("there is no axis {axis} of {rank}")),
        }
    }

    pub(crate) fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, Refusal> {
        axes.iter().map(|&axis| self.axis(axis, rank)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;
    use crate::proto::{
        DimensionProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
    };

    fn value(name: &str, sizes: &[Option<i64>]) -> ValueInfoProto {
        let dim = |size: &Option<i64>| DimensionProto {
            dim_value: *size,
            dim_param: None,
        };
        let tensor = TensorTypeProto {
            elem_type: 1,
            shape: Some(TensorShapeProto {
                dim: sizes.iter().map(dim).collect(),
            }),
        };
        ValueInfoProto {
            name: name.to_owned(),
            r#type: Some(TypeProto {
                tensor_type: Some(tensor),
            }),
        }
    }

    fn model(operators: &[&str], sizes: &[Option<i64>]) -> Vec<u8> {
        let node = |(i, op): (usize, &&str)| NodeProto {
            input: vec![format!("v{i}")],
            output: vec![format!("v{}", i + 1)],
            op_type: (*op).to_owned(),
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: operators.iter().enumerate().map(node).collect(),
            input: vec![value("v0", sizes)],
            output: vec![value(&format!("v{}", operators.len()), sizes)],
            ..GraphProto::default()
        };
        let model = ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }

    fn imported(operators: &[&str], sizes: &[Option<i64>]) -> Result<Imported, Error> {
        import(
            &Model::parse(&model(operators, sizes)).unwrap(),
            &HashMap::new(),
        )
    }

    #[test]
    fn every_operator_that_is_not_supported_is_named_once() {
        let refused = imported(&["LSTM", "Relu", "Loop", "LSTM"], &[Some(3)]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "operators that are not supported: LSTM, Loop"
        );
    }

    #[test]
    fn a_first_size_without_a_number_is_the_batch_and_another_is_refused() {
        let relu = imported(&["Relu"], &[None, Some(3)]).unwrap();
        assert_eq!(relu.inputs[0].dims, [Dim::Batch(1), Dim::Fixed(3)]);
        assert_eq!(relu.outputs[0].dims, [Dim::Batch(1), Dim::Fixed(3)]);
        let refused = imported(&["Relu"], &[Some(3), None]).unwrap_err();
        assert!(refused.to_string().contains("axis 1"), "{refused}");
    }

    #[test]
    fn normalising_moves_what_follows_the_input() {
        let mut relu = imported(&["Relu"], &[None, Some(2), Some(4), Some(4)]).unwrap();
        relu.rename_input("x");
        relu.normalize(&[0.5, 0.25], &[2.0, 4.0]).unwrap();
        let ops: Vec<&str> = relu.calls.iter().map(|call| &*call.0).collect();
        let expected = [
            "input", "constant", "constant", "sub", "mul", "relu", "output",
        ];
        assert_eq!(ops, expected);
        assert_eq!(relu.calls[5].1, [4]);
        assert_eq!(relu.calls[6].1, [5]);
        for (mean, deviation) in [(&[0.5][..], &[1.0][..]), (&[0.5, 0.5], &[1.0, 0.0])] {
            assert!(relu.normalize(mean, deviation).is_err());
        }
    }

    /// Imports one operator of inputs of these sizes, with attributes that are integers.
    fn operator(op: &str, inputs: &[&[i64]], attributes: &[(&str, &[i64])]) -> Result<(), String> {
        let names: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
        let attribute = |(name, numbers): &(&str, &[i64])| AttributeProto {
            name: (*name).to_owned(),
            i: numbers[0],
            ints: numbers.to_vec(),
            ..AttributeProto::default()
        };
        let node = NodeProto {
            input: names.clone(),
            output: vec!["y".to_owned()],
            op_type: op.to_owned(),
            attribute: attributes.iter().map(attribute).collect(),
            ..NodeProto::default()
        };
        let input = |(name, sizes): (&String, &&[i64])| {
            value(
                name,
                &sizes.iter().map(|&size| Some(size)).collect::<Vec<_>>(),
            )
        };
        let graph = GraphProto {
            node: vec![node],
            input: names.iter().zip(inputs).map(input).collect(),
            output: vec![value("y", &[])],
            ..GraphProto::default()
        };
        let model = Model { graph, opset: 20 };
        let imported = import(&model, &HashMap::new());
        imported.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn sizes_that_do_not_fit_or_take_all_memory_or_time_are_refused() {
        let most = i64::MAX;
        let refused = operator("Split", &[&[4, 3]], &[("num_outputs", &[most])]).unwrap_err();
        assert!(refused.contains("parts of 4"), "{refused}");
        let long: &[i64] = &[1, 1, 1 << 36, 1];
        let refused = operator("Attention", &[&[1, 1, 1, 1], long, long], &[]).unwrap_err();
        assert!(refused.contains("a sequence"), "{refused}");
        let cut: &[i64] = &[i64::MIN, 0, i64::MIN, 0];
        assert!(operator("Pad", &[&[4, 3]], &[("pads", cut)]).is_err());
        let shape: &[i64] = &[i64::MIN, most];
        let weight: &[i64] = &[1, 1, 3, 3];
        let transposed = [("output_shape", shape)];
        assert!(operator("ConvTranspose", &[&[1, 1, 4, 4], weight], &transposed).is_err());
        let scattered = operator("ScatterElements", &[&[2, 3], &[], &[]], &[]);
        assert!(scattered.unwrap_err().contains("only a part"));
        // A window over far more than the image: quick, whatever its size.
        let (side, pads): (i64, &[i64]) = ((1 << 20) - 1, &[(1 << 20) - 1; 2]);
        let window = [("kernel_shape", &[side][..]), ("pads", pads)];
        operator("AveragePool", &[&[1, 1, 1 << 20]], &window).unwrap();
    }

    #[test]
    fn a_value_that_would_take_all_memory_is_not_computed() {
        let known = |name: &str, numbers: &[i64]| TensorProto {
            name: name.to_owned(),
            data_type: 7,
            dims: vec![numbers.len() as i64],
            int64_data: numbers.to_vec(),
            ..TensorProto::default()
        };
        let node = |op: &str, input: &[&str], output: &str| NodeProto {
            op_type: op.to_owned(),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            initializer: vec![known("size", &[1 << 36])],
            input: vec![value("x", &[Some(2)])],
            node: vec![
                node("ConstantOfShape", &["size"], "zeros"),
                node("Reshape", &["x", "zeros"], "y"),
            ],
            output: vec![value("y", &[])],
        };
        let model = Model { graph, opset: 20 };
        let refused = import(&model, &HashMap::new()).unwrap_err().to_string();
        assert!(refused.contains("bytes"), "{refused}");
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for bytes in [&b"\xff\xff\xff"[..], b"hello", b""] {
            let refused = Model::parse(bytes).unwrap_err();
            assert!(
                refused.to_string().starts_with("no ONNX model"),
                "{refused}"
            );
        }
    }
}
