//! The decision bridge: questions queue up, one wake-up carries a batch to Python, answers come back by call.
//!
//! Workers only ever push to a queue under a short lock and write a byte to a socket that the event loop of Python watches: no
//! thread in between, and nobody waits for the interpreter to wake it.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    closed: bool,
    batches: u64,
    overflows: u64,
}

struct Queue {
    state: Mutex<State>,
    /// Where workers write and the event loop reads; neither ever waits.
    wake: UnixStream,
    woken: UnixStream,
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
    }

    /// Everything that waits, numbered. The next question after this wakes Python again.
    fn take(&self) -> Vec<(u64, Question)> {
        // Before the questions: a byte that is written from now on is for a question that may still have to be taken.
        while matches!((&self.woken).read(&mut [0; 64]), Ok(1..)) {}
        let mut state = self.lock();
        state.signalled = false;
        let waiting = std::mem::take(&mut state.waiting);
        state.batches += u64::from(!waiting.is_empty());
        let mut questions = Vec::with_capacity(waiting.len());
        for (question, reply) in waiting {
            state.last += 1;
            let id = state.last;
            state.asked.insert(id, reply);
            questions.push((id, question));
        }
        questions
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
        let wake = !std::mem::replace(&mut state.signalled, true);
        drop(state);
        if wake {
            // A socket without room has bytes in it that wake as well.
            let _ = (&self.wake).write(&[1]);
        }
    }
}

/// The queue of questions, seen from Python.
#[pyclass(frozen, module = "relay._native")]
pub(crate) struct Bridge {
    queue: Arc<Queue>,
}

impl Bridge {
    /// The engine's side.
    pub(crate) fn decider(&self) -> Arc<dyn Decider> {
        self.queue.clone()
    }
}

#[pymethods]
impl Bridge {
    #[new]
    #[pyo3(signature = (capacity = 16384))]
    fn new(capacity: usize) -> PyResult<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        Ok(Self {
            queue: Arc::new(Queue {
                state: Mutex::default(),
                wake,
                woken,
                capacity,
            }),
        })
    }

    /// A descriptor that is readable once for each batch, until `take`.
    fn fileno(&self) -> i32 {
        self.queue.woken.as_raw_fd()
    }

    /// Everything that waits: (number, protocol, http, host, port, principal, (client host, client port), headers).
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let batch = PyList::empty(py);
        for (id, question) in &self.queue.take() {
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

    /// Refuses what is open and everything from now on. Idempotent.
    fn close(&self) {
        self.queue.close();
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
