//! Whole numbers as JSON has them: `3.0` is one.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

/// A whole number that fits `T`.
struct Whole<T>(T);

impl<'de, T: TryFrom<i128>> Deserialize<'de> for Whole<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WholeVisitor(PhantomData))
    }
}

struct WholeVisitor<T>(PhantomData<T>);

impl<T: TryFrom<i128>> WholeVisitor<T> {
    fn fit<E: Error>(number: i128) -> Result<Whole<T>, E> {
        let fits = T::try_from(number).map(Whole);
        fits.map_err(|_| E::custom(format!("the number {number} is out of range")))
    }
}

impl<T: TryFrom<i128>> Visitor<'_> for WholeVisitor<T> {
    type Value = Whole<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Self::fit(number.into())
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Self::fit(number.into())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        // Beyond this a float says nothing about its last digits.
        if number.fract() != 0.0 || number.abs() > 9e15 {
            return Err(E::custom(format!("expected a whole number, found {number}")));
        }
        Self::fit(number as i128)
    }
}

/// A whole number that fits `T`, or null.
pub(crate) fn option<'de, D: Deserializer<'de>, T: TryFrom<i128>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    Ok(Option::<Whole<T>>::deserialize(deserializer)?.map(|whole| whole.0))
}

/// A list of token ids.
pub(crate) fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let ids = Vec::<Whole<u32>>::deserialize(deserializer)?;
    Ok(ids.into_iter().map(|id| id.0).collect())
}

/// A list of token ids, or null.
pub(crate) fn ids_option<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<u32>>, D::Error> {
    let ids = Option::<Vec<Whole<u32>>>::deserialize(deserializer)?;
    Ok(ids.map(|ids| ids.into_iter().map(|id| id.0).collect()))
}

/// A list of lists of token ids.
pub(crate) fn id_lists<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Vec<u32>>, D::Error> {
    let lists = Vec::<Vec<Whole<u32>>>::deserialize(deserializer)?;
    Ok(lists.into_iter().map(|ids| ids.into_iter().map(|id| id.0).collect()).collect())
}
