//! Files of weights, and tensors of ONNX files.

use std::io::Write;

use compute::{DType, HostTensor};

/// Reads the bytes as a file of weights and as an ONNX tensor.
pub fn run(bytes: &[u8]) {
    if let Some(file) = file(bytes, "") {
        let _ = data::weights::metadata(file.path());
        let _ = data::weights::load(file.path());
    }
    let _ = ::onnx::parse_tensor(bytes);
}

/// A file that holds the bytes, with an ending of its name.
pub(crate) fn file(bytes: &[u8], ending: &str) -> Option<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new().suffix(ending).tempfile().ok()?;
    file.write_all(bytes).ok()?;
    Some(file)
}

/// A file of weights as the program writes it, and headers of others.
pub fn seeds() -> Vec<Vec<u8>> {
    let header = |json: &str, bytes: usize| {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file.resize(file.len() + bytes, 1);
        file
    };
    let mut seeds = vec![
        header(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
            8,
        ),
        header(
            r#"{"a":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}}"#,
            12,
        ),
        header(r#"{"__metadata__":{"classes":"a,b"}}"#, 0),
        // An ONNX tensor: dims [2], float32, 8 raw bytes.
        vec![8, 2, 16, 1, 74, 8, 0, 0, 128, 63, 0, 0, 0, 64],
    ];
    let tensor = HostTensor::new(DType::F32, vec![2, 1], vec![0; 8]);
    if let (Ok(tensor), Some(file)) = (tensor, file(&[], "")) {
        let tensors = [("layer.weight".to_owned(), tensor)];
        let facts = [("classes".to_owned(), "a".to_owned())];
        if data::weights::save(file.path(), &tensors, &facts).is_ok() {
            seeds.extend(std::fs::read(file.path()));
        }
    }
    seeds
}
