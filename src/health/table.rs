//! Helpers for reading a table of a document.

use std::time::Duration;

use crate::config::Read;
use crate::config::Time;
use crate::config::Wrong;
use crate::config::did_you_mean;
use crate::document::Keys;
use crate::error::Error;
use crate::error::Result;

/// The value of a key, if the table has it.
pub(super) fn given<T: Read>(keys: &Keys<'_, '_, '_>, key: &str) -> Result<Option<T>> {
    match keys.key_of(key) {
        Some(key) => keys.given(key),
        None => Ok(None),
    }
}

pub(super) fn time(keys: &Keys<'_, '_, '_>, key: &str) -> Result<Option<Duration>> {
    Ok(given::<Time>(keys, key)?.map(|Time(time)| time))
}

/// Turns an error about a setting into one at the key of its name.
pub(super) fn checked<T>(keys: &Keys<'_, '_, '_>, checked: Result<T>) -> Result<T> {
    let error = match checked {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let key = match &error {
        Error::InvalidConfig { setting, .. } => keys.key_of(setting),
        _ => None,
    };
    match key {
        Some(key) => keys.checked(key, Err(error)),
        None => Err(keys
            .page
            .refuse(keys.at - keys.page.start, error.to_string())),
    }
}

/// An error at a key, or at the table if the key is missing.
pub(super) fn refuse(keys: &Keys<'_, '_, '_>, key: &'static str, reason: &str) -> Error {
    let at = keys.at - keys.page.start;
    match keys.value(key) {
        Some(value) => keys
            .page
            .refuse_value(key, value, Wrong::new(value, reason)),
        None => keys.page.refuse(at, reason),
    }
}

/// One of several words, if the table has the key.
pub(super) fn chosen<T: Clone>(
    keys: &Keys<'_, '_, '_>,
    key: &'static str,
    choices: &[(&str, T)],
) -> Result<Option<T>> {
    let Some(word) = given::<String>(keys, key)? else {
        return Ok(None);
    };
    let found = choices.iter().find(|(name, _)| *name == word);
    if let Some((_, choice)) = found {
        return Ok(Some(choice.clone()));
    }
    let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
    let hint = did_you_mean(&word, names.iter().copied());
    let reason = format!("must be {}{hint}", names.join(" or "));
    Err(refuse(keys, key, &reason))
}
