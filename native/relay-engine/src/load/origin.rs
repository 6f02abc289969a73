//! The far end of a tunnel: sends as many bytes as it is asked for, takes bytes and tells what it got, or sends back what comes.
//!
//! A connection begins with one byte. `s`, a length (64 bits) and a switch: that many bytes come back. `k`, a length and a
//! switch: that many bytes are taken, or fewer up to FIN, then their number (64 bits) and SHA-256 come back. The switch (0 or 1) asks for
//! [`Pattern`] and hashing; without it the bytes mean nothing and the hash is zero. `e`: everything that follows comes back, up to
//! FIN. The origin's FIN follows the client's. Numbers are big-endian.
//!
//! Datagrams are served on the UDP port of the same number; [`datagrams`](super::datagrams) says how.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::datagrams::Socket;
use super::pattern::Pattern;
use super::udp_origin;
use super::usage::raise_descriptors;

const BLOCK: usize = 256 << 10;
/// Echoes are for small messages, and there may be thousands of them.
const ECHO: usize = 8 << 10;
/// Connections that wait to be accepted: a burst of them is what some loads are about.
const BACKLOG: i32 = 4096;
/// Ports that are tried.
const ATTEMPTS: usize = 16;

/// An origin that serves on a thread of its own until the process ends.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
}

impl Origin {
    /// Listens and serves; port 0 = any free one.
    ///
    /// # Errors
    /// What the system says, e.g. that the port is taken.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        raise_descriptors();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (listener, datagrams) = runtime.block_on(async { bind(address) })?;
        let address = listener.local_addr()?;
        thread::Builder::new()
            .name("origin".into())
            .spawn(move || {
                runtime.block_on(async {
                    let serve = async {
                        if let Err(error) = udp_origin::serve(datagrams).await {
                            tracing::error!("origin: {error}");
                        }
                    };
                    tokio::join!(accept(listener), serve)
                })
            })?;
        Ok(Self { address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Sockets for connections and for datagrams on one port.
fn bind(address: SocketAddr) -> io::Result<(TcpListener, Socket)> {
    let mut attempts = 0;
    loop {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM.nonblocking(),
            None,
        )?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        match Socket::bind(listener.local_addr()?) {
            Ok(datagrams) => return Ok((listener, datagrams)),
            // A port that is free for the one need not be for the other.
            Err(_) if address.port() == 0 && attempts < ATTEMPTS => attempts += 1,
            Err(error) => return Err(error),
        }
    }
}

async fn accept(listener: TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("origin: {error}");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    if let Err(error) = serve(stream).await {
                        tracing::debug!("origin: {error}");
                    }
                });
            }
            Err(error) => {
                // Too few descriptors, most likely: others will end.
                tracing::warn!("origin: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut command = [0];
    if stream.read(&mut command).await? == 0 {
        // Somebody only looked whether there is an origin.
        return Ok(());
    }
    match command[0] {
        b's' => {
            let length = stream.read_u64().await?;
            let verify = stream.read_u8().await? == 1;
            source(&mut stream, length, verify).await?;
        }
        b'k' => {
            let length = stream.read_u64().await?;
            let verify = stream.read_u8().await? == 1;
            sink(&mut stream, length, verify).await?;
        }
        b'e' => echo(&mut stream).await?,
        _ => {
            return Err(io::Error::other(
                "a connection began with an unknown command",
            ));
        }
    }
    // FIN follows FIN: some gateways reset a tunnel that only one side has ended, with bytes still on their way.
    while stream.read(&mut [0; 64]).await? > 0 {}
    stream.shutdown().await
}

async fn source(stream: &mut TcpStream, length: u64, verify: bool) -> io::Result<()> {
    let mut pattern = Pattern::new();
    let mut block = vec![0; BLOCK];
    pattern.fill(&mut block);
    let mut fresh = true;
    let mut rest = length;
    while rest > 0 {
        let size = usize::try_from(rest).unwrap_or(usize::MAX).min(BLOCK);
        if verify && !std::mem::take(&mut fresh) {
            pattern.fill(&mut block[..size]);
        }
        stream.write_all(&block[..size]).await?;
        rest -= size as u64;
    }
    Ok(())
}

async fn sink(stream: &mut TcpStream, due: u64, verify: bool) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut hash = Sha256::new();
    let mut length = 0u64;
    while length < due {
        match stream.read(&mut block).await? {
            0 => break,
            size => {
                length += size as u64;
                if verify {
                    hash.update(&block[..size]);
                }
            }
        }
    }
    let hash: [u8; 32] = if verify {
        hash.finalize().into()
    } else {
        [0; 32]
    };
    stream
        .write_all(&[&length.to_be_bytes()[..], &hash].concat())
        .await
}

async fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut block = vec![0; ECHO];
    loop {
        match stream.read(&mut block).await? {
            0 => return Ok(()),
            size => stream.write_all(&block[..size]).await?,
        }
    }
}
