//! Judges a pinned balancer by its own record.

use std::path::Path;

use super::Diagnosis;
use super::Subject;
use crate::error::Error;
use crate::pins::Pinned;
#[cfg(test)]
use crate::pins::PinnedKind;
use crate::pins::PinnedOwner;
use crate::pins::PinnedStage;
use crate::pins::pinned;

const ADOPT: &str = "start its program again: it adopts the balancer";

/// # Pinned objects
impl Diagnosis {
    /// Diagnoses what is pinned in a directory: whether it is complete and, for a balancer, whether
    /// its owner gives signs of life. Needs no handle and changes nothing.
    ///
    /// ```no_run
    /// println!("{}", katran::diagnosis::Diagnosis::of_pinned("/sys/fs/bpf/katran"));
    /// ```
    pub fn of_pinned(directory: impl AsRef<Path>) -> Self {
        let mut found = Self::default();
        match pinned(directory) {
            Ok(pinned) => judge(&pinned, &mut found),
            Err(error) => refused(&error, &mut found),
        }
        found
    }
}

fn refused(error: &Error, found: &mut Diagnosis) {
    let advice = match error {
        Error::NotFound { .. } => "check the directory, or load a balancer that is pinned there",
        _ => "remove the cause, then look again",
    };
    found.problem(Subject::Owner, error.to_string(), advice);
}

fn judge(pinned: &Pinned, found: &mut Diagnosis) {
    let is_orphan = pinned.owner == PinnedOwner::Nobody;
    let message = format!(
        "{}: {}, {pinned}; katran {} (its maps: {}), loaded {} s ago",
        pinned.path.display(),
        pinned.kind,
        pinned.owner_version,
        pinned.version,
        pinned.age.as_secs()
    );
    let half = match pinned.stage {
        PinnedStage::Whole => None,
        PinnedStage::Loading => Some("its load"),
        PinnedStage::Removing => Some("its removal"),
    };
    match half {
        Some(what) if is_orphan => found.problem(
            Subject::Owner,
            format!("{message}; {what} was interrupted"),
            "remove it, or start its program again, which replaces it",
        ),
        Some(what) => found.note(
            Subject::Owner,
            format!("{message}; {what} is in progress"),
            "check again in a moment",
        ),
        None if is_orphan && pinned.silence.is_none() => found.note(
            Subject::Owner,
            format!("{message}: it works, but no process owns it"),
            "start its program again to change it, or to restore lost attachments",
        ),
        None if is_orphan => found.warn(
            Subject::Owner,
            format!("{message}: nothing updates next hops, MTUs and the configuration"),
            ADOPT,
        ),
        None if pinned.is_silent() => found.warn(
            Subject::Owner,
            message,
            "the process is stopped or hangs: continue it, or end it and start it again",
        ),
        None => found.ok(Subject::Owner, message),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Severity;
    use super::*;

    #[test]
    fn an_orphan_is_found() {
        let mut of = Pinned::example();
        let mut judged = |owner, stage, seconds: Option<u64>| {
            of.owner = owner;
            of.stage = stage;
            of.kind = match seconds {
                Some(_) => PinnedKind::Balancer,
                None => PinnedKind::Decapsulator,
            };
            of.silence = seconds.map(Duration::from_secs);
            let mut found = Diagnosis::default();
            judge(&of, &mut found);
            let [finding] = found.findings() else {
                panic!("{found}");
            };
            finding.severity
        };
        use PinnedOwner::Nobody;
        use PinnedOwner::Process;
        use PinnedStage::Loading;
        use PinnedStage::Removing;
        use PinnedStage::Whole;
        assert_eq!(judged(Process(7), Whole, Some(1)), Severity::Ok);
        assert_eq!(judged(Process(7), Whole, Some(42)), Severity::Warning);
        assert_eq!(judged(Nobody, Whole, Some(0)), Severity::Warning);
        assert_eq!(judged(Process(7), Whole, None), Severity::Ok);
        assert_eq!(judged(Nobody, Whole, None), Severity::Note);
        assert_eq!(judged(Nobody, Loading, None), Severity::Problem);
        assert_eq!(judged(Process(7), Loading, Some(0)), Severity::Note);
        assert_eq!(judged(Nobody, Removing, Some(0)), Severity::Problem);
        let nothing = Diagnosis::of_pinned("/nowhere");
        assert!(!nothing.works());
    }
}
