//! Files of weights: safetensors (<https://huggingface.co/docs/safetensors>), a header in JSON
//! with dtypes, shapes and offsets, then the tensors' bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use compute::{DType, HostTensor};
use safetensors::tensor::{Dtype, Metadata, TensorView};

use crate::error::Error;

/// Bytes of a file's header.
const MAXIMUM_HEADER: u64 = 16 << 20;

/// What a file of weights holds.
#[derive(Debug)]
pub struct Weights {
    /// The tensors, by name.
    pub tensors: Vec<(String, HostTensor)>,
    /// Facts by key, such as the class names, by key.
    pub metadata: Vec<(String, String)>,
}

/// Writes a file of weights: aside, synced, renamed, so that at `path` there is always a complete
/// file. Errors: `storage.full`, `storage.failed`.
pub fn save(
    path: &Path,
    tensors: &[(String, HostTensor)],
    metadata: &[(String, String)],
) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::storage(path, &error);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let aside = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    let views: Result<Vec<_>, Error> = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = to_file(tensor.dtype());
            TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes())
                .map(|view| (name.as_str(), view))
                .map_err(|error| Error::new("storage.failed", format!("{name}: {error}")))
        })
        .collect();
    let metadata: HashMap<String, String> = metadata.iter().cloned().collect();
    safetensors::serialize_to_file(views?, Some(metadata), aside.path()).map_err(|error| {
        match error {
            safetensors::SafeTensorError::IoError(error) => Error::storage(path, &error),
            other => Error::new("storage.failed", format!("{}: {other}", path.display())),
        }
    })?;
    // `serialize_to_file` may have put a new file under the name, so it is opened again.
    File::open(aside.path())
        .and_then(|file| file.sync_all())
        .map_err(failed)?;
    aside
        .into_temp_path()
        .persist(path)
        .map_err(|error| Error::storage(path, &error.error))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// Reads a file of weights. Errors: `weights.format`.
pub fn load(path: &Path) -> Result<Weights, Error> {
    let mut file = open(path)?;
    let (header, start) = read_header(path, &mut file)?;
    let mut infos: Vec<_> = header.tensors().into_iter().collect();
    infos.sort_by_key(|(_, info)| info.data_offsets.0);
    let mut tensors = Vec::with_capacity(infos.len());
    for (name, info) in infos {
        let Some(dtype) = from_file(info.dtype) else {
            let reason = format!("the tensor `{name}` has the dtype {:?}", info.dtype);
            return Err(Error::weights(path, reason));
        };
        let (from, to) = info.data_offsets;
        let mut bytes = vec![0; to - from];
        file.seek(SeekFrom::Start(start + from as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| Error::weights(path, error))?;
        let tensor = HostTensor::new(dtype, info.shape.clone(), bytes)
            .map_err(|error| Error::weights(path, format!("the tensor `{name}`: {error}")))?;
        tensors.push((name, tensor));
    }
    Ok(Weights {
        tensors,
        metadata: facts(&header),
    })
}

/// Reads only the facts in the header. Errors: `weights.format`.
pub fn metadata(path: &Path) -> Result<Vec<(String, String)>, Error> {
    let mut file = open(path)?;
    Ok(facts(&read_header(path, &mut file)?.0))
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|error| Error::weights(path, error))
}

/// The header, and where the tensors' bytes start. The file is as long as the header says.
fn read_header(path: &Path, file: &mut File) -> Result<(Metadata, u64), Error> {
    let failed = |error: std::io::Error| Error::weights(path, error);
    let bytes = file.metadata().map_err(failed)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| Error::weights(path, "not a safetensors file: it is under 8 bytes long"))?;
    let length = u64::from_le_bytes(length);
    if length > MAXIMUM_HEADER || length > bytes - 8 {
        let reason = format!("not a safetensors file: its header would be {length} bytes long");
        return Err(Error::weights(path, reason));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(failed)?;
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| Error::weights(path, format!("not a safetensors file: {error}")))?;
    let start = 8 + length;
    let announced = header.data_len() as u64;
    if bytes - start != announced {
        let reason = format!(
            "it holds {} bytes of tensors, where its header announces {announced}",
            bytes - start
        );
        return Err(Error::weights(path, reason));
    }
    Ok((header, start))
}

fn facts(header: &Metadata) -> Vec<(String, String)> {
    let mut facts: Vec<_> = header
        .metadata()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    facts.sort();
    facts
}

fn to_file(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::F8E4M3 => Dtype::F8_E4M3,
        DType::F8E5M2 => Dtype::F8_E5M2,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

fn from_file(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::F8_E4M3 => DType::F8E4M3,
        Dtype::F8_E5M2 => DType::F8E5M2,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::I16 => DType::I16,
        Dtype::I8 => DType::I8,
        Dtype::U64 => DType::U64,
        Dtype::U32 => DType::U32,
        Dtype::U16 => DType::U16,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn saved(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("best.safetensors");
        let tensors = [
            (
                "b".to_owned(),
                HostTensor::from_i64(&[2], &[1, -2]).unwrap(),
            ),
            (
                "a".to_owned(),
                HostTensor::from_f32(&[2, 1], &[1.5, -2.5]).unwrap(),
            ),
        ];
        save(
            &path,
            &tensors,
            &[("classes".to_owned(), "[\"x\"]".to_owned())],
        )
        .unwrap();
        path
    }

    #[test]
    fn what_is_saved_loads_and_leaves_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path());
        let weights = load(&saved(folder.path())).unwrap();
        assert_eq!(
            weights.metadata,
            [("classes".to_owned(), "[\"x\"]".to_owned())]
        );
        assert_eq!(metadata(&path).unwrap(), weights.metadata);
        let a = weights
            .tensors
            .iter()
            .find(|(name, _)| name == "a")
            .unwrap();
        assert_eq!(a.1, HostTensor::from_f32(&[2, 1], &[1.5, -2.5]).unwrap());
        assert_eq!(weights.tensors.len(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = save(Path::new("/nonexistent/w.safetensors"), &[], &[]).unwrap_err();
        assert_eq!(error.code(), "storage.failed");
        assert!(error.to_string().contains("/nonexistent/w.safetensors"));
    }

    #[test]
    fn a_file_cut_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path());
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert_eq!(load(&path).unwrap_err().code(), "weights.format");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            at in prop::collection::vec((0usize..400, any::<u8>()), 1..4),
            header: Vec<u8>,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = saved(folder.path());
            let mut bytes = std::fs::read(&path).unwrap();
            for (at, value) in at {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            std::fs::write(&path, &bytes).unwrap();
            let _ = load(&path);
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(&header);
            std::fs::write(&path, &bytes).unwrap();
            let _ = load(&path);
        }
    }
}
