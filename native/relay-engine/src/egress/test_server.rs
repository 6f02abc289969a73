//! A name server for tests, on a random UDP port of the loopback.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// What the server does with a question.
pub(crate) enum Answer {
    Addresses(Vec<IpAddr>),
    Code(ResponseCode),
    Silence,
}

pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    /// Names and types asked so far.
    pub(crate) asked: Rc<RefCell<Vec<(String, RecordType)>>>,
    task: JoinHandle<()>,
}

impl NameServer {
    /// Must run inside a `LocalSet`.
    pub(crate) async fn start(answer: impl Fn(&str, RecordType) -> Answer + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&asked);
        let task = tokio::task::spawn_local(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let query = question.queries[0].clone();
                let name = query.name().to_ascii();
                seen.borrow_mut().push((name.clone(), query.query_type()));
                let mut response =
                    Message::response(question.metadata.id, question.metadata.op_code);
                response.metadata.recursion_available = true;
                response.add_query(query.clone());
                match answer(&name, query.query_type()) {
                    Answer::Silence => continue,
                    Answer::Code(code) => response.metadata.response_code = code,
                    Answer::Addresses(addresses) => {
                        for address in addresses {
                            let record =
                                Record::from_rdata(query.name().clone(), 300, RData::from(address));
                            response.add_answer(record);
                        }
                    }
                }
                socket
                    .send_to(&response.to_vec().unwrap(), client)
                    .await
                    .unwrap();
            }
        });
        Self {
            address,
            asked,
            task,
        }
    }

    /// One that has an answer for A and one for AAAA, whatever the name.
    pub(crate) async fn with(v4: fn() -> Answer, v6: fn() -> Answer) -> Self {
        Self::start(move |_, record_type| {
            if record_type == RecordType::A {
                v4()
            } else {
                v6()
            }
        })
        .await
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
