//! The load client for Python. A run blocks, detached from the interpreter; another thread may look at it and stop it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use relay_engine::load;

pyo3::import_exception!(relay.errors, BenchError);

/// One run of the load client.
#[pyclass(frozen, module = "relay._native")]
pub(crate) struct Load {
    plan: Mutex<Option<load::Plan>>,
    progress: Arc<load::Progress>,
}

#[pymethods]
impl Load {
    #[new]
    fn new(plan: &str) -> PyResult<Self> {
        let plan =
            serde_json::from_str(plan).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self {
            plan: Mutex::new(Some(plan)),
            progress: Arc::default(),
        })
    }

    /// Runs to the end and returns the result as JSON; ValueError for a plan that cannot be, BenchError for a run that failed.
    fn run(&self, py: Python<'_>) -> PyResult<String> {
        let plan = self.plan.lock().ok().and_then(|mut plan| plan.take());
        let plan = plan.ok_or_else(|| PyRuntimeError::new_err("a plan runs once"))?;
        match py.detach(|| load::run(plan, &self.progress)) {
            Ok(result) => Ok(serde_json::Value::Object(result).to_string()),
            Err(failure) if failure.usage => Err(PyValueError::new_err(failure.message)),
            Err(failure) => Err(BenchError::new_err(failure.message)),
        }
    }

    /// Whether all is connected, and what was done since: bytes, tunnels or messages.
    fn progress(&self) -> (bool, u64) {
        (self.progress.running(), self.progress.done())
    }

    /// Ends the run soon; `run` then raises BenchError.
    fn stop(&self) {
        self.progress.stop();
    }
}

/// Serves as an origin until the process ends; returns the address. OSError, e.g. for a busy port.
#[pyfunction]
pub(crate) fn serve_origin(address: &str) -> PyResult<(String, u16)> {
    let address: SocketAddr = address
        .parse()
        .map_err(|_| PyValueError::new_err("expected an address IP:PORT"))?;
    let origin =
        load::Origin::start(address).map_err(|error| PyOSError::new_err(error.to_string()))?;
    let address = origin.address();
    Ok((address.ip().to_string(), address.port()))
}
