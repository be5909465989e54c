//! The checks of all targets, ready to run.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::time::Duration;

use super::board::Board;
use super::board::Target;
use super::check::Check;
use super::policy::Via;
use super::probe::Authorities;
use super::probe::Place;
use super::probe::Probe;
use super::schedule::Pace;
use super::settings::Settings;
use crate::error::Result;
use crate::types::Vip;

/// All checks of the settings, ready to run: certificates are read once.
#[derive(Clone)]
pub(super) struct Probes(HashMap<Check, Probe>);

impl Probes {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        settings.validate()?;
        let mut authorities = Authorities::default();
        let mut probes = HashMap::new();
        for check in settings.checks() {
            if !probes.contains_key(check) {
                probes.insert(check.clone(), Probe::new(check, &mut authorities)?);
            }
        }
        Ok(Self(probes))
    }

    fn of(&self, check: &Check) -> Option<Probe> {
        self.0.get(check).cloned()
    }
}

/// # Checking against a state
impl Settings {
    /// Checks what [`validate`](Self::validate) checks, and reads the certificates as starting
    /// checks would.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`](crate::Error::InvalidConfig), also for unreadable certificates.
    pub fn check(&self) -> Result<()> {
        Probes::new(self).map(drop)
    }
}

/// The check of one real, and its pace.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) probe: Probe,
    pub(super) place: Place,
    pub(super) timeout: Duration,
    pub(super) pace: Pace,
    /// The VIP under which its packets through the tunnel are counted.
    pub(super) counted: Option<Vip>,
}

/// The checks of all reals.
pub(super) type Questions = BTreeMap<Target, Question>;

/// The checks of everything on a board.
pub(super) fn questions(board: &Board, probes: &Probes) -> Questions {
    let targets = board.targets().into_iter();
    let question = |target: Target| {
        let policy = board.settings.of(target.vip);
        let probing = policy.of_real(target.vip, target.real)?;
        let through_tunnel = probing.via == Via::Tunnel;
        let mark = match through_tunnel {
            true => Some(board.mark(target.real)?),
            false => None,
        };
        let to = (probing.to.address(), probing.to.port()).into();
        let question = Question {
            probe: probes.of(probing.check)?,
            place: Place { target, to, mark },
            timeout: probing.timeout,
            pace: Pace {
                interval: probing.interval,
                jitter: probing.jitter,
            },
            counted: probing.counted.then_some(probing.to),
        };
        Some((target, question))
    };
    targets.filter_map(question).collect()
}
