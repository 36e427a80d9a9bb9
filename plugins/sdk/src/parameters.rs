//! A task's parameters: what a plugin declares and what the user set.

use serde_json::{Map, Value, json};

use crate::error::{Result, error};

/// A parameter that the plugin declares, with its default.
#[derive(Debug, Clone)]
pub struct Property {
    name: &'static str,
    schema: Map<String, Value>,
}

impl Property {
    fn new(name: &'static str, kind: &str, default: Value, description: &str) -> Self {
        let mut schema = Map::new();
        schema.insert("type".into(), kind.into());
        schema.insert("default".into(), default);
        schema.insert("description".into(), description.into());
        Self { name, schema }
    }

    /// A whole number.
    pub fn integer(name: &'static str, default: u64, description: &str) -> Self {
        Self::new(name, "integer", json!(default), description)
    }

    /// A number.
    pub fn number(name: &'static str, default: f64, description: &str) -> Self {
        Self::new(name, "number", json!(default), description)
    }

    /// True or false.
    pub fn boolean(name: &'static str, default: bool, description: &str) -> Self {
        Self::new(name, "boolean", json!(default), description)
    }

    /// Any text.
    pub fn text(name: &'static str, default: &str, description: &str) -> Self {
        Self::new(name, "string", json!(default), description)
    }

    /// One of `choices`.
    pub fn choice(name: &'static str, default: &str, choices: &[&str], description: &str) -> Self {
        Self::new(name, "string", json!(default), description).with("enum", json!(choices))
    }

    fn with(mut self, key: &str, value: Value) -> Self {
        self.schema.insert(key.to_owned(), value);
        self
    }

    /// The smallest value allowed.
    pub fn minimum(self, value: impl Into<Value>) -> Self {
        self.with("minimum", value.into())
    }

    /// The largest value allowed.
    pub fn maximum(self, value: impl Into<Value>) -> Self {
        self.with("maximum", value.into())
    }

    /// Values must be above this.
    pub fn above(self, value: impl Into<Value>) -> Self {
        self.with("exclusiveMinimum", value.into())
    }
}

/// The JSON Schema object of these properties.
pub fn schema(properties: Vec<Property>) -> Value {
    let properties: Map<String, Value> = properties
        .into_iter()
        .map(|property| (property.name.to_owned(), Value::Object(property.schema)))
        .collect();
    json!({ "type": "object", "properties": properties })
}

/// The parameters of the running task. The host has checked them against the schema and filled in
/// defaults.
#[derive(Debug, Clone)]
pub struct Parameters(Map<String, Value>);

impl Parameters {
    /// Reads the JSON object that the host gives. Errors: `parameters.json`.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map(Self).map_err(|reason| {
            error(
                "parameters.json",
                format!("the parameters are not a JSON object: {reason}"),
            )
        })
    }

    /// All of them, by name.
    pub(crate) fn members(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Sets a parameter where it is not set or an empty text.
    pub fn set_default(&mut self, name: &str, value: impl Into<Value>) {
        let given = self.0.get(name).filter(|given| *given != "");
        if given.is_none() {
            self.0.insert(name.to_owned(), value.into());
        }
    }

    fn get<'a, T>(
        &'a self,
        name: &str,
        kind: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T> {
        let value = self.0.get(name).ok_or_else(|| {
            error(
                "parameters.missing",
                format!("the parameter {name} ({kind}) is not set"),
            )
        })?;
        read(value).ok_or_else(|| {
            error(
                "parameters.type",
                format!("the parameter {name} is {value}: give {kind}"),
            )
        })
    }

    /// A whole number. Errors (of every getter): `parameters.missing`, `parameters.type`.
    pub fn integer(&self, name: &str) -> Result<u64> {
        self.get(name, "a whole number", Value::as_u64)
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<f64> {
        self.get(name, "a number", Value::as_f64)
    }

    /// True or false.
    pub fn boolean(&self, name: &str) -> Result<bool> {
        self.get(name, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.get(name, "a text", Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::{Parameters, Property, schema};

    #[test]
    fn getters_read_the_types_that_the_schema_declares() {
        let text = r#"{"epochs": 5, "rate": 1, "shuffle": false, "optimizer": "sgd"}"#;
        let parameters = Parameters::parse(text).unwrap();
        assert_eq!(parameters.integer("epochs").unwrap(), 5);
        assert_eq!(parameters.number("rate").unwrap(), 1.0);
        assert!(!parameters.boolean("shuffle").unwrap());
        assert_eq!(parameters.text("optimizer").unwrap(), "sgd");
    }

    #[test]
    fn a_default_is_set_where_nothing_or_an_empty_text_is_given() {
        let mut parameters = Parameters::parse(r#"{"head": "", "optimizer": "sgd"}"#).unwrap();
        for name in ["head", "optimizer", "schedule"] {
            parameters.set_default(name, "own");
        }
        assert_eq!(parameters.text("head").unwrap(), "own");
        assert_eq!(parameters.text("optimizer").unwrap(), "sgd");
        assert_eq!(parameters.text("schedule").unwrap(), "own");
    }

    #[test]
    fn a_missing_or_mistyped_parameter_is_named_in_the_error() {
        let parameters = Parameters::parse(r#"{"epochs": "five"}"#).unwrap();
        let mistyped = parameters.integer("epochs").unwrap_err();
        assert_eq!(mistyped.code, "parameters.type");
        assert!(mistyped.message.contains("epochs") && mistyped.message.contains("five"));
        assert_eq!(
            parameters.integer("seed").unwrap_err().code,
            "parameters.missing"
        );
    }

    #[test]
    fn text_that_is_no_object_is_refused() {
        assert_eq!(
            Parameters::parse("[1]").unwrap_err().code,
            "parameters.json"
        );
    }

    #[test]
    fn a_schema_holds_type_default_bounds_and_choices() {
        let schema = schema(vec![
            Property::integer("epochs", 5, "Passes")
                .minimum(1)
                .maximum(9),
            Property::choice("optimizer", "adamw", &["adamw", "sgd"], "How"),
            Property::number("rate", 0.1, "Step size").above(0.0),
        ]);
        let epochs = &schema["properties"]["epochs"];
        assert_eq!(
            (&epochs["type"], &epochs["minimum"]),
            (&"integer".into(), &1.into())
        );
        assert_eq!(schema["properties"]["optimizer"]["enum"][1], "sgd");
        assert_eq!(schema["properties"]["rate"]["exclusiveMinimum"], 0.0);
    }
}
