#![allow(clippy::unwrap_used, clippy::expect_used)]
use serde_json::json;

use super::*;

fn plan(work: Value, more: Value) -> Plan {
    let origin = Origin::start(([127, 0, 0, 1], 0).into()).unwrap().address();
    let mut plan = json!({
        "work": work,
        "route": {
            "mode": "direct", "http": null, "proxy": null,
            "target_host": "127.0.0.1", "target_port": origin.port(),
        },
        "connections": 3, "streams": 2, "threads": 2, "timeout": 20.0, "pids": [std::process::id()],
    });
    for (name, value) in more.as_object().unwrap() {
        plan[name] = value.clone();
    }
    serde_json::from_value(plan).unwrap()
}

fn result(work: Value) -> Map<String, Value> {
    run(plan(work, json!({})), &Arc::default()).unwrap()
}

#[test]
fn bytes_arrive_both_ways_with_their_hash() {
    for direction in ["down", "up"] {
        let work =
            json!({"kind": "bulk", "direction": direction, "bytes": 3_000_001, "verify": true});
        let result = result(work);
        // Each of six tunnels has the same share.
        assert_eq!(result["bytes"], 3_000_006);
        assert_eq!(result["threads"], 2);
        assert!(result["client_cpu_s"].as_f64().unwrap() > 0.0);
        assert!(result["relay_cpu_s"].as_f64().unwrap() > 0.0);
        assert!(result["relay_rss_peak"].as_u64() >= result["relay_rss_start"].as_u64());
    }
}

#[test]
fn tunnels_are_opened_as_long_as_was_asked_for() {
    let result = result(json!({"kind": "rate", "seconds": 0.3}));
    assert!(result["opened"].as_u64().unwrap() >= 6);
    assert!(result["seconds"].as_f64().unwrap() >= 0.3);
    let times = &result["latency_us"];
    assert!(times["p50"].as_f64() <= times["p99_9"].as_f64());
}

#[test]
fn every_message_of_the_timetable_is_timed() {
    let work = json!({"kind": "latency", "seconds": 0.5, "rate": 2000.0, "size": 100});
    let result = result(work);
    // Four tunnels on one thread and two on the other share a thousand.
    let messages = result["messages"].as_u64().unwrap();
    assert!((998..=1000).contains(&messages), "{messages}");
    assert_eq!(result["unanswered"], 0);
    assert!(result["seconds"].as_f64().unwrap() >= 0.49);
}

/// An origin that answers at first and then stalls: all messages that fall due meanwhile are late, not only the one that waits.
#[test]
fn a_stall_counts_for_all_that_was_due() {
    use std::io::{Read, Write};
    use std::time::Duration;

    const STALL: Duration = Duration::from_millis(300);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let origin = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut block = [0; 4096];
        assert_eq!(stream.read(&mut block[..1]).unwrap(), 1);
        let mut stalled = false;
        let mut seen = 0;
        loop {
            let size = stream.read(&mut block).unwrap();
            if size == 0 {
                return;
            }
            seen += size;
            if seen > 50 && !stalled {
                stalled = true;
                std::thread::sleep(STALL);
            }
            if stream.write_all(&block[..size]).is_err() {
                return;
            }
        }
    });
    let route = json!({
        "mode": "direct", "http": null, "proxy": null, "target_host": "127.0.0.1", "target_port": port,
    });
    let work = json!({"kind": "latency", "seconds": 0.6, "rate": 500.0, "size": 1});
    let more = json!({"route": route, "connections": 1, "streams": 1, "threads": 1});
    let result = run(plan(work, more), &Arc::default()).unwrap();
    origin.join().unwrap();
    assert_eq!(result["unanswered"], 0);
    // Half of the run fell into the stall: a client that waited for answers would show one slow message of 300.
    let p90 = result["latency_us"]["p90"].as_f64().unwrap();
    assert!(p90 >= 100_000.0, "{p90}");
}

#[test]
fn idle_tunnels_are_counted() {
    let result = result(json!({"kind": "idle", "hold": 0.0}));
    assert_eq!(result["opened"], 6);
    assert!(result["relay_pss_end"].as_u64().unwrap() > 0);
    assert!(result["pss_per_tunnel"].is_number());
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let bulk = || json!({"kind": "bulk", "direction": "up", "bytes": 10});
    let unreachable = json!({
        "mode": "direct", "http": null, "proxy": null, "target_host": "127.0.0.1", "target_port": 1,
    });
    let no_proxy = json!({
        "mode": "connect", "http": "h2", "proxy": null, "target_host": "127.0.0.1", "target_port": 1,
    });
    let over_udp = json!({
        "mode": "connect-udp", "http": "h2", "proxy": null, "target_host": "127.0.0.1", "target_port": 1,
    });
    let small_frames = json!({
        "mode": "direct", "http": null, "proxy": null, "target_host": "127.0.0.1", "target_port": 1,
        "max_frame": 1000,
    });
    for (work, more, fault, says) in [
        (bulk(), json!({"connections": 0}), true, "at least 1"),
        (
            json!({"kind": "rate", "seconds": 0.0}),
            json!({}),
            true,
            "duration",
        ),
        (
            bulk(),
            json!({"route": no_proxy}),
            true,
            "gateway is missing",
        ),
        (
            bulk(),
            json!({"route": unreachable}),
            false,
            "127.0.0.1:1: ",
        ),
        (
            bulk(),
            json!({"route": small_frames}),
            true,
            "largest frame",
        ),
        (bulk(), json!({"pids": [-5]}), false, "process -5"),
        (
            json!({"kind": "udp", "direction": "up", "seconds": 1.0, "rate": 10.0, "size": 63}),
            json!({}),
            true,
            "64 to 65507 bytes",
        ),
        (
            bulk(),
            json!({"route": over_udp}),
            true,
            "carries datagrams only",
        ),
        (
            json!({"kind": "rate", "seconds": 60.0}),
            json!({"timeout": 0.2}),
            false,
            "not done after 0.2 s",
        ),
    ] {
        let failure = run(plan(work, more), &Arc::default()).unwrap_err();
        assert_eq!(failure.usage, fault, "{failure:?}");
        assert!(failure.message.contains(says), "{failure:?}");
        assert_eq!(failure.message.lines().count(), 1);
    }
}

#[test]
fn a_run_can_be_stopped() {
    let progress = Arc::new(Progress::default());
    progress.stop();
    let failure = run(
        plan(json!({"kind": "rate", "seconds": 60.0}), json!({})),
        &progress,
    );
    assert_eq!(failure.unwrap_err().message, "interrupted");
}

/// Whatever the direction, all that was offered is accounted for.
#[test]
fn datagrams_are_counted_in_every_direction() {
    for direction in ["up", "down", "echo"] {
        let work = json!({
            "kind": "udp", "direction": direction, "seconds": 0.5, "rate": 4000.0, "size": 1200,
        });
        let result = result(work);
        let number = |name: &str| result[name].as_u64().unwrap();
        // Six tunnels on two threads share two thousand.
        assert!((1998..=2000).contains(&number("offered")), "{direction}");
        assert!(number("sent") <= number("offered"), "{direction}");
        assert!(number("sent") >= 1000, "{direction}: {result:?}");
        assert_eq!(number("received") + number("lost"), number("sent"));
        assert_eq!((number("reordered"), number("duplicates")), (0, 0));
        assert!(result["relay_us_per_datagram"].as_f64().unwrap() > 0.0);
        assert!(number("received") >= 1000, "{direction}: {result:?}");
        assert_eq!(direction == "echo", result.contains_key("latency_us"));
    }
}

/// A target that takes every third datagram away is found out exactly.
#[test]
fn what_is_lost_is_counted_exactly() {
    use std::net::UdpSocket;

    let origin = Origin::start(([127, 0, 0, 1], 0).into()).unwrap().address();
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.connect(origin).unwrap();
    let port = near.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut block = [0; 2048];
        let mut data = 0;
        while let Ok((length, from)) = near.recv_from(&mut block) {
            let counted = block[0] == b'k';
            data += usize::from(counted);
            if counted && data % 3 == 0 {
                continue;
            }
            far.send(&block[..length]).unwrap();
            if !counted {
                let length = far.recv(&mut block).unwrap();
                near.send_to(&block[..length], from).unwrap();
            }
        }
    });
    let route = json!({
        "mode": "direct", "http": null, "proxy": null, "target_host": "127.0.0.1", "target_port": port,
    });
    let work =
        json!({"kind": "udp", "direction": "up", "seconds": 0.3, "rate": 1000.0, "size": 100});
    let more = json!({"route": route, "connections": 1, "streams": 1, "threads": 1});
    let result = run(plan(work, more), &Arc::default()).unwrap();
    let sent = result["sent"].as_u64().unwrap();
    assert!(sent >= 200, "{result:?}");
    assert_eq!(result["lost"].as_u64().unwrap(), sent / 3);
}
