use bytes::Bytes;
use tokio::net::UdpSocket;

use super::*;

/// What HTTP/3 fits into one QUIC datagram of the initial MTU and what it does not, and the longest that IPv4 carries.
const SIZES: [usize; 5] = [0, 1, 1200, 1400, 65_507];

/// Runs `cell` with each transport, one after another, against a target socket.
fn each_transport(name: &str, cell: impl AsyncFn(&Client, DatagramTunnel, UdpSocket, Http)) {
    let relay = Relay::start(name);
    on_one_thread(async {
        for (http, tls) in TRANSPORTS {
            let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let port = target.local_addr().unwrap().port();
            let client = Client::connect(relay.proxy(tls), http).await.unwrap();
            let form = Form::connect_udp().unwrap();
            let tunnel = client.open_datagrams(&form, "127.0.0.1", port).await;
            cell(&client, tunnel.unwrap(), target, http).await;
        }
    });
}

async fn receive(tunnel: &mut DatagramTunnel, count: usize) -> Vec<Bytes> {
    let mut got = Vec::new();
    while got.len() < count {
        assert!(tunnel.receiver.recv(&mut got).await.unwrap());
    }
    got
}

/// Until the path's MTU is found, QUIC datagrams are short.
async fn settle(tunnel: &mut DatagramTunnel, target: &UdpSocket, size: usize) {
    let mut buffer = [0; 2048];
    while tunnel.sender.longest() < size {
        tunnel.sender.send(&[b"ping"]).await.unwrap();
        let (length, from) = target.recv_from(&mut buffer).await.unwrap();
        target.send_to(&buffer[..length], from).await.unwrap();
        receive(tunnel, 1).await;
    }
}

//= rfc9298 §5 context-0-payload
#[test]
fn payloads_of_all_sizes_come_and_go() {
    each_transport("udp-echo", async |_, mut tunnel, target, http| {
        assert!(tunnel.fields.contains_key("proxy-status"));
        settle(&mut tunnel, &target, 1400).await;
        let longest = tunnel.sender.longest();
        let payloads: Vec<Vec<u8>> = SIZES
            .iter()
            .map(|size| (0..*size).map(|n| (n * 7 + size) as u8).collect())
            .collect();
        let fitting: Vec<_> = payloads.iter().filter(|it| it.len() <= longest).collect();
        let oversize = payloads.len() - fitting.len();
        assert_eq!(oversize, usize::from(http == Http::H3));
        let sent = tunnel.sender.send(&payloads).await.unwrap();
        let expected = Sent {
            sent: fitting.len(),
            oversize,
            crowded_out: 0,
        };
        assert_eq!(sent, expected);
        let mut buffer = vec![0; 1 << 16];
        for payload in &fitting {
            let (length, from) = target.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], payload[..]);
            assert_eq!(
                target.send_to(&buffer[..length], from).await.unwrap(),
                length
            );
        }
        assert_eq!(receive(&mut tunnel, fitting.len()).await, fitting[..]);
        assert_eq!(tunnel.receiver.dropped(), 0);
        // A payload that no UDP packet holds.
        let sent = tunnel.sender.send(&[vec![0; 65_528]]).await.unwrap();
        assert_eq!((sent.sent, sent.oversize), (0, 1));
    });
}

//= rfc9297 §2.1.1 setting-before-frames
#[test]
fn without_quic_datagrams_payloads_go_in_capsules() {
    let relay = Relay::start("udp-capsules");
    on_one_thread(async {
        let client = Client::connect(relay.proxy(true), Http::H3).await.unwrap();
        let Connection::H3(connection) = &client.connection else {
            panic!("not HTTP/3");
        };
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = target.local_addr().unwrap().port();
        let form = Form::connect_udp().unwrap();
        let tunnel = client.open_datagrams(&form, "127.0.0.1", port).await;
        let mut tunnel = tunnel.unwrap();
        connection.forbid_datagrams();
        let payload = vec![3; 60_000];
        assert_eq!(tunnel.sender.send(&[&payload]).await.unwrap().sent, 1);
        let mut buffer = vec![0; 1 << 16];
        let (length, _) = target.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..length], payload);
    });
}

#[test]
fn batches_keep_their_order() {
    const COUNT: u32 = 200;
    each_transport("udp-batch", async |_, mut tunnel, target, _| {
        let payloads: Vec<_> = (0..COUNT).map(|n| [n.to_be_bytes(); 50].concat()).collect();
        let sent = tunnel.sender.send(&payloads).await.unwrap();
        assert_eq!(sent.sent, payloads.len());
        let mut buffer = [0; 2048];
        for payload in &payloads {
            let (length, from) = target.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], payload[..]);
            target.send_to(&buffer[..length], from).await.unwrap();
        }
        assert_eq!(receive(&mut tunnel, payloads.len()).await, payloads);
    });
}

//= rfc9297 §2.1 datagram-send-side-open
#[test]
fn a_close_is_answered_and_the_target_is_left() {
    each_transport("udp-close", async |client, mut tunnel, target, _| {
        tunnel.sender.send(&[b"x"]).await.unwrap();
        let (_, from) = target.recv_from(&mut [0; 8]).await.unwrap();
        tunnel.close().await.unwrap();
        assert_eq!(tunnel.sender.send(&[b"y"]).await, Err(Cut::Reset));
        // Nobody is there any more, and a further tunnel works.
        target.connect(from).await.unwrap();
        target.send(b"late").await.unwrap();
        let error = target.recv(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = target.local_addr().unwrap().port();
        let form = Form::connect_udp().unwrap();
        let tunnel = client.open_datagrams(&form, "127.0.0.1", port).await;
        let mut tunnel = tunnel.unwrap();
        tunnel.sender.send(&[b"again"]).await.unwrap();
        assert_eq!(target.recv_from(&mut [0; 8]).await.unwrap().0, 5);
    });
}

#[test]
fn datagrams_reach_the_tunnel_that_they_are_for() {
    let relay = Relay::start("udp-many");
    on_one_thread(async {
        for http in [Http::H2, Http::H3] {
            let client = Client::connect(relay.proxy(true), http).await.unwrap();
            let form = Form::connect_udp().unwrap();
            let mut pairs = Vec::new();
            for _ in 0..20 {
                let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                let port = target.local_addr().unwrap().port();
                let tunnel = client.open_datagrams(&form, "127.0.0.1", port).await;
                pairs.push((tunnel.unwrap(), target));
            }
            for (number, (tunnel, target)) in pairs.iter_mut().enumerate() {
                tunnel.sender.send(&[[number as u8]]).await.unwrap();
                let mut byte = [0];
                let (_, from) = target.recv_from(&mut byte).await.unwrap();
                target.send_to(&[byte[0] + 100], from).await.unwrap();
            }
            for (number, (tunnel, _)) in pairs.iter_mut().enumerate() {
                assert_eq!(receive(tunnel, 1).await, [vec![number as u8 + 100]]);
            }
        }
    });
}

#[test]
fn a_form_opens_the_kind_of_tunnel_it_is_for() {
    let relay = Relay::start("udp-usage");
    on_one_thread(async {
        let client = Client::connect(relay.proxy(false), Http::H2).await.unwrap();
        let form = Form::connect_udp().unwrap();
        let error = client.open(&form, "127.0.0.1", 9).await.unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
        let error = client.open_datagrams(&Form::Connect, "127.0.0.1", 9).await;
        assert!(matches!(error, Err(Error::Usage(_))));
        let Err(Error::Refused(answer)) = client.open_datagrams(&form, "127.0.0.1", 25).await
        else {
            panic!("a denied port opened a tunnel");
        };
        assert_eq!(answer.status, 403);
    });
}

/// The proxy hears at once that nobody uses the connection any more.
#[test]
fn a_connection_is_closed_with_its_last_tunnel() {
    let relay = Relay::start("udp-drop");
    on_one_thread(async {
        let open = || relay.engine.stats().connections_open;
        let client = Client::connect(relay.proxy(true), Http::H3).await.unwrap();
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = target.local_addr().unwrap().port();
        let form = Form::connect_udp().unwrap();
        let tunnel = client.open_datagrams(&form, "127.0.0.1", port).await;
        let mut tunnel = tunnel.unwrap();
        drop(client);
        tunnel.sender.send(&[b"still"]).await.unwrap();
        target.recv_from(&mut [0; 8]).await.unwrap();
        assert_eq!(open(), 1);
        drop(tunnel);
        while open() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}
