//! The number of slots of a ring: a prime within limits.

use std::fmt;

use crate::error::Error;

/// The number of slots of every ring of a balancer: a prime from 3 to 16,777,213.
///
/// It must be prime, so that each backend's candidates reach every slot. More slots spread the load
/// more evenly, but take more memory (2 bytes per slot) and time. A hundred slots per backend of a
/// VIP are a good minimum; the largest rings take seconds to build. All hosts of a fleet must have
/// the same size.
///
/// ```
/// use katran::ring::RingSize;
///
/// let size = RingSize::try_from(10_007).unwrap();
/// assert_eq!(size.get(), 10_007);
/// assert_eq!(RingSize::default().get(), 65_537);
///
/// let error = RingSize::try_from(10_000).unwrap_err();
/// assert!(error.to_string().contains("10007"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "kDefaultChRingSize")]
pub struct RingSize(u32);

impl RingSize {
    /// The default, 65,537 slots, as in Katran.
    pub const DEFAULT: Self = Self(65_537);

    /// The smallest size.
    pub const MIN: Self = Self(3);

    /// The largest size: the greatest prime below 2^24.
    pub const MAX: Self = Self(16_777_213);

    /// The number of slots.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for RingSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Display for RingSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<RingSize> for u32 {
    fn from(size: RingSize) -> Self {
        size.0
    }
}

impl TryFrom<u32> for RingSize {
    type Error = Error;

    /// # Errors
    /// [`Error::InvalidConfig`] if `size` is not a prime within the limits; the error suggests the
    /// next one.
    fn try_from(size: u32) -> Result<Self, Error> {
        let (Self(min), Self(max)) = (Self::MIN, Self::MAX);
        let accepted = (size.max(min)..=max).find(|&size| is_prime(size));
        if accepted == Some(size) {
            return Ok(Self(size));
        }
        let nearest = accepted.unwrap_or(max);
        Err(Error::InvalidConfig {
            setting: "ring_size",
            value: size.to_string(),
            reason: format!("must be a prime from {min} to {max}, such as {nearest}"),
        })
    }
}

/// Trial division, by at most 2,048 numbers within the limits.
fn is_prime(number: u32) -> bool {
    number == 2
        || number > 2
            && !number.is_multiple_of(2)
            && (3..)
                .step_by(2)
                .take_while(|divisor| divisor * divisor <= number)
                .all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what panics has failed the test")]
mod tests {
    use super::*;

    #[test]
    fn primes_within_the_limits_are_accepted() {
        for size in [3, 5, 1009, 10_007, 65_537, 655_373, 16_777_213] {
            assert_eq!(RingSize::try_from(size).unwrap().get(), size);
        }
        for fixed in [RingSize::MIN, RingSize::DEFAULT, RingSize::MAX] {
            assert_eq!(RingSize::try_from(fixed.get()).unwrap(), fixed);
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_suggestion() {
        for (size, suggestion) in [
            (0, 3),
            (1, 3),
            (2, 3),
            (4, 5),
            (9, 11),
            (65_536, 65_537),
            (65_538, 65_539),
            (16_777_214, 16_777_213),
            (u32::MAX, 16_777_213),
        ] {
            match RingSize::try_from(size).unwrap_err() {
                Error::InvalidConfig {
                    setting: "ring_size",
                    value,
                    reason,
                } => {
                    assert_eq!(value, size.to_string());
                    assert!(
                        reason.ends_with(&format!("such as {suggestion}")),
                        "{reason}"
                    );
                }
                other => panic!("{other}"),
            }
        }
    }
}
