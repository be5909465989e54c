//! How values look in the TOML document, and in stored settings (`stored.rs`).
//!
//! The reading here is for what the library wrote itself; `read.rs` reads what people write.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bitflags::Flags;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::de::Error as _;
use serde::de::Unexpected;
use serde::de::Visitor;
use serde::ser::Error as _;

use crate::types::MaxFrame;
use crate::types::flag_by_name;
use crate::types::flag_names;

/// A value of type `T` as the document has it.
pub(super) trait Form<T> {
    fn write(value: T) -> Self;
    fn read(self) -> T;
}

impl<T> Form<T> for T {
    fn write(value: T) -> Self {
        value
    }

    fn read(self) -> T {
        self
    }
}

/// A value written as a string in its text form.
pub(crate) struct Text<T>(pub(crate) T);

impl<T> Form<T> for Text<T> {
    fn write(value: T) -> Self {
        Self(value)
    }

    fn read(self) -> T {
        self.0
    }
}

impl<'de, T> Deserialize<'de> for Text<T>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|error: T::Err| {
            let error = error.to_string();
            // The errors of std do not contain the text that they could not read.
            match error.contains(&format!("`{text}`")) {
                true => D::Error::custom(error),
                false => D::Error::custom(format_args!("`{text}`: {error}")),
            }
        })
    }
}

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// Values that are written as strings in their text form: `C` is a list of them.
pub(super) struct Texts<C>(C);

impl<C> Form<C> for Texts<C> {
    fn write(values: C) -> Self {
        Self(values)
    }

    fn read(self) -> C {
        self.0
    }
}

impl<'de, T> Deserialize<'de> for Texts<Vec<T>>
where
    T: FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<Text<T>>::deserialize(deserializer)?;
        Ok(Self(texts.into_iter().map(|Text(value)| value).collect()))
    }
}

impl<T: fmt::Display> Serialize for Texts<Vec<T>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(ToString::to_string))
    }
}

/// A number, or `"auto"`.
pub(super) struct AutoOr(MaxFrame);

impl Form<MaxFrame> for AutoOr {
    fn write(value: MaxFrame) -> Self {
        Self(value)
    }

    fn read(self) -> MaxFrame {
        self.0
    }
}

impl<'de> Deserialize<'de> for AutoOr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrWord;

        impl Visitor<'_> for NumberOrWord {
            type Value = AutoOr;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or \"auto\"")
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<AutoOr, E> {
                let bytes = u32::try_from(number);
                let bytes = bytes.map_err(|_| E::invalid_value(Unexpected::Signed(number), &self));
                bytes.map(|bytes| AutoOr(MaxFrame::Bytes(bytes)))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<AutoOr, E> {
                self.visit_i64(i64::try_from(number).map_err(E::custom)?)
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<AutoOr, E> {
                match word {
                    "auto" => Ok(AutoOr(MaxFrame::Auto)),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }
        }

        deserializer.deserialize_any(NumberOrWord)
    }
}

impl Serialize for AutoOr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            MaxFrame::Bytes(bytes) => serializer.serialize_u32(bytes),
            auto => serializer.collect_str(&auto),
        }
    }
}

/// A number that a document can hold, which has 63 bits: the parser takes larger ones, but nothing
/// writes them.
pub(super) struct Whole(u64);

impl Form<u64> for Whole {
    fn write(number: u64) -> Self {
        Self(number)
    }

    fn read(self) -> u64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        match i64::try_from(number) {
            Ok(_) => Ok(Self(number)),
            Err(_) => Err(D::Error::custom(format_args!(
                "{number} is above 2^63 - 1, the largest number in a document"
            ))),
        }
    }
}

impl Serialize for Whole {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// A prefix whose length is fixed, by its first address.
pub(super) struct FirstOf<A, const LENGTH: u8>(A);

impl<A, const LENGTH: u8> Form<A> for FirstOf<A, LENGTH> {
    fn write(first: A) -> Self {
        Self(first)
    }

    fn read(self) -> A {
        self.0
    }
}

impl<'de, A: FromStr, const LENGTH: u8> Deserialize<'de> for FirstOf<A, LENGTH> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let first = text.strip_suffix(&format!("/{LENGTH}"));
        let first = first.and_then(|address| address.parse().ok());
        first.map(Self).ok_or_else(|| {
            D::Error::custom(format_args!(
                "`{text}` is not a prefix of length {LENGTH} of this family"
            ))
        })
    }
}

impl<A: fmt::Display, const LENGTH: u8> Serialize for FirstOf<A, LENGTH> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{LENGTH}", self.0))
    }
}

/// A set of bits, written as the list of their names.
pub(crate) struct Set<F>(pub(crate) F);

impl<F> Default for Set<F>
where
    F: Flags,
{
    fn default() -> Self {
        Self(F::empty())
    }
}

impl<F> Form<F> for Set<F> {
    fn write(set: F) -> Self {
        Self(set)
    }

    fn read(self) -> F {
        self.0
    }
}

impl<'de, F: Flags> Deserialize<'de> for Set<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut set = F::empty();
        for Flag(flag) in Vec::<Flag<F>>::deserialize(deserializer)? {
            set.insert(flag);
        }
        Ok(Self(set))
    }
}

impl<F: Flags> Serialize for Set<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(flag_names(&self.0))
    }
}

struct Flag<F>(F);

impl<'de, F: Flags> Deserialize<'de> for Flag<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        flag_by_name(&text).map(Self).ok_or_else(|| {
            D::Error::custom(format_args!(
                "`{text}` is unknown (known: {})",
                flag_names(&F::all()).join(", ")
            ))
        })
    }
}

/// A time in seconds, whole or not.
pub(super) struct Seconds(Duration);

impl Form<Duration> for Seconds {
    fn write(time: Duration) -> Self {
        Self(time)
    }

    fn read(self) -> Duration {
        self.0
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of seconds")
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                u64::try_from(seconds)
                    .map(|seconds| Seconds(Duration::from_secs(seconds)))
                    .map_err(E::custom)
            }

            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                self.visit_i64(i64::try_from(seconds).map_err(E::custom)?)
            }

            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Seconds, E> {
                let time = Duration::try_from_secs_f64(seconds).map_err(E::custom)?;
                // So that whole ones can be written, too.
                match i64::try_from(time.as_secs()) {
                    Ok(_) => Ok(Seconds(time)),
                    Err(_) => Err(E::invalid_value(Unexpected::Float(seconds), &self)),
                }
            }
        }

        deserializer.deserialize_any(Number)
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.subsec_nanos() == 0 {
            return serializer.serialize_u64(self.0.as_secs());
        }
        // A fraction of a very large number of seconds lacks some nanoseconds.
        let seconds = self.0.as_secs_f64();
        match Duration::try_from_secs_f64(seconds) == Ok(self.0) {
            true => serializer.serialize_f64(seconds),
            false => Err(S::Error::custom(format_args!(
                "{}.{:09} s cannot be written as a number of seconds",
                self.0.as_secs(),
                self.0.subsec_nanos()
            ))),
        }
    }
}
