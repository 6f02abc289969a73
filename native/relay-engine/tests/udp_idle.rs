//! A connect-udp tunnel that nothing passes through ends, and its request stream with it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use relay_engine::{Config, Engine};
use serde_json::json;

const IDLE: f64 = 0.4;

//= rfc9298 §3.1 idle-closes-stream
#[test]
fn silence_closes_the_stream() {
    let config: Config = serde_json::from_value(json!({
        "workers": 1,
        "listeners": [{
            "address": "127.0.0.1:0", "http": ["h1"], "client_ca": null, "client_auth_required": false,
            "certificate": null, "private_key": null,
        }],
        "auth": {"required": false, "realm": "relay", "users": [], "tokens": []},
        "protocols": {"connect": false, "templated": [{
            "protocol": "connect-udp", "template": "/udp/{target_host}/{target_port}/",
            "profiles": [{"token": "connect-udp", "data": 0, "final_data": 0}],
        }]},
        "egress": {"dial_timeout": 5.0, "source_addresses": [], "nameservers": []},
        "policy": {
            "allow_networks": ["127.0.0.0/8"], "deny_networks": [], "deny_ports": [], "rules": [],
            "hook": false, "hook_timeout": 1.0, "hook_cache": 0.0,
        },
        "quic": {"congestion_control": "cubic"},
        "limits": {
            "header_timeout": 5.0, "idle_timeout": 60.0, "idle_timeout_datagram": IDLE, "drain_timeout": 1.0,
            "max_connections": 10, "max_tunnels_per_principal": 10, "buffer_per_tunnel": 1 << 20,
            "memory": 1 << 30,
        },
        "log": {"access": ""},
    }))
    .unwrap();
    let engine = Engine::start(config, None).unwrap();
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = target.local_addr().unwrap().port();
    let mut client = TcpStream::connect(engine.addresses()[0].address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(
        client,
        "GET /udp/127.0.0.1/{port}/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\n\r\n"
    )
    .unwrap();
    // A datagram in the middle of the time begins it anew.
    std::thread::sleep(Duration::from_secs_f64(IDLE / 2.0));
    client.write_all(&[0, 3, 0, b'h', b'i']).unwrap();
    let last = Instant::now();
    let mut hello = [0; 10];
    target
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    assert_eq!(target.recv(&mut hello).unwrap(), 2);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    assert!(answer.ends_with(b"\r\n\r\n"));
    assert!(
        last.elapsed() >= Duration::from_secs_f64(IDLE * 0.7),
        "{:?}",
        last.elapsed()
    );
    engine.drain(Duration::ZERO);
}
