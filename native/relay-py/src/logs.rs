//! What the engine says about itself, on standard error. No worker waits for Python to say something.

use std::io;
use std::sync::OnceLock;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

static FILTER: OnceLock<Option<reload::Handle<Targets, Registry>>> = OnceLock::new();

/// Our own crates only: what the libraries below say is about them.
fn filter(level: LevelFilter) -> Targets {
    Targets::new().with_target("relay_engine", level)
}

/// Writes the engine's own records from `level` on (`debug`, `info`, `warning`, `error`) to standard error.
#[pyfunction]
pub(crate) fn log_to_stderr(level: &str) -> PyResult<()> {
    let level = match level {
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warning" => LevelFilter::WARN,
        "error" => LevelFilter::ERROR,
        _ => {
            return Err(PyValueError::new_err(
                "level must be debug, info, warning or error",
            ));
        }
    };
    let handle = FILTER.get_or_init(|| {
        let (filter, handle) = reload::Layer::new(filter(level));
        let lines = fmt::layer().with_ansi(false).with_writer(io::stderr);
        // Fails when the process has a subscriber already; then that one decides.
        let installed = tracing_subscriber::registry()
            .with(filter)
            .with(lines)
            .try_init();
        installed.is_ok().then_some(handle)
    });
    if let Some(handle) = handle {
        // Fails only when the subscriber is gone, and it lives as long as the process.
        let _ = handle.reload(filter(level));
    }
    Ok(())
}
