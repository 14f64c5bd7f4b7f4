//! Typed access to the fields of a checkpoint's JSON files; each error names its field.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Largest valid size. Larger ones indicate a broken file.
pub(crate) const MAX_SIZE: usize = 1 << 16;

/// Parses text that must be a JSON object.
pub(crate) fn parse(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(root)) => Ok(root),
        Ok(_) => Err(Error::Model("not a JSON object".into())),
        Err(error) => Err(Error::Model(format!("not valid JSON ({error})"))),
    }
}

/// The fields of a JSON object.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// The field's value. JSON's `null`, which represents Python's `None`, counts as missing.
    pub(crate) fn value(self, field: &str) -> Option<&'a Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    /// The field's value, which is required.
    pub(crate) fn required(self, field: &str) -> Result<&'a Value> {
        let value = self.given(field)?;
        value.ok_or_else(|| Error::Model(format!("field {field:?} is missing")))
    }

    /// The value of a field that may be missing but not `null`, for which `transformers` uses no default.
    pub(crate) fn given(self, field: &str) -> Result<Option<&'a Value>> {
        match self.0.get(field) {
            Some(Value::Null) => Err(Error::Model(format!(
                "field {field:?} is null; set a value, or remove the field to use the default"
            ))),
            value => Ok(value),
        }
    }

    /// A required integer of at least 1.
    pub(crate) fn size(self, field: &str) -> Result<usize> {
        size_of(field, self.required(field)?)
    }

    /// An integer of at least 1.
    pub(crate) fn size_or(self, field: &str, default: usize) -> Result<usize> {
        self.given(field)?
            .map_or(Ok(default), |value| size_of(field, value))
    }

    /// An integer of at least 0.
    pub(crate) fn count(self, field: &str, default: usize) -> Result<usize> {
        match self.given(field)? {
            Some(value) if value.as_u64() == Some(0) => Ok(0),
            _ => self.size_or(field, default),
        }
    }

    /// A size given as one number or as two equal ones.
    pub(crate) fn square(self, field: &str) -> Result<usize> {
        let value = self.required(field)?;
        match value.as_array().map(Vec::as_slice) {
            None => size_of(field, value),
            Some([height, width]) if height == width => size_of(field, height),
            Some(_) => Err(Error::Model(format!(
                "field {field:?} is {value}, but only squares are supported"
            ))),
        }
    }

    /// A Boolean; `null` is false, as in Python.
    pub(crate) fn flag(self, field: &str, default: bool) -> Result<bool> {
        match self.0.get(field) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(Error::Model(format!(
                "field {field:?} is {other}, not true or false"
            ))),
        }
    }

    /// Any number.
    pub(crate) fn number(self, field: &str, default: f64) -> Result<f64> {
        match self.given(field)? {
            None => Ok(default),
            Some(value) => value
                .as_f64()
                .ok_or_else(|| Error::Model(format!("field {field:?} is {value}, not a number"))),
        }
    }
}

/// Parses a size.
pub(crate) fn size_of(field: &str, value: &Value) -> Result<usize> {
    let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
    match size {
        Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(size),
        _ => Err(Error::Model(format!(
            "field {field:?} is {value}, not a whole number between 1 and {MAX_SIZE}"
        ))),
    }
}
