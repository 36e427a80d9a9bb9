//! What a plugin says of itself, checked, and the parameters that its tasks take.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Kinds of task that this host runs.
const KINDS: [&str; 2] = ["training", "inference"];
/// The longest name, in bytes.
const NAME_BYTES: usize = 64;
/// The longest description, in bytes.
const TEXT_BYTES: usize = 1_000;
/// Models and parameters, at most.
const ENTRIES: usize = 256;

/// What a plugin is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Letters, digits, `-`.
    pub name: String,
    /// By semver.
    pub version: String,
    /// One line.
    pub description: String,
    /// Of `training`, `inference`.
    pub kinds: Vec<String>,
    /// The first is the default.
    pub models: Vec<ModelDescription>,
    /// For each kind what its tasks take.
    #[serde(default)]
    pub parameters: BTreeMap<String, Schema>,
}

/// One of a plugin's models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelDescription {
    /// Letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// One line.
    #[serde(default)]
    pub description: String,
}

/// The JSON Schema of a task's parameters: an object with `properties`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schema {
    /// Always `object`.
    #[serde(rename = "type", default = "object")]
    kind: String,
    properties: Map<String, Value>,
}

fn object() -> String {
    "object".to_owned()
}

impl Default for Schema {
    fn default() -> Self {
        Self {
            kind: object(),
            properties: Map::new(),
        }
    }
}

impl Schema {
    /// The parameters by name; each has `type`, `default`, `description` and bounds.
    pub fn properties(&self) -> &Map<String, Value> {
        &self.properties
    }
}

/// Why parameters are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// The plugin does not do this kind of task.
    #[error("{plugin} does not do {kind}; it does {kinds}")]
    Kind {
        /// The plugin.
        plugin: String,
        /// Asked for.
        kind: String,
        /// Those it does.
        kinds: String,
    },
    /// A parameter that does not exist.
    #[error("`{name}` is not a parameter of {plugin}; its parameters are {known}")]
    Unknown {
        /// The plugin.
        plugin: String,
        /// Given.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// A value that the parameter does not take.
    #[error("the parameter `{name}` is {given}: it must be {wanted}")]
    Value {
        /// The parameter.
        name: String,
        /// The value given.
        given: String,
        /// What it takes.
        wanted: String,
    },
}

impl ParameterError {
    /// A stable dotted code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Kind { .. } => "model.kind",
            Self::Unknown { .. } => "parameter.unknown",
            Self::Value { .. } => "parameter.value",
        }
    }
}

impl Description {
    /// Reads what `describe` gave. The error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let description: Self = serde_json::from_str(text)
            .map_err(|error| format!("not as the contract says: {error}"))?;
        description.validate()?;
        Ok(description)
    }

    fn validate(&self) -> Result<(), String> {
        let named = |what: &str, name: &str, extra: &[u8]| {
            let plain = !name.is_empty()
                && name.len() <= NAME_BYTES
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte));
            if plain {
                return Ok(());
            }
            Err(format!(
                "the {what} `{}` is not 1 to {NAME_BYTES} letters, digits and {}",
                name.escape_debug(),
                extra.escape_ascii()
            ))
        };
        let text = |what: &str, text: &str| {
            if text.len() <= TEXT_BYTES && !text.chars().any(char::is_control) {
                return Ok(());
            }
            Err(format!(
                "{what} is not one line of at most {TEXT_BYTES} bytes"
            ))
        };
        named("name", &self.name, b"-")?;
        if !is_version(&self.version) {
            return Err(format!(
                "the version `{}` is not of the form 1.2.3",
                self.version.escape_debug()
            ));
        }
        text("the description", &self.description)?;
        if self.kinds.is_empty() {
            return Err("it does no kind of task".to_owned());
        }
        if let Some(kind) = self
            .kinds
            .iter()
            .find(|kind| !KINDS.contains(&kind.as_str()))
        {
            return Err(format!(
                "`{}` is not a kind of task; this host knows {}",
                kind.escape_debug(),
                KINDS.join(", ")
            ));
        }
        if self.models.is_empty() || self.models.len() > ENTRIES {
            return Err(format!(
                "it has {} models, not 1 to {ENTRIES}",
                self.models.len()
            ));
        }
        for (index, model) in self.models.iter().enumerate() {
            named("model", &model.name, b"-_.")?;
            text("a model's description", &model.description)?;
            if self
                .models
                .iter()
                .take(index)
                .any(|other| other.name == model.name)
            {
                return Err(format!("the model `{}` is described twice", model.name));
            }
        }
        for (kind, schema) in &self.parameters {
            if schema.properties.len() > ENTRIES {
                return Err(format!("{kind} has more than {ENTRIES} parameters"));
            }
            for (name, property) in &schema.properties {
                named("parameter", name, b"-_")?;
                let wrong = |why: &str| Err(format!("the parameter `{name}` of {kind} {why}"));
                let Some(property) = property.as_object() else {
                    return wrong("is not an object");
                };
                let about = property.get("description").and_then(Value::as_str);
                text(&format!("the parameter {name}"), about.unwrap_or_default())?;
                let Some(default) = property.get("default") else {
                    return wrong("has no default");
                };
                if let Err(wanted) = conforms(property, default) {
                    return wrong(&format!("has a default that is not {wanted}"));
                }
            }
        }
        Ok(())
    }

    /// Checks the parameters given for a task of a kind and fills in the defaults.
    pub fn check(
        &self,
        kind: &str,
        given: &Map<String, Value>,
    ) -> Result<Map<String, Value>, ParameterError> {
        if !self.kinds.iter().any(|known| known == kind) {
            return Err(ParameterError::Kind {
                plugin: self.name.clone(),
                kind: kind.to_owned(),
                kinds: self.kinds.join(", "),
            });
        }
        let none = Map::new();
        let properties = self
            .parameters
            .get(kind)
            .map_or(&none, |schema| &schema.properties);
        if let Some(unknown) = given.keys().find(|name| !properties.contains_key(*name)) {
            let known: Vec<_> = properties.keys().map(String::as_str).collect();
            return Err(ParameterError::Unknown {
                plugin: self.name.clone(),
                name: unknown.escape_debug().to_string(),
                known: if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                },
            });
        }
        let mut checked = Map::new();
        for (name, property) in properties {
            let property = property.as_object().unwrap_or(&none);
            let value = match given.get(name) {
                Some(value) => {
                    conforms(property, value).map_err(|wanted| ParameterError::Value {
                        name: name.clone(),
                        given: value.to_string().chars().take(200).collect(),
                        wanted,
                    })?
                }
                None => property.get("default").cloned().unwrap_or(Value::Null),
            };
            checked.insert(name.clone(), value);
        }
        Ok(checked)
    }
}

/// Whether a version has the form of semver: three numbers, then perhaps `-` or `+` and more.
fn is_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<_> = core.split('.').collect();
    text.len() <= NAME_BYTES
        && text.bytes().all(|byte| byte.is_ascii_graphic())
        && numbers.len() == 3
        && numbers
            .iter()
            .all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The value as the property takes it, or what the property takes.
fn conforms(property: &Map<String, Value>, value: &Value) -> Result<Value, String> {
    let kind = property.get("type").and_then(Value::as_str);
    let bound = |name: &str| property.get(name).and_then(Value::as_f64);
    let (minimum, maximum, above) = (
        bound("minimum"),
        bound("maximum"),
        bound("exclusiveMinimum"),
    );
    let choices = property.get("enum").and_then(Value::as_array);
    let wanted = || {
        let mut text = match kind {
            Some("integer") => "a whole number".to_owned(),
            Some("number") => "a number".to_owned(),
            Some("boolean") => "true or false".to_owned(),
            Some("string") => "text".to_owned(),
            _ => "of a type this host knows: integer, number, boolean or string".to_owned(),
        };
        for (words, limit) in [
            ("of at least", minimum),
            ("above", above),
            ("of at most", maximum),
        ] {
            if let Some(limit) = limit {
                text.push_str(&format!(" {words} {limit}"));
            }
        }
        if let Some(choices) = choices {
            let listed: Vec<_> = choices.iter().map(Value::to_string).collect();
            text.push_str(&format!(", one of {}", listed.join(", ")));
        }
        text
    };
    // 4.0 is a whole number in JSON Schema too; 2^53 bounds what a double holds exactly.
    let whole = |number: f64| number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0;
    let value = match (kind, value) {
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            value.clone()
        }
        (Some("integer"), Value::Number(number)) => match number.as_f64() {
            Some(number) if whole(number) => Value::from(number as i64),
            _ => return Err(wanted()),
        },
        (Some("number"), Value::Number(_))
        | (Some("boolean"), Value::Bool(_))
        | (Some("string"), Value::String(_)) => value.clone(),
        _ => return Err(wanted()),
    };
    if let Some(number) = value.as_f64() {
        let inside = minimum.is_none_or(|limit| number >= limit)
            && maximum.is_none_or(|limit| number <= limit)
            && above.is_none_or(|limit| number > limit);
        if !inside {
            return Err(wanted());
        }
    }
    if choices.is_some_and(|choices| !choices.contains(&value)) {
        return Err(wanted());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn described() -> Value {
        json!({
            "name": "digits", "version": "0.1.0", "description": "Reads digits",
            "kinds": ["training"],
            "models": [{"name": "cnn", "description": "Small"}],
            "parameters": {"training": {"type": "object", "properties": {
                "epochs": {"type": "integer", "default": 5, "minimum": 1, "description": "Epochs"},
                "rate": {"type": "number", "default": 0.1, "exclusiveMinimum": 0, "maximum": 1},
                "optimizer": {"type": "string", "default": "sgd", "enum": ["sgd", "adam"]},
                "shuffle": {"type": "boolean", "default": true},
            }}},
        })
    }

    fn description() -> Description {
        Description::parse(&described().to_string()).unwrap()
    }

    fn check(given: Value) -> Result<Map<String, Value>, ParameterError> {
        let Value::Object(given) = given else {
            panic!("an object");
        };
        description().check("training", &given)
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let checked = check(json!({"epochs": 7})).unwrap();
        assert_eq!(
            Value::Object(checked),
            json!({"epochs": 7, "rate": 0.1, "optimizer": "sgd", "shuffle": true})
        );
    }

    #[test]
    fn a_whole_float_is_an_integer() {
        assert_eq!(check(json!({"epochs": 7.0})).unwrap()["epochs"], json!(7));
    }

    #[test]
    fn an_unknown_parameter_is_refused_with_those_that_exist() {
        let refusal = check(json!({"epoch": 7})).unwrap_err();
        assert_eq!(refusal.code(), "parameter.unknown");
        assert!(
            refusal
                .to_string()
                .contains("epochs, rate, optimizer, shuffle")
        );
    }

    #[test]
    fn a_value_out_of_bounds_is_refused_with_the_bounds() {
        let given = [
            json!({"epochs": 0}),
            json!({"epochs": 1.5}),
            json!({"epochs": "7"}),
            json!({"rate": 0}),
            json!({"rate": 2}),
            json!({"optimizer": "magic"}),
            json!({"shuffle": 1}),
            json!({"rate": null}),
        ];
        for value in given {
            let refusal = check(value.clone()).unwrap_err();
            assert_eq!(refusal.code(), "parameter.value", "{value}");
        }
        let refusal = check(json!({"rate": 2})).unwrap_err().to_string();
        assert!(refusal.contains("above 0 of at most 1"), "{refusal}");
    }

    #[test]
    fn a_kind_that_the_plugin_does_not_do_is_refused() {
        let refusal = description().check("inference", &Map::new()).unwrap_err();
        assert_eq!(refusal.code(), "model.kind");
    }

    #[test]
    fn a_wrong_description_is_refused_with_what_is_wrong() {
        let wrong = [
            ("/name", json!("a/b")),
            ("/name", json!("")),
            ("/version", json!("1")),
            ("/version", json!("1.2.x")),
            ("/description", json!("two\nlines")),
            ("/kinds", json!([])),
            ("/kinds", json!(["magic"])),
            ("/models", json!([])),
            ("/models", json!([{"name": "a"}, {"name": "a"}])),
            ("/models/0/name", json!("../x")),
            ("/parameters/training/properties/epochs", json!(5)),
            ("/parameters/training/properties/epochs/default", json!("x")),
            ("/parameters/training/properties/epochs/default", json!(0)),
            (
                "/parameters/training/properties/epochs/type",
                json!("magic"),
            ),
        ];
        for (pointer, value) in wrong {
            let mut described = described();
            *described.pointer_mut(pointer).unwrap() = value.clone();
            assert!(
                Description::parse(&described.to_string()).is_err(),
                "{pointer} {value}"
            );
        }
        assert!(Description::parse("not json").is_err());
    }
}
