//! HTTP/3 (RFC 9114) with extended CONNECT (RFC 9220) and HTTP datagrams (RFC 9297).
//!
//! [`code`], [`frame`], [`settings`], [`control`], [`uni`], [`qpack`], [`message`] and [`datagram`] do no IO: bytes in, in any
//! split, and decisions out. [`stream`], [`flow`], [`requests`] and [`server`] put them on the QUIC stack.

pub mod code;
pub mod control;
pub mod datagram;
pub mod exchange;
pub mod flow;
pub mod frame;
pub mod message;
pub mod qpack;
pub mod requests;
pub mod server;
pub mod settings;
pub mod stream;
pub mod uni;

pub use flow::Flow;
pub use server::accept;
