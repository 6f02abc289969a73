//! Slow password verification off the event loop: few at once, a short queue, each question answered once.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::oneshot;

use super::secret;

/// Verifications at once in the whole process: each takes 19 MiB and a core.
const THREADS: usize = 2;

/// Verifications waiting: a second or two of work. Beyond this the answer is "busy".
const QUEUE: usize = 64;

/// How long a verified password is taken as such.
const REMEMBER_GOOD: Duration = Duration::from_secs(600);

/// How long a wrong password is refused without another look.
const REMEMBER_BAD: Duration = Duration::from_secs(60);

/// Results remembered, of each kind.
const REMEMBERED: usize = 4096;

/// One question, under a key that only this process knows: it covers the stored hash, so that a changed user is a new
/// question.
type Question = [u8; 32];

type Job = Box<dyn FnOnce() + Send>;

/// The verifier of the process.
pub(super) static PROCESS: LazyLock<Arc<Verifier>> =
    LazyLock::new(|| Arc::new(Verifier::new(THREADS, QUEUE)));

/// Verifies passwords and remembers the results.
pub(crate) struct Verifier {
    /// None if the system gave no random numbers; then nothing is verified.
    key: Option<hmac::Key>,
    threads: usize,
    queue: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    good: Memory,
    bad: Memory,
    asked: HashMap<Question, Vec<oneshot::Sender<bool>>>,
    jobs: VecDeque<Job>,
    running: usize,
    #[cfg(test)]
    verified: usize,
}

/// There is no room for another verification now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Busy;

impl Verifier {
    pub(crate) fn new(threads: usize, queue: usize) -> Self {
        Self {
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok(),
            threads,
            queue,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `password` of `user` fits `phc`. Identical questions share one verification.
    ///
    /// # Errors
    /// Too many questions wait already.
    pub(crate) async fn verify(
        self: &Arc<Self>,
        user: &[u8],
        password: &[u8],
        phc: &Arc<str>,
    ) -> Result<bool, Busy> {
        let question = self.question(user, password, phc).ok_or(Busy)?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state();
            if let Some(known) = state.known(&question, Instant::now()) {
                return Ok(known);
            }
            if let Some(waiting) = state.asked.get_mut(&question) {
                waiting.push(sender);
            } else {
                state.asked.insert(question, vec![sender]);
                let (verifier, password, phc) =
                    (Arc::clone(self), password.to_vec(), Arc::clone(phc));
                let job = Box::new(move || verifier.answer(question, &password, &phc));
                if let Err(busy) = self.submit(&mut state, job) {
                    state.asked.remove(&question);
                    return Err(busy);
                }
            }
        }
        receiver.await.map_err(|_| Busy)
    }

    /// How many verifications there have been.
    #[cfg(test)]
    pub(crate) fn verifications(&self) -> usize {
        self.state().verified
    }

    fn question(&self, user: &[u8], password: &[u8], phc: &str) -> Option<Question> {
        let mut context = hmac::Context::with_key(self.key.as_ref()?);
        for part in [phc.as_bytes(), user, password] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().ok()
    }

    fn submit(self: &Arc<Self>, state: &mut State, job: Job) -> Result<(), Busy> {
        if state.running >= self.threads && state.jobs.len() >= self.queue {
            return Err(Busy);
        }
        state.jobs.push_back(job);
        if state.running < self.threads {
            let verifier = Arc::clone(self);
            let thread = std::thread::Builder::new()
                .name("relay-passwords".into())
                .spawn(move || verifier.work());
            match thread {
                Ok(_) => state.running += 1,
                // The threads that run will come to it.
                Err(_) if state.running > 0 => {}
                Err(_) => {
                    state.jobs.pop_back();
                    return Err(Busy);
                }
            }
        }
        Ok(())
    }

    /// A thread lives as long as there is work: starting one is nothing beside a verification.
    fn work(&self) {
        loop {
            let job = {
                let mut state = self.state();
                match state.jobs.pop_front() {
                    Some(job) => job,
                    None => {
                        state.running -= 1;
                        return;
                    }
                }
            };
            // Whoever waits for a job that panics is told "busy".
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    fn answer(&self, question: Question, password: &[u8], phc: &str) {
        let _forget = Forget {
            verifier: self,
            question,
        };
        if self.is_abandoned(&question) {
            return;
        }
        let Some(fits) = secret::fits(password, phc) else {
            // Whoever waits is told "busy".
            self.state().asked.remove(&question);
            return;
        };
        let waiting = {
            let mut state = self.state();
            state.remember(question, fits, Instant::now());
            state.asked.remove(&question)
        };
        for sender in waiting.into_iter().flatten() {
            let _ = sender.send(fits);
        }
    }

    /// Whether everybody who asked is gone; then the question is, too.
    fn is_abandoned(&self, question: &Question) -> bool {
        let mut state = self.state();
        let abandoned = state
            .asked
            .get(question)
            .is_none_or(|waiting| waiting.iter().all(oneshot::Sender::is_closed));
        if abandoned {
            state.asked.remove(question);
        }
        abandoned
    }
}

/// Takes a question off the list if its job panics, so that nobody waits for an answer that never comes.
struct Forget<'a> {
    verifier: &'a Verifier,
    question: Question,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.verifier.state().asked.remove(&self.question);
        }
    }
}

impl State {
    fn known(&mut self, question: &Question, now: Instant) -> Option<bool> {
        if self.good.holds(question, now) {
            Some(true)
        } else if self.bad.holds(question, now) {
            Some(false)
        } else {
            None
        }
    }

    fn remember(&mut self, question: Question, fits: bool, now: Instant) {
        #[cfg(test)]
        {
            self.verified += 1;
        }
        if fits {
            self.good.insert(question, now + REMEMBER_GOOD);
        } else {
            self.bad.insert(question, now + REMEMBER_BAD);
        }
    }
}

/// Questions with one answer, each for the same time, so the oldest are the first to go.
#[derive(Default)]
struct Memory {
    until: HashMap<Question, Instant>,
    order: VecDeque<Question>,
}

impl Memory {
    fn holds(&mut self, question: &Question, now: Instant) -> bool {
        while let Some(oldest) = self.order.front() {
            if self.until.get(oldest).is_some_and(|&until| now < until) {
                break;
            }
            self.until.remove(oldest);
            self.order.pop_front();
        }
        self.until.get(question).is_some_and(|&until| now < until)
    }

    fn insert(&mut self, question: Question, until: Instant) {
        if self.until.insert(question, until).is_some() {
            return;
        }
        self.order.push_back(question);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.until.remove(&oldest);
        }
    }
}

#[cfg(test)]
#[path = "verifier_tests.rs"]
mod tests;
