//! ONNX models: any bytes, and models that are made of operators as the bytes say.

use std::collections::HashMap;
use std::sync::OnceLock;

use ::onnx::{Model, apply, import, operators};
use compute::{Builder, Value};

use crate::bytes::{Bytes, random};
use crate::graph::execute;

/// Attributes of operators: names, and whether they are one number, a list, a fraction or a text.
const ATTRIBUTES: [(&str, Form); 56] = [
    ("axis", Form::Number),
    ("axes", Form::List),
    ("perm", Form::List),
    ("shape", Form::List),
    ("pads", Form::List),
    ("starts", Form::List),
    ("ends", Form::List),
    ("split", Form::List),
    ("output_shape", Form::List),
    ("output_padding", Form::List),
    ("kernel_shape", Form::List),
    ("strides", Form::List),
    ("dilations", Form::List),
    ("value_ints", Form::List),
    ("group", Form::Number),
    ("keepdims", Form::Number),
    ("upper", Form::Number),
    ("transA", Form::Number),
    ("transB", Form::Number),
    ("to", Form::Number),
    ("dtype", Form::Number),
    ("start", Form::Number),
    ("end", Form::Number),
    ("size", Form::Number),
    ("select_last_index", Form::Number),
    ("rotary_embedding_dim", Form::Number),
    ("q_num_heads", Form::Number),
    ("kv_num_heads", Form::Number),
    ("num_heads", Form::Number),
    ("num_groups", Form::Number),
    ("num_outputs", Form::Number),
    ("noop_with_empty_axes", Form::Number),
    ("largest", Form::Number),
    ("k", Form::Number),
    ("p", Form::Number),
    ("is_causal", Form::Number),
    ("interleaved", Form::Number),
    ("exclusive", Form::Number),
    ("reverse", Form::Number),
    ("count_include_pad", Form::Number),
    ("ceil_mode", Form::Number),
    ("blocksize", Form::Number),
    ("batch_dims", Form::Number),
    ("antialias", Form::Number),
    ("allowzero", Form::Number),
    ("value_int", Form::Number),
    ("ignore_index", Form::Number),
    ("alpha", Form::Fraction),
    ("beta", Form::Fraction),
    ("epsilon", Form::Fraction),
    ("value_float", Form::Fraction),
    ("scales", Form::Fractions),
    ("mode", Form::Text),
    ("coordinate_transformation_mode", Form::Text),
    ("auto_pad", Form::Text),
    ("reduction", Form::Text),
];
const TEXTS: [&str; 14] = [
    "linear",
    "cubic",
    "nearest",
    "DCR",
    "reflect",
    "edge",
    "wrap",
    "SAME_UPPER",
    "SAME_LOWER",
    "VALID",
    "align_corners",
    "tf_crop_and_resize",
    "add",
    "mean",
];

#[derive(Clone, Copy)]
enum Form {
    Number,
    List,
    Fraction,
    Fractions,
    Text,
}

/// The first byte tells whether the others are a file or what a model is made of.
pub fn run(bytes: &[u8]) {
    let mut bytes = Bytes::new(bytes);
    let made;
    let file = if bytes.byte() == 0 {
        bytes.rest()
    } else {
        made = model(&mut bytes);
        &made
    };
    let Ok(model) = Model::parse(file) else {
        return;
    };
    let _ = model.inputs();
    let Ok(mut imported) = import(&model, &HashMap::new()) else {
        return;
    };
    let mut builder = Builder::new();
    let mut values = Vec::new();
    for ::onnx::Call(op, operands, attributes) in &imported.calls {
        let operands: Vec<Value> = operands.iter().map(|&i| values[i as usize]).collect();
        match apply(&mut builder, op, &operands, attributes) {
            Ok(results) => values.extend(results),
            Err(error) => panic!("a call of an import is refused: {error}"),
        }
    }
    assert!(
        builder.graph() == imported.graph,
        "the calls build another graph"
    );
    execute(&imported.graph, 2, &mut bytes);
    imported.rename_input("image");
    let _ = imported.normalize(&[0.5], &[0.25]);
}

/// A field of a message: its number, and bytes.
fn field(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    varint(out, u64::from(number << 3 | 2));
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn integer(out: &mut Vec<u8>, number: u32, value: i64) {
    varint(out, u64::from(number << 3));
    varint(out, value as u64);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A number that attributes and shapes are likely to hold.
fn signed(bytes: &mut Bytes<'_>) -> i64 {
    match bytes.byte() {
        255 => i64::MIN,
        254 => i64::MAX,
        253 => i64::from(i32::MIN),
        252 => 1 << 40,
        251 => 0,
        byte @ 224.. => -i64::from(byte % 4),
        byte => i64::from(byte % 5),
    }
}

/// A tensor of dims, dtype and elements.
fn tensor(bytes: &mut Bytes<'_>, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut dims = bytes.list(4, signed);
    if !bytes.seldom() {
        dims.iter_mut().for_each(|dim| *dim = (*dim).rem_euclid(6));
    }
    let count = dims
        .iter()
        .try_fold(1usize, |n, &dim| n.checked_mul(dim.max(0) as usize));
    let count = count.filter(|&count| count <= 4096).unwrap_or(3);
    let count = if bytes.seldom() { count + 1 } else { count };
    let dtype = [1, 7, 1, 7, 9, 6, 11, 10, 3, 2][bytes.below(10)];
    dims.iter().for_each(|&dim| integer(&mut out, 1, dim));
    integer(&mut out, 2, dtype);
    field(&mut out, 8, name.as_bytes());
    match dtype {
        1 => {
            let elements = (0..count).flat_map(|i| ((i % 5) as f32 - 1.0).to_le_bytes());
            field(&mut out, 9, &elements.collect::<Vec<_>>());
        }
        7 => (0..count).for_each(|_| integer(&mut out, 7, signed(bytes))),
        _ => (0..count).for_each(|i| integer(&mut out, 5, i as i64 % 3)),
    }
    out
}

fn attribute(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let (name, form) = ATTRIBUTES[bytes.below(ATTRIBUTES.len())];
    field(&mut out, 1, name.as_bytes());
    let fraction = |out: &mut Vec<u8>, number: u32, value: f32| {
        varint(out, u64::from(number << 3 | 5));
        out.extend(value.to_le_bytes());
    };
    match form {
        Form::Number => integer(&mut out, 3, signed(bytes)),
        Form::List => {
            for number in bytes.list(4, signed) {
                integer(&mut out, 8, number);
            }
        }
        Form::Fraction => fraction(&mut out, 2, bytes.number() as f32),
        Form::Fractions => {
            for number in bytes.list(4, Bytes::number) {
                fraction(&mut out, 7, number as f32);
            }
        }
        Form::Text => field(&mut out, 4, TEXTS[bytes.below(TEXTS.len())].as_bytes()),
    }
    out
}

/// An input of a name, an element type and sizes.
fn input(name: &str, dtype: i64, sizes: &[i64]) -> Vec<u8> {
    let mut shape = Vec::new();
    for &size in sizes {
        let mut dim = Vec::new();
        if size > 0 {
            integer(&mut dim, 1, size);
        }
        field(&mut shape, 1, &dim);
    }
    let mut tensor = Vec::new();
    integer(&mut tensor, 1, dtype);
    field(&mut tensor, 2, &shape);
    let (mut kind, mut out) = (Vec::new(), Vec::new());
    field(&mut kind, 1, &tensor);
    field(&mut out, 1, name.as_bytes());
    field(&mut out, 2, &kind);
    out
}

/// A model of some inputs, tensors and operators on them.
fn model(bytes: &mut Bytes<'_>) -> Vec<u8> {
    static NAMES: OnceLock<Vec<&str>> = OnceLock::new();
    let operators = NAMES.get_or_init(|| operators().collect());
    let mut graph = Vec::new();
    let mut names: Vec<String> = vec!["x".into(), "y".into(), "z".into()];
    field(&mut graph, 11, &input("x", 1, &[2, 3, 4, 5]));
    field(&mut graph, 11, &input("y", 1, &[0, 3]));
    field(&mut graph, 11, &input("z", 7, &[3]));
    for number in 0..bytes.below(5) {
        let name = format!("w{number}");
        field(&mut graph, 5, &tensor(bytes, &name));
        names.push(name);
    }
    for number in 0..16 {
        if bytes.is_empty() {
            break;
        }
        let mut node = Vec::new();
        field(
            &mut node,
            4,
            operators[bytes.below(operators.len())].as_bytes(),
        );
        for _ in 0..1 + bytes.below(4) {
            let name = match bytes.byte() {
                byte @ 240.. => ["", "nothing"][usize::from(byte % 2)],
                byte => &names[usize::from(byte) % names.len()],
            };
            field(&mut node, 1, name.as_bytes());
        }
        for result in 0..1 + bytes.below(2) {
            let name = format!("v{number}.{result}");
            field(&mut node, 2, name.as_bytes());
            names.push(name);
        }
        for _ in 0..bytes.below(4) {
            field(&mut node, 5, &attribute(bytes));
        }
        field(&mut graph, 1, &node);
    }
    for name in names.iter().rev().take(1 + bytes.below(3)) {
        field(&mut graph, 12, &input(name, 1, &[]));
    }
    let mut set = Vec::new();
    integer(&mut set, 2, [23, 13, 7, 18][bytes.below(4)]);
    let mut model = Vec::new();
    field(&mut model, 7, &graph);
    field(&mut model, 8, &set);
    model
}

/// Models that begin with each operator, and one of them as a file.
pub fn seeds() -> Vec<Vec<u8>> {
    let count = operators().count();
    let made = |number: usize| {
        let mut bytes = random(1000 + number as u64, 120);
        bytes[0] = 1;
        // No tensors of its own for a third, so that the next byte names the operator.
        if number % 3 == 0 {
            bytes[1] = 0;
            bytes[2] = (number / 3 % count) as u8;
        }
        bytes
    };
    let mut seeds: Vec<Vec<u8>> = (0..3 * count).map(made).collect();
    let file = model(&mut Bytes::new(&random(7, 200)));
    seeds.push([vec![0], file].concat());
    seeds
}
