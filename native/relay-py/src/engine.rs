//! The engine for Python: start, ask, reload, drain, close. Whatever may wait runs detached from the interpreter.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use relay_engine::config::Config;

use crate::bridge::Bridge;

pyo3::import_exception!(relay.errors, StartError);

fn parse(config: &str) -> PyResult<Config> {
    serde_json::from_str(config).map_err(|error| PyValueError::new_err(error.to_string()))
}

fn start_error(error: &relay_engine::StartError) -> PyErr {
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    StartError::new_err((lines,))
}

/// A running relay.
#[pyclass(frozen, module = "relay._native")]
pub(crate) struct Engine {
    engine: relay_engine::Engine,
}

#[pymethods]
impl Engine {
    /// Listens and serves; returns when all sockets listen.
    #[staticmethod]
    #[pyo3(signature = (config, bridge = None))]
    fn start(py: Python<'_>, config: &str, bridge: Option<&Bridge>) -> PyResult<Self> {
        let config = parse(config)?;
        let decider = bridge.map(Bridge::decider);
        py.detach(|| relay_engine::Engine::start(config, decider))
            .map(|engine| Self { engine })
            .map_err(|error| start_error(&error))
    }

    /// (host, port, HTTP versions, TLS) of each listener.
    fn addresses(&self) -> Vec<(String, u16, Vec<&'static str>, bool)> {
        self.engine
            .addresses()
            .iter()
            .map(|bound| {
                let http = bound.http.iter().map(|http| http.name()).collect();
                (
                    bound.address.ip().to_string(),
                    bound.address.port(),
                    http,
                    bound.tls,
                )
            })
            .collect()
    }

    /// The counters, as a JSON object.
    fn stats(&self) -> PyResult<String> {
        serde_json::to_string(&self.engine.stats())
            .map_err(|error| PyValueError::new_err(error.to_string()))
    }

    /// Takes a new configuration for new connections.
    fn reload(&self, py: Python<'_>, config: &str) -> PyResult<()> {
        let config = parse(config)?;
        py.detach(|| self.engine.reload(config))
            .map_err(|error| start_error(&error))
    }

    /// Stops accepting, waits for tunnels up to `grace` seconds, then ends them.
    fn drain(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let grace = Duration::try_from_secs_f64(grace)
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        py.detach(|| self.engine.drain(grace));
        Ok(())
    }

    /// Ends everything at once. Idempotent.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.engine.close());
    }
}
