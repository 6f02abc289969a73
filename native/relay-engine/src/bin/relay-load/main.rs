//! The load client of [`relay_engine::load`] without Python, for benchmarks of the engine alone.
//!
//! `relay-load origin` is the source and sink, a process of its own so that its CPU time is not the client's.
//! `relay-load bulk …` moves bytes through one tunnel and tells time, CPU seconds and memory as one line; `relay-load plan` runs
//! whatever a [`Plan`] says. `relay bench` is for people.

mod options;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;

use options::Options;
use relay_engine::config::CongestionControl;
use relay_engine::load::{
    Direction, Failure, Mode, Origin, Plan, Progress, Route, Transport, Work, failed, run, usage,
};
use serde_json::Value;

/// As in the package.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const HELP: &str = "usage: relay-load origin [--address IP:PORT]
       relay-load plan < PLAN.json
       relay-load bulk --proxy IP:PORT --mode h1|h1tls|h2|h2c|h3|tcp [--form connect|connect-tcp]
                       [--direction down|up] [--bytes 1e9] [--authority NAME[:PORT]] [--ca FILE] [--token TOKEN]
                       [--origin IP:PORT] [--pid RELAY] [--verify] [--json] [--timeout SECONDS] [--max-frame BYTES]
                       [--congestion-control cubic|bbr]

plan    does what the JSON document says, any kind of load in any shape (relay_engine::load::Plan); the result is JSON too.
origin  sends or takes bytes on loopback; prints its address.
bulk    without --origin, it starts one. Mode tcp connects to --proxy as it is: the origin itself, or a TCP proxy before it.";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let result = match command.as_deref() {
        Some("origin") => Options::parse(arguments).and_then(|it| origin(&it)),
        Some("plan") => Options::parse(arguments).and_then(|_| given()),
        Some("bulk") => Options::parse(arguments).and_then(|it| bulk(&it)),
        Some("--help" | "-h" | "help") => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => Err(usage(HELP)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("relay-load: {}", failure.message);
            ExitCode::from(if failure.usage { 2 } else { 1 })
        }
    }
}

/// Serves until the process is ended; the first line of output is the address.
fn origin(options: &Options) -> Result<(), Failure> {
    let address = options
        .get("address")?
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    println!("{}", Origin::start(address)?.address());
    loop {
        std::thread::park();
    }
}

/// An origin that was started for this run.
struct OwnOrigin {
    process: Child,
}

impl OwnOrigin {
    fn start() -> Result<(Self, SocketAddr), Failure> {
        let program = std::env::current_exe()?;
        let mut process = Command::new(program)
            .arg("origin")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let origin = Self { process };
        let address = line.trim().parse();
        Ok((
            origin,
            address.map_err(|_| failed("the origin did not start"))?,
        ))
    }
}

impl Drop for OwnOrigin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A run as standard input has it.
fn given() -> Result<(), Failure> {
    let plan = serde_json::from_reader(std::io::stdin().lock()).map_err(usage)?;
    println!(
        "{}",
        Value::Object(run(plan, &Arc::new(Progress::default()))?)
    );
    Ok(())
}

fn bulk(options: &Options) -> Result<(), Failure> {
    let (_own, origin) = match options.get("origin")? {
        Some(address) => (None, address),
        None => OwnOrigin::start().map(|(own, address)| (Some(own), address))?,
    };
    let mut report = run(plan(options, origin)?, &Arc::new(Progress::default()))?;
    // Here the mode is the transport, and what is asked for is the form.
    let http = report.remove("http").filter(|http| !http.is_null());
    let form = report.insert("mode".to_owned(), http.unwrap_or_else(|| "tcp".into()));
    report.insert("form".to_owned(), form.unwrap_or_default());
    if options.has("json") {
        println!("{}", Value::Object(report));
        return Ok(());
    }
    let number = |name: &str| match report.get(name).and_then(Value::as_f64) {
        Some(number) => format!("{number:.2}"),
        None => "-".to_owned(),
    };
    println!(
        "{} Gbit/s, relay {} s/GB, client {} s/GB{}",
        number("gbit_s"),
        number("relay_s_per_gb"),
        number("client_s_per_gb"),
        if options.has("verify") {
            ", verified"
        } else {
            ""
        },
    );
    Ok(())
}

fn plan(options: &Options, origin: SocketAddr) -> Result<Plan, Failure> {
    let proxy: Option<SocketAddr> = options.get("proxy")?;
    let http = match options.need::<String>("mode")?.as_str() {
        "h1" => Some(Transport::H1),
        "h1tls" => Some(Transport::H1tls),
        "h2" => Some(Transport::H2),
        "h2c" => Some(Transport::H2c),
        "h3" => Some(Transport::H3),
        "tcp" => None,
        other => {
            return Err(usage(format_args!(
                "--mode: {other} is not one of h1 h1tls h2 h2c h3 tcp"
            )));
        }
    };
    let mode = match (http, options.text("form").unwrap_or("connect-tcp")) {
        (None, _) => Mode::Direct,
        (_, "connect") => Mode::Connect,
        (_, "connect-tcp") => Mode::ConnectTcp,
        (_, other) => {
            return Err(usage(format_args!(
                "--form: {other} is neither connect nor connect-tcp"
            )));
        }
    };
    let direction = match options.text("direction").unwrap_or("down") {
        "down" => Direction::Down,
        "up" => Direction::Up,
        other => {
            return Err(usage(format_args!(
                "--direction: {other} is neither down nor up"
            )));
        }
    };
    let roots = if http.is_some_and(Transport::secure) {
        let file: String = options.need("ca")?;
        let pem = std::fs::read_to_string(&file);
        Some(pem.map_err(|error| failed(format_args!("{file}: {error}")))?)
    } else {
        None
    };
    let target = match http {
        None => proxy.unwrap_or(origin),
        Some(_) => origin,
    };
    // 1e9 is easier to type than to count.
    let bytes = options.get::<f64>("bytes")?.unwrap_or(1e9) as u64;
    Ok(Plan {
        work: Work::Bulk {
            direction,
            bytes,
            verify: options.has("verify"),
        },
        route: Route {
            mode,
            http,
            proxy,
            authority: options.text("authority").map(str::to_owned),
            target_host: target.ip().to_string(),
            target_port: target.port(),
            roots,
            resume: false,
            credentials: options.text("token").map(|token| format!("Bearer {token}")),
            template: None,
            profile: None,
            max_frame: options.get("max-frame")?,
            congestion_control: congestion_control(options)?,
        },
        connections: 1,
        streams: 1,
        threads: 1,
        timeout: options.get("timeout")?.unwrap_or(180.0),
        pids: options.get("pid")?.into_iter().collect(),
    })
}

/// How an HTTP/3 client sends.
fn congestion_control(options: &Options) -> Result<CongestionControl, Failure> {
    match options.text("congestion-control") {
        None | Some("cubic") => Ok(CongestionControl::Cubic),
        Some("bbr") => Ok(CongestionControl::Bbr),
        Some(other) => Err(usage(format_args!(
            "--congestion-control: {other} is neither cubic nor bbr"
        ))),
    }
}
