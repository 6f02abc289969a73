//! The engine as a plain Rust program, for profilers: `cargo run --profile perf --example serve -- config.json`.
//!
//! The file is the effective configuration as JSON (`relay_engine::config`). Runs until standard input ends, then drains.

use std::io::Read;
use std::time::Duration;

use relay_engine::{Config, Engine};

/// As in the package.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: serve CONFIG.json")?;
    let config: Config = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let engine = Engine::start(config, None)?;
    for bound in engine.addresses() {
        println!("{} {:?} tls={}", bound.address, bound.http, bound.tls);
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    engine.drain(Duration::from_secs(1));
    println!("{}", serde_json::to_string(&engine.stats())?);
    Ok(())
}
