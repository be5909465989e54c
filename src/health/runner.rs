//! Runs probes: up to the limit at once, each up to its timeout.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use super::board::Target;
use super::outcome::Cause;
use super::outcome::Outcome;
use super::plan::Question;
use super::plan::Questions;
use super::schedule::Job;
use super::schedule::Schedule;

/// An order to the runner.
pub(super) enum Order {
    /// Probe only these from now on.
    Follow(Arc<Questions>),
    /// Probe this target at once.
    Hurry(Target),
}

/// A finished probe.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finished {
    pub(super) target: Target,
    pub(super) started: Instant,
    pub(super) took: Duration,
    pub(super) outcome: Outcome,
}

/// Runs probes until every sender of orders is gone.
pub(super) async fn run<F>(
    mut orders: UnboundedReceiver<Order>,
    mut schedule: Schedule,
    report: impl Fn(Finished),
    ask: impl Fn(&Question) -> F,
) where
    F: Future<Output = Outcome> + Send + 'static,
{
    let mut questions = Arc::new(Questions::new());
    let mut probes: JoinSet<Outcome> = JoinSet::new();
    let mut on_their_way: HashMap<tokio::task::Id, (Job, Instant)> = HashMap::new();
    loop {
        while let Some(job) = schedule.next(now()) {
            let Some(question) = questions.get(&job.target) else {
                schedule.finished(&job, now());
                continue;
            };
            let (timeout, asked) = (question.timeout, ask(question));
            let probe = probes.spawn(async move {
                match tokio::time::timeout(timeout, asked).await {
                    Ok(outcome) => outcome,
                    Err(_) => {
                        let why = format!("no complete answer within {} s", timeout.as_secs_f64());
                        Outcome::Failed(Cause::Timeout, why)
                    }
                }
            });
            on_their_way.insert(probe.id(), (job, now()));
        }
        let wake = schedule.wake();
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Follow(next)) => {
                    let targets = next.iter().map(|(target, question)| (*target, question.pace));
                    schedule.follow(targets, now());
                    questions = next;
                }
                Some(Order::Hurry(target)) => schedule.hurry(target, now()),
                None => return,
            },
            Some(ended) = probes.join_next_with_id(), if !probes.is_empty() => {
                let (id, outcome) = match ended {
                    Ok((id, outcome)) => (id, outcome),
                    // An internal failure says nothing about the real.
                    Err(error) => (error.id(), Outcome::NotSent(error.to_string())),
                };
                if let Some((job, started)) = on_their_way.remove(&id)
                    && schedule.finished(&job, now())
                {
                    report(Finished {
                        target: job.target,
                        started,
                        took: now().saturating_duration_since(started),
                        outcome,
                    });
                }
            },
            () = tokio::time::sleep_until(wake.unwrap_or_else(now).into()), if wake.is_some() => {}
        }
    }
}

/// The runtime's clock, which tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
