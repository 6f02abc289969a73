//! The far end of a tunnel: sends as many bytes as it is asked for, or takes bytes and tells what it got.
//!
//! A connection begins with one byte. `s`, a length (64 bits) and a switch: that many bytes and FIN come back. `k` and a switch:
//! everything up to FIN is taken, then its length (64 bits) and SHA-256 come back. The switch (0 or 1) asks for
//! [`Pattern`] and hashing; without it the bytes mean nothing and the hash is zero. Numbers are big-endian.

use std::io;
use std::net::SocketAddr;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::options::{Failure, Options};
use crate::pattern::Pattern;

const BLOCK: usize = 256 << 10;

/// Serves until the process is ended; the first line of output is the address.
pub fn run(options: &Options) -> Result<(), Failure> {
    let address = options
        .get("address")?
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("{}", listener.local_addr()?);
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                if let Err(error) = serve(stream).await {
                    eprintln!("relay-load origin: {error}");
                }
            });
        }
    })
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
            let verify = stream.read_u8().await? == 1;
            sink(&mut stream, verify).await?;
        }
        _ => {
            return Err(io::Error::other(
                "a connection began with an unknown command",
            ));
        }
    }
    stream.shutdown().await?;
    // The other side's FIN: a close with bytes unread would be a RST.
    while stream.read(&mut [0; 64]).await? > 0 {}
    Ok(())
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

async fn sink(stream: &mut TcpStream, verify: bool) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    let mut hash = Sha256::new();
    let mut length = 0u64;
    loop {
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
