//! Reads the policy in a table `health` of a document.

use std::time::Duration;

use super::policy::Policy;
use super::policy::RealPolicy;
use super::policy::Via;
use super::read_check::Asked;
use super::read_check::asked;
use super::table::checked;
use super::table::chosen;
use super::table::given;
use super::table::time;
use crate::document::Keys;
use crate::error::Result;

/// The given keys of a policy.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) check: Option<Asked>,
    port: Option<u16>,
    via: Option<Via>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    rise: Option<u32>,
    fall: Option<u32>,
    jitter: Option<u32>,
    panic_threshold: Option<u32>,
    drained_fallback: Option<bool>,
    slow_start: Option<Duration>,
    slow_start_steps: Option<u32>,
}

impl Given {
    /// Reads the keys that the table's section has.
    pub(super) fn read(keys: &Keys<'_, '_, '_>) -> Result<Self> {
        let ways = [("tunnel", Via::Tunnel), ("direct", Via::Direct)];
        let given = Self {
            check: asked(keys, "check")?,
            port: given(keys, "port")?,
            via: chosen(keys, "via", &ways)?,
            interval: time(keys, "interval")?,
            timeout: time(keys, "timeout")?,
            rise: given(keys, "rise")?,
            fall: given(keys, "fall")?,
            jitter: given(keys, "jitter")?,
            panic_threshold: given(keys, "panic_threshold")?,
            drained_fallback: given(keys, "drained_fallback")?,
            slow_start: time(keys, "slow_start")?,
            slow_start_steps: given(keys, "slow_start_steps")?,
        };
        let mut policy = Policy::none();
        given.put_into(&mut policy);
        checked(keys, policy.validate())?;
        Ok(given)
    }

    pub(super) fn put_into(&self, policy: &mut Policy) {
        let put = |place: &mut u32, given: Option<u32>| *place = given.unwrap_or(*place);
        if let Some(check) = &self.check {
            policy.check.clone_from(check);
        }
        policy.port = self.port.or(policy.port);
        policy.via = self.via.unwrap_or(policy.via);
        policy.interval = self.interval.unwrap_or(policy.interval);
        policy.timeout = self.timeout.unwrap_or(policy.timeout);
        put(&mut policy.rise, self.rise);
        put(&mut policy.fall, self.fall);
        put(&mut policy.jitter, self.jitter);
        put(&mut policy.panic_threshold, self.panic_threshold);
        policy.drained_fallback = self.drained_fallback.unwrap_or(policy.drained_fallback);
        policy.slow_start = self.slow_start.unwrap_or(policy.slow_start);
        put(&mut policy.slow_start_steps, self.slow_start_steps);
    }

    /// The same for one real.
    pub(super) fn of_real(self) -> RealPolicy {
        RealPolicy {
            probed: !matches!(self.check, Some(None)),
            check: self.check.flatten(),
            port: self.port,
            interval: self.interval,
            timeout: self.timeout,
            rise: self.rise,
            fall: self.fall,
        }
    }
}
