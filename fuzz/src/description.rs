//! What plugins say of themselves, and the parameters that are checked against it.

use serde_json::{Map, Value, json};

use crate::plugin::Description;

/// The bytes up to a zero are a description, the others a task's parameters.
pub fn run(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let mut text = || std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
    let (description, parameters) = (text(), text());
    let Ok(description) = Description::parse(description) else {
        return;
    };
    let parameters: Map<String, Value> = serde_json::from_str(parameters).unwrap_or_default();
    for kind in ["training", "inference"] {
        if let Err(refused) = description.check(kind, &parameters) {
            let _ = (refused.code(), refused.to_string());
        }
    }
    for schema in description.parameters.values() {
        let _ = schema.properties().len();
    }
}

/// A description with parameters of every type, and parameters that fit.
pub fn seeds() -> Vec<Vec<u8>> {
    let description = json!({
        "name": "a", "version": "0.1.0", "description": "b",
        "kinds": ["training", "inference"],
        "models": [{"name": "c", "description": "d"}],
        "parameters": {"training": {"type": "object", "properties": {
            "epochs": {"type": "integer", "default": 5, "minimum": 1, "maximum": 9},
            "rate": {"type": "number", "default": 0.1, "exclusiveMinimum": 0},
            "rule": {"type": "string", "default": "sgd", "enum": ["sgd", "adam"]},
            "flag": {"type": "boolean", "default": true},
        }}},
    });
    let given = json!({"epochs": 3.0, "rate": 1e3, "rule": "adam", "flag": false});
    let both = format!("{description}\0{given}");
    vec![both.into_bytes(), description.to_string().into_bytes()]
}
