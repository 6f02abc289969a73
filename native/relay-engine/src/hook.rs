//! Asking the control plane about a tunnel, with a time-out that denies and a memory for answers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::decide::{Decider, Decision, Question, Reply};
use crate::metrics::WorkerMetrics;

/// Answers that are remembered at most.
const MOST: usize = 16 * 1024;

type Key = (Option<Arc<str>>, &'static str, String, u16);

/// Decisions by principal, protocol and target, for a time.
#[derive(Debug)]
pub struct HookCache {
    lifetime: Duration,
    answers: Mutex<HashMap<Key, (Instant, Decision)>>,
}

impl HookCache {
    /// Remembers for `lifetime`; zero = never.
    pub fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            answers: Mutex::default(),
        }
    }

    fn get(&self, key: &Key, now: Instant) -> Option<Decision> {
        if self.lifetime.is_zero() {
            return None;
        }
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, decision) = answers.get(key)?;
        (now < *until).then(|| decision.clone())
    }

    fn put(&self, key: Key, decision: &Decision, now: Instant) {
        if self.lifetime.is_zero() {
            return;
        }
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST {
            answers.retain(|_, (until, _)| now < *until);
        }
        if answers.len() < MOST {
            answers.insert(key, (now + self.lifetime, decision.clone()));
        }
    }
}

/// Asks, unless the answer is remembered. No answer in time is a no.
pub async fn ask(
    decider: Option<&Arc<dyn Decider>>,
    cache: &HookCache,
    limit: Duration,
    principal: Option<&Arc<str>>,
    question: impl FnOnce() -> Question,
    metrics: &WorkerMetrics,
) -> Decision {
    let question = question();
    let key = (
        principal.cloned(),
        question.protocol,
        question.host.clone(),
        question.port,
    );
    let asked = Instant::now();
    if let Some(decision) = cache.get(&key, asked) {
        return decision;
    }
    let failed = |reason: &str| Decision::Failed {
        reason: reason.into(),
    };
    let Some(decider) = decider else {
        return failed("the policy hook is not there to ask");
    };
    metrics.hook_questions.add(1);
    let (sender, receiver) = oneshot::channel();
    decider.ask(question, Reply(sender));
    let answer = timeout(limit, receiver).await;
    metrics
        .hook_wait_us
        .add(u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX));
    match answer {
        Ok(Ok(failure @ Decision::Failed { .. })) => failure,
        Ok(Ok(decision)) => {
            cache.put(key, &decision, asked);
            decision
        }
        Ok(Err(_)) => failed("the policy hook failed"),
        Err(_) => {
            metrics.hook_timeouts.add(1);
            failed("the policy hook gave no answer in time")
        }
    }
}
