//! Load for benchmarks: bulk transfers through one tunnel, and the origin behind it.
//!
//! `relay-load origin` is the source and sink, a process of its own so that its CPU time is not the client's.
//! `relay-load bulk …` moves bytes through one tunnel and tells time, CPU seconds and memory as one line.

mod bulk;
mod options;
mod origin;
mod pattern;
mod usage;

use std::process::ExitCode;

const HELP: &str = "usage: relay-load origin [--address IP:PORT]
       relay-load bulk --proxy IP:PORT --mode h1|h1tls|h2|h2c|h3|tcp [--form connect|connect-tcp]
                       [--direction down|up] [--bytes 1e9] [--authority NAME[:PORT]] [--ca FILE] [--token TOKEN]
                       [--origin IP:PORT] [--pid RELAY] [--verify] [--json] [--timeout SECONDS]

origin  sends or takes bytes on loopback; prints its address.
bulk    without --origin, it starts one. Mode tcp connects to --proxy as it is: the origin itself, or a TCP proxy before it.";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let result = match command.as_deref() {
        Some("origin") => options::Options::parse(arguments).and_then(|it| origin::run(&it)),
        Some("bulk") => options::Options::parse(arguments).and_then(|it| bulk::run(&it)),
        Some("--help" | "-h" | "help") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => Err(options::usage(HELP)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("relay-load: {}", failure.message);
            ExitCode::from(failure.exit_code)
        }
    }
}
