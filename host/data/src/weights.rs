//! Files of weights: safetensors (<https://huggingface.co/docs/safetensors>), a header in JSON
//! with dtypes, shapes and offsets, then the tensors' bytes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use compute::{DType, HostTensor};
use safetensors::tensor::{Dtype, Metadata};

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

/// A tensor of a file: its name, dtype and shape.
pub type TensorInfo = (String, DType, Vec<usize>);

/// Writes a file of weights from tensors in memory, as [`write()`] does.
pub fn save(
    path: &Path,
    tensors: &[(String, HostTensor)],
    metadata: &[(String, String)],
) -> Result<(), Error> {
    let info = |(name, tensor): &(String, HostTensor)| {
        (name.clone(), tensor.dtype(), tensor.shape().to_vec())
    };
    let infos: Vec<_> = tensors.iter().map(info).collect();
    write(path, &infos, metadata, |number| {
        Ok::<_, Error>(tensors[number].1.clone())
    })
}

/// Writes a file of weights: aside, synced, renamed, so that at `path` there is always a complete
/// file. `read` gives the values of the tensor of this number when they are written, so that only
/// one is held at a time. The same content gives the same bytes. Errors: `storage.full`,
/// `storage.failed`, and those of `read`.
pub fn write<E: From<Error>>(
    path: &Path,
    infos: &[TensorInfo],
    metadata: &[(String, String)],
    mut read: impl FnMut(usize) -> Result<HostTensor, E>,
) -> Result<(), E> {
    let failed = |error: std::io::Error| Error::storage(path, &error);
    let (header, order) = header(path, infos, metadata)?;
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    // As other files, others may read it as the umask says.
    let mut aside = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(failed)?;
    aside.write_all(&header).map_err(failed)?;
    for number in order {
        let tensor = read(number)?;
        let (name, dtype, shape) = &infos[number];
        if (tensor.dtype(), tensor.shape()) != (*dtype, shape) {
            let message = format!("{}: `{name}` changed while it was saved", path.display());
            return Err(Error::new("storage.failed", message).into());
        }
        aside.write_all(tensor.bytes()).map_err(failed)?;
    }
    aside.as_file().sync_all().map_err(failed)?;
    let persisted = aside.persist(path).map_err(|error| failed(error.error));
    persisted?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed)?;
    Ok(())
}

/// A file's header, its length before it, and the order in which its tensors follow: by the size of
/// their elements, so that each is aligned, then by name.
fn header(
    path: &Path,
    infos: &[TensorInfo],
    metadata: &[(String, String)],
) -> Result<(Vec<u8>, Vec<usize>), Error> {
    let mut order: Vec<usize> = (0..infos.len()).collect();
    order.sort_by_key(|&number| {
        let (name, dtype, _) = &infos[number];
        (Reverse(dtype.size_bytes()), name)
    });
    let facts: BTreeMap<&str, &str> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let mut entries = BTreeMap::from([("__metadata__", serde_json::json!(facts))]);
    let mut offset = 0usize;
    for &number in &order {
        let (name, dtype, shape) = &infos[number];
        let bytes = shape
            .iter()
            .try_fold(dtype.size_bytes(), |bytes, &size| bytes.checked_mul(size));
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        let Some(end) = end else {
            let message = format!("{}: `{name}` is too large", path.display());
            return Err(Error::new("storage.failed", message));
        };
        let entry = serde_json::json!({
            "dtype": to_file(*dtype), "shape": shape, "data_offsets": [offset, end],
        });
        if entries.insert(name, entry).is_some() {
            let message = format!("{}: two tensors are named `{name}`", path.display());
            return Err(Error::new("storage.failed", message));
        }
        offset = end;
    }
    let mut text = serde_json::to_vec(&entries)
        .map_err(|error| Error::new("storage.failed", format!("{}: {error}", path.display())))?;
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAXIMUM_HEADER {
        let message = format!(
            "{}: its header of {} bytes is above the largest, {MAXIMUM_HEADER}",
            path.display(),
            text.len()
        );
        return Err(Error::new("storage.failed", message));
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    Ok((bytes, order))
}

/// A file of weights, whose tensors are read one by one.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes start.
    start: u64,
    infos: Vec<TensorInfo>,
    /// Of each tensor, from `start`.
    offsets: Vec<(usize, usize)>,
    metadata: Vec<(String, String)>,
}

impl Reader {
    /// Reads a file's header. Errors: `weights.format`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(|error| Error::weights(path, error))?;
        let (header, start) = read_header(path, &mut file)?;
        let mut found: Vec<_> = header.tensors().into_iter().collect();
        found.sort_by_key(|(_, info)| info.data_offsets.0);
        let (mut infos, mut offsets) = (Vec::new(), Vec::new());
        for (name, info) in found {
            let Some(dtype) = from_file(info.dtype) else {
                let reason = format!("the tensor `{name}` has the dtype {:?}", info.dtype);
                return Err(Error::weights(path, reason));
            };
            infos.push((name, dtype, info.shape.clone()));
            offsets.push(info.data_offsets);
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            start,
            infos,
            offsets,
            metadata: facts(&header),
        })
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    /// Facts by key, such as the class names, by key.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// The tensor of this number. Errors: `weights.format`.
    pub fn read(&mut self, number: usize) -> Result<HostTensor, Error> {
        let (name, dtype, shape) = &self.infos[number];
        let (from, to) = self.offsets[number];
        let mut bytes = vec![0; to - from];
        self.file
            .seek(SeekFrom::Start(self.start + from as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|error| Error::weights(&self.path, error))?;
        HostTensor::new(*dtype, shape.clone(), bytes)
            .map_err(|error| Error::weights(&self.path, format!("the tensor `{name}`: {error}")))
    }
}

/// Reads a file of weights. Errors: `weights.format`.
pub fn load(path: &Path) -> Result<Weights, Error> {
    let mut reader = Reader::open(path)?;
    let mut tensors = Vec::with_capacity(reader.infos.len());
    for number in 0..reader.infos.len() {
        tensors.push((reader.infos[number].0.clone(), reader.read(number)?));
    }
    Ok(Weights {
        tensors,
        metadata: reader.metadata,
    })
}

/// Reads only the facts in the header. Errors: `weights.format`.
pub fn metadata(path: &Path) -> Result<Vec<(String, String)>, Error> {
    Ok(Reader::open(path)?.metadata)
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
        let first = std::fs::read(&path).unwrap();
        let weights = load(&saved(folder.path())).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
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
    fn the_format_s_own_library_reads_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = std::fs::read(saved(folder.path())).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("b").unwrap().shape(), [2]);
        let a = file.tensor("a").unwrap();
        assert_eq!(
            a.data(),
            [1.5f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat()
        );
        let twice = [
            ("a".to_owned(), HostTensor::from_f32(&[1], &[0.0]).unwrap()),
            ("a".to_owned(), HostTensor::from_f32(&[1], &[0.0]).unwrap()),
        ];
        let error = save(&folder.path().join("x.safetensors"), &twice, &[]).unwrap_err();
        assert!(error.to_string().contains("two tensors"), "{error}");
    }

    #[test]
    fn a_tensor_that_cannot_be_read_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = saved(folder.path());
        let infos = [("a".to_owned(), DType::F32, vec![1])];
        let refused = write(&path, &infos, &[], |_| Err(Error::new("x", "gone")));
        assert_eq!(refused.unwrap_err().code(), "x");
        assert_eq!(load(&path).unwrap().tensors.len(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
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
