//! One transfer through one tunnel.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use relay_engine::client::{Client, Form, Proxy, Tunnel, trusting};
use relay_engine::config::Http;
use relay_engine::pool::{Buffer, PAYLOAD};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::LocalSet;

use crate::options::{Failure, Options, failed, usage};
use crate::pattern::Pattern;
use crate::usage::{cpu_seconds, forget_peak, resident};

/// How long the relay may take to settle its accounts after the last byte.
const SETTLE: Duration = Duration::from_millis(30);

/// Runs one transfer and prints what it took.
pub fn run(options: &Options) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let limit = Duration::from_secs_f64(options.get("timeout")?.unwrap_or(180.0));
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(limit, transfer(options))
            .await
            .map_err(|_| failed(format_args!("not done after {} s", limit.as_secs_f64())))?
    })
}

async fn transfer(options: &Options) -> Result<(), Failure> {
    let plan = Plan::new(options)?;
    let own = match plan.origin {
        Some(_) => None,
        None => Some(OwnOrigin::start()?),
    };
    let origin = plan.origin.or(own.as_ref().map(|own| own.address));
    let origin = origin.ok_or_else(|| usage("--origin is missing"))?;
    let expected = (plan.verify && !plan.up).then(|| Pattern::digest(plan.bytes));
    let relay = plan.pid.as_deref();
    if let Some(pid) = relay {
        forget_peak(pid);
    }
    let memory = relay.map(resident).transpose()?;
    let before = (relay.map(cpu_seconds).transpose()?, cpu_seconds("self")?);
    let started = Instant::now();
    // The client lives until the tunnel is closed: with it goes the connection.
    let (path, client) = open(options, &plan, origin).await?;
    let opened = started.elapsed();
    if plan.up {
        up(path, &plan).await?;
    } else {
        down(path, &plan, expected).await?;
    }
    let seconds = (started.elapsed() - opened).as_secs_f64();
    drop(client);
    tokio::time::sleep(SETTLE).await;
    let client_cpu = cpu_seconds("self")? - before.1;
    let relay_cpu = match (relay, before.0) {
        (Some(pid), Some(before)) => Some(cpu_seconds(pid)? - before),
        _ => None,
    };
    let memory_after = relay.map(resident).transpose()?;
    let gigabytes = plan.bytes as f64 / 1e9;
    let gbit_s = gigabytes * 8.0 / seconds;
    if options.has("json") {
        let line = json!({
            "mode": plan.mode,
            "form": plan.form,
            "direction": if plan.up { "up" } else { "down" },
            "bytes": plan.bytes,
            "verified": plan.verify,
            "open_seconds": opened.as_secs_f64(),
            "seconds": seconds,
            "gbit_s": gbit_s,
            "client_cpu_s": client_cpu,
            "relay_cpu_s": relay_cpu,
            "relay_rss_start": memory.map(|(now, _)| now),
            "relay_rss_end": memory_after.map(|(now, _)| now),
            "relay_rss_peak": memory_after.map(|(_, peak)| peak),
        });
        println!("{line}");
    } else {
        let relay_cpu =
            relay_cpu.map_or_else(|| "-".to_owned(), |cpu| format!("{:.2}", cpu / gigabytes));
        println!(
            "{gbit_s:.2} Gbit/s, relay {relay_cpu} s/GB, client {:.2} s/GB{}",
            client_cpu / gigabytes,
            if plan.verify { ", verified" } else { "" },
        );
    }
    Ok(())
}

struct Plan {
    mode: String,
    form: String,
    up: bool,
    bytes: u64,
    verify: bool,
    origin: Option<SocketAddr>,
    pid: Option<String>,
}

impl Plan {
    fn new(options: &Options) -> Result<Self, Failure> {
        let bytes: f64 = options.get("bytes")?.unwrap_or(1e9);
        Ok(Self {
            mode: options.need("mode")?,
            form: options
                .get("form")?
                .unwrap_or_else(|| "connect-tcp".to_owned()),
            up: match options.text("direction").unwrap_or("down") {
                "down" => false,
                "up" => true,
                other => {
                    return Err(usage(format_args!(
                        "--direction: {other} is neither down nor up"
                    )));
                }
            },
            // 1e9 is easier to type than to count.
            bytes: bytes as u64,
            verify: options.has("verify"),
            origin: options.get("origin")?,
            pid: options.text("pid").map(str::to_owned),
        })
    }

    fn http(&self) -> Result<(Http, bool), Failure> {
        match self.mode.as_str() {
            "h1" => Ok((Http::H1, false)),
            "h1tls" => Ok((Http::H1, true)),
            "h2" => Ok((Http::H2, true)),
            "h2c" => Ok((Http::H2, false)),
            "h3" => Ok((Http::H3, true)),
            other => Err(usage(format_args!(
                "--mode: {other} is not one of h1 h1tls h2 h2c h3 tcp"
            ))),
        }
    }
}

/// An origin that was started for this run.
struct OwnOrigin {
    process: Child,
    address: SocketAddr,
}

impl OwnOrigin {
    fn start() -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let mut process = Command::new(program)
            .arg("origin")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let address = line.trim().parse();
        let mut origin = Self {
            process,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        origin.address = address.map_err(|_| failed("the origin did not start"))?;
        Ok(origin)
    }
}

impl Drop for OwnOrigin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Two directions towards the origin.
enum Path {
    Tunnel(Box<Tunnel>),
    Tcp(OwnedReadHalf, OwnedWriteHalf, Vec<u8>),
}

async fn open(
    options: &Options,
    plan: &Plan,
    origin: SocketAddr,
) -> Result<(Path, Option<Client>), Failure> {
    let address: Option<SocketAddr> = options.get("proxy")?;
    if plan.mode == "tcp" {
        let stream = TcpStream::connect(address.unwrap_or(origin)).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        return Ok((Path::Tcp(read, write, vec![0; PAYLOAD]), None));
    }
    let (http, secure) = plan.http()?;
    let address = address.ok_or_else(|| usage("--proxy is missing"))?;
    let tls = if secure {
        let file: String = options.need("ca")?;
        let pem = std::fs::read(&file).map_err(|error| failed(format_args!("{file}: {error}")))?;
        Some(trusting(&pem).map_err(|fault| failed(format_args!("{file}: {fault}")))?)
    } else {
        None
    };
    let credentials = options
        .text("token")
        .map(|token| HeaderValue::try_from(format!("Bearer {token}")))
        .transpose()?;
    let proxy = Proxy {
        address,
        authority: options
            .text("authority")
            .map_or_else(|| address.to_string(), str::to_owned),
        tls,
        credentials,
    };
    let form = match plan.form.as_str() {
        "connect" => Form::Connect,
        "connect-tcp" => Form::connect_tcp()?,
        other => {
            return Err(usage(format_args!(
                "--form: {other} is neither connect nor connect-tcp"
            )));
        }
    };
    let client = Client::connect(proxy, http).await?;
    let tunnel = client
        .open(&form, &origin.ip().to_string(), origin.port())
        .await?;
    Ok((Path::Tunnel(Box::new(tunnel)), Some(client)))
}

impl Path {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Tunnel(tunnel) => tunnel.sender.send(bytes).await?,
            Self::Tcp(_, write, _) => write.write_all(bytes).await?,
        }
        Ok(())
    }

    /// Sends up to `rest` bytes, filled by `fill`; returns how many.
    async fn send_some(&mut self, rest: u64, fill: impl FnOnce(&mut [u8])) -> Result<u64, Failure> {
        let rest = usize::try_from(rest).unwrap_or(usize::MAX);
        let size = match self {
            Self::Tunnel(tunnel) => {
                let size = tunnel.sender.room().await?.min(rest);
                let mut buffer = Buffer::take();
                fill(buffer.payload_mut(size));
                tunnel.sender.send_buffer(buffer, size).await?;
                size
            }
            Self::Tcp(_, write, block) => {
                let size = block.len().min(rest);
                fill(&mut block[..size]);
                write.write_all(&block[..size]).await?;
                size
            }
        };
        Ok(size as u64)
    }

    async fn finish(&mut self) -> Result<(), Failure> {
        match self {
            Self::Tunnel(tunnel) => tunnel.sender.finish().await?,
            Self::Tcp(_, write, _) => write.shutdown().await?,
        }
        Ok(())
    }

    /// The next bytes; how many, after `take` saw them. 0 = FIN.
    async fn recv(&mut self, take: impl FnOnce(&[u8])) -> Result<u64, Failure> {
        let size = match self {
            Self::Tunnel(tunnel) => match tunnel.receiver.recv().await? {
                Some(bytes) => {
                    let bytes: Bytes = bytes;
                    take(&bytes);
                    bytes.len()
                }
                None => 0,
            },
            Self::Tcp(read, _, block) => {
                let size = read.read(block).await?;
                take(&block[..size]);
                size
            }
        };
        Ok(size as u64)
    }

    /// Ends both directions in good order.
    async fn close(mut self) -> Result<(), Failure> {
        match &mut self {
            Self::Tunnel(tunnel) => {
                tunnel.sender.close().await?;
                tunnel.receiver.end().await?;
            }
            Self::Tcp(..) => {}
        }
        Ok(())
    }
}

async fn down(mut path: Path, plan: &Plan, expected: Option<[u8; 32]>) -> Result<(), Failure> {
    let mut order = vec![b's'];
    order.extend_from_slice(&plan.bytes.to_be_bytes());
    order.push(u8::from(plan.verify));
    path.send(&order).await?;
    let mut hash = Sha256::new();
    let mut received = 0;
    loop {
        let size = path
            .recv(|bytes| {
                if plan.verify {
                    hash.update(bytes);
                }
            })
            .await?;
        if size == 0 {
            break;
        }
        received += size;
    }
    if received != plan.bytes {
        return Err(failed(format_args!(
            "{received} bytes arrived instead of {}",
            plan.bytes
        )));
    }
    if expected.is_some_and(|expected| expected != <[u8; 32]>::from(hash.finalize())) {
        return Err(failed(
            "the bytes that arrived are not those that were sent",
        ));
    }
    path.finish().await?;
    path.close().await
}

async fn up(mut path: Path, plan: &Plan) -> Result<(), Failure> {
    path.send(&[b'k', u8::from(plan.verify)]).await?;
    let mut pattern = Pattern::new();
    let mut hash = Sha256::new();
    let mut rest = plan.bytes;
    while rest > 0 {
        rest -= path
            .send_some(rest, |bytes| {
                if plan.verify {
                    pattern.fill(bytes);
                    hash.update(bytes);
                }
            })
            .await?;
    }
    path.finish().await?;
    let mut answer = Vec::new();
    while within(path.recv(|bytes| answer.extend_from_slice(bytes))).await? > 0 {}
    let mut due = plan.bytes.to_be_bytes().to_vec();
    due.extend_from_slice(&if plan.verify {
        hash.finalize().into()
    } else {
        [0; 32]
    });
    if answer != due {
        return Err(failed("the origin did not take the bytes that were sent"));
    }
    path.close().await
}

/// The answer follows the last byte closely, or never comes.
async fn within<T>(answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(Duration::from_secs(60), answer)
        .await
        .unwrap_or_else(|_| Err(failed("the origin does not answer")))
}
