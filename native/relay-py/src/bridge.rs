//! The decision bridge: questions queue up, one wake-up carries a batch to Python, answers come back by call.
//!
//! Workers only ever push to a queue under a short lock; the bridge's own thread is the one that attaches to Python.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};
use relay_engine::decide::{Decider, Decision, Question, Reply};

/// What questions and answers meet in.
#[derive(Default)]
struct State {
    waiting: VecDeque<(Question, Reply)>,
    asked: HashMap<u64, Reply>,
    last: u64,
    /// Python was told, or is about to be, and has not yet taken everything.
    signalled: bool,
    /// The thread has yet to tell.
    wake_due: bool,
    closed: bool,
    batches: u64,
    overflows: u64,
}

struct Queue {
    state: Mutex<State>,
    work: Condvar,
    capacity: usize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses everything that still waits for an answer.
    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.waiting.clear();
        state.asked.clear();
        drop(state);
        self.work.notify_all();
    }

    /// Waits until Python must be woken; false = closed.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        while !state.wake_due && !state.closed {
            state = self
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.wake_due = false;
        !state.closed
    }
}

impl Decider for Queue {
    fn ask(&self, question: Question, reply: Reply) {
        let mut state = self.lock();
        let full = state.waiting.len() + state.asked.len() >= self.capacity;
        if state.closed || full {
            state.overflows += u64::from(full);
            drop(state);
            reply.send(Decision::Failed {
                reason: "too many decisions are pending".into(),
            });
            return;
        }
        state.waiting.push_back((question, reply));
        let wake = !state.signalled;
        state.signalled = true;
        state.wake_due |= wake;
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }
}

/// The queue of questions, seen from Python.
#[pyclass(frozen, module = "relay._native")]
pub(crate) struct Bridge {
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Bridge {
    /// The engine's side.
    pub(crate) fn decider(&self) -> Arc<dyn Decider> {
        self.queue.clone()
    }
}

#[pymethods]
impl Bridge {
    /// `wake` is called from the bridge's thread, once for each batch; it must only pass the word on.
    #[new]
    #[pyo3(signature = (wake, capacity = 16384))]
    fn new(wake: Py<PyAny>, capacity: usize) -> PyResult<Self> {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            work: Condvar::new(),
            capacity,
        });
        let theirs = queue.clone();
        let thread = std::thread::Builder::new()
            .name("relay-bridge".into())
            .spawn(move || run(&theirs, wake))
            .map_err(|error| PyOSError::new_err(format!("no thread for the bridge: {error}")))?;
        Ok(Self {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Everything that waits: (number, protocol, http, host, port, principal, (client host, client port), headers).
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let mut state = self.queue.lock();
        state.signalled = false;
        state.batches += 1;
        let waiting = std::mem::take(&mut state.waiting);
        let mut questions = Vec::with_capacity(waiting.len());
        for (question, reply) in waiting {
            state.last += 1;
            let id = state.last;
            state.asked.insert(id, reply);
            questions.push((id, question));
        }
        drop(state);
        let batch = PyList::empty(py);
        for (id, question) in &questions {
            batch.append(describe(py, *id, question)?)?;
        }
        Ok(batch)
    }

    /// Answers one question; status 0 = allow, 1 = no decision could be had (503, not remembered). A number that is not open is ignored.
    #[pyo3(signature = (number, status = 0, reason = ""))]
    fn answer(&self, number: u64, status: u16, reason: &str) {
        let reply = self.queue.lock().asked.remove(&number);
        if let Some(reply) = reply {
            reply.send(decision(status, reason));
        }
    }

    /// Answers a batch of (number, status, reason).
    fn answer_all(&self, answers: Vec<(u64, u16, String)>) {
        let replies: Vec<_> = {
            let mut state = self.queue.lock();
            answers
                .into_iter()
                .filter_map(|(id, status, reason)| Some((state.asked.remove(&id)?, status, reason)))
                .collect()
        };
        for (reply, status, reason) in replies {
            reply.send(decision(status, &reason));
        }
    }

    /// (batches, refused because too many were pending, pending now)
    fn counts(&self) -> (u64, u64, usize) {
        let state = self.queue.lock();
        (
            state.batches,
            state.overflows,
            state.waiting.len() + state.asked.len(),
        )
    }

    /// Refuses what is open and ends the thread. Idempotent.
    fn close(&self, py: Python<'_>) {
        self.queue.close();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            // The thread may be about to attach.
            py.detach(|| {
                let _ = thread.join();
            });
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.queue.close();
    }
}

fn decision(status: u16, reason: &str) -> Decision {
    let reason = reason.to_owned();
    match status {
        0 => Decision::Allow,
        1 => Decision::Failed { reason },
        status => Decision::Deny { status, reason },
    }
}

fn run(queue: &Queue, wake: Py<PyAny>) {
    while queue.wait() {
        let woken = Python::try_attach(|py| wake.call0(py).is_ok());
        if woken != Some(true) {
            // The loop is closed or the interpreter ends: nobody is going to answer.
            queue.close();
        }
    }
    let mut wake = Some(wake);
    if Python::try_attach(|py| wake.take().map(|wake| wake.drop_ref(py))).is_none() {
        // Without an interpreter there is nobody to give the reference back to.
        std::mem::forget(wake);
    }
}

fn describe<'py>(py: Python<'py>, id: u64, question: &Question) -> PyResult<Bound<'py, PyTuple>> {
    let headers = PyDict::new(py);
    for (name, value) in &question.headers {
        let text: String = value.iter().copied().map(char::from).collect();
        let name = PyString::intern(py, name);
        match headers.get_item(&name)? {
            None => headers.set_item(name, text)?,
            Some(before) => headers.set_item(name, format!("{before}, {text}"))?,
        }
    }
    (
        id,
        PyString::intern(py, question.protocol),
        PyString::intern(py, question.http),
        &question.host,
        question.port,
        question.principal.as_deref(),
        (question.client.ip().to_string(), question.client.port()),
        headers,
    )
        .into_pyobject(py)
}
