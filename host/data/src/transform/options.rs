//! The options of a transform: texts by name.

use std::ops::RangeInclusive;

use crate::error::Error;

/// What a plugin said about a transform.
pub(super) struct Options<'a> {
    /// The transform's name.
    pub(super) name: &'a str,
    options: &'a [(String, String)],
}

impl<'a> Options<'a> {
    pub(super) fn new(name: &'a str, options: &'a [(String, String)]) -> Self {
        Self { name, options }
    }

    /// Refuses options other than `known`. Errors: `option.unknown`.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Error> {
        let unknown = self
            .options
            .iter()
            .find(|(option, _)| !known.contains(&&**option));
        let Some((option, _)) = unknown else {
            return Ok(());
        };
        let message = format!(
            "`{option}` is not an option of `{}`; there are: {}",
            self.name,
            known.join(", ")
        );
        Err(Error::new("option.unknown", message))
    }

    /// An option's text, the last where it is given twice.
    pub(super) fn text(&self, option: &str) -> Option<&'a str> {
        let found = self.options.iter().rev().find(|(name, _)| name == option);
        found.map(|(_, value)| value.trim())
    }

    /// Reads an option that must be given. Errors (of every reader): `option.value`.
    fn read<T>(
        &self,
        option: &str,
        wanted: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let text = self.text(option).ok_or_else(|| {
            let message = format!("`{}` needs the option `{option}`", self.name);
            Error::new("option.value", message)
        })?;
        read(text).ok_or_else(|| {
            let message = format!("`{option}` of `{}` is `{text}`, not {wanted}", self.name);
            Error::new("option.value", message)
        })
    }

    /// A whole number.
    pub(super) fn integer(
        &self,
        option: &str,
        range: RangeInclusive<usize>,
    ) -> Result<usize, Error> {
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        self.read(option, &wanted, |text| {
            text.parse().ok().filter(|number| range.contains(number))
        })
    }

    /// A whole number that may be left out.
    pub(super) fn integer_or(
        &self,
        option: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, Error> {
        match self.text(option) {
            Some(_) => self.integer(option, range),
            None => Ok(default),
        }
    }

    /// A number.
    pub(super) fn number(&self, option: &str, range: RangeInclusive<f32>) -> Result<f32, Error> {
        let wanted = format!("a number from {} to {}", range.start(), range.end());
        self.read(option, &wanted, |text| {
            text.parse().ok().filter(|number| range.contains(number))
        })
    }

    /// A number that may be left out.
    pub(super) fn number_or(
        &self,
        option: &str,
        default: f32,
        range: RangeInclusive<f32>,
    ) -> Result<f32, Error> {
        match self.text(option) {
            Some(_) => self.number(option, range),
            None => Ok(default),
        }
    }

    /// The position among `choices` of an option; 0 where it is left out.
    pub(super) fn choice(&self, option: &str, choices: &[&str]) -> Result<usize, Error> {
        if self.text(option).is_none() {
            return Ok(0);
        }
        self.read(option, &format!("one of {}", choices.join(", ")), |text| {
            choices.iter().position(|&choice| choice == text)
        })
    }

    /// Two numbers, the least and the most, or one that is both.
    pub(super) fn between(
        &self,
        option: &str,
        range: RangeInclusive<f32>,
    ) -> Result<[f32; 2], Error> {
        let wanted = format!(
            "a number from {} to {}, or two such in order, separated by a comma",
            range.start(),
            range.end()
        );
        self.read(option, &wanted, |text| {
            let numbers: Vec<f32> = numbers(text)?;
            let (least, most) = match *numbers {
                [both] => (both, both),
                [least, most] => (least, most),
                _ => return None,
            };
            (range.contains(&least) && range.contains(&most) && least <= most)
                .then_some([least, most])
        })
    }

    /// Two numbers, the least and the most, or one that `around` makes two of; none where the
    /// option is left out.
    pub(super) fn around(
        &self,
        option: &str,
        range: RangeInclusive<f32>,
        around: impl Fn(f32) -> [f32; 2],
    ) -> Result<Option<[f32; 2]>, Error> {
        let Some(text) = self.text(option) else {
            return Ok(None);
        };
        let [least, most] = self.between(option, range)?;
        let two = text.contains(',');
        Ok(Some(if two { [least, most] } else { around(least) }))
    }

    /// Numbers separated by commas.
    pub(super) fn list(
        &self,
        option: &str,
        accepted: fn(f32) -> bool,
        wanted: &str,
    ) -> Result<Vec<f32>, Error> {
        self.read(option, wanted, |text| {
            numbers(text).filter(|numbers| numbers.iter().all(|&number| accepted(number)))
        })
    }
}

fn numbers(text: &str) -> Option<Vec<f32>> {
    text.split(',')
        .map(|number| number.trim().parse().ok())
        .collect()
}
