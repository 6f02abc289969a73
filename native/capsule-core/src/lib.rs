//! Sans-IO heart of the relay: the capsule protocol, tunnel state machines, URI templates, request parsing and
//! Proxy-Status. No IO, no clock, no unsafe; every decoder takes its input in any split.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod capsule;
pub mod capsule_protocol;
pub mod compression;
pub mod connect_udp_bind;
pub mod ecn_dscp;
pub mod ecn_dscp_context_id;
pub mod fields;
#[doc(hidden)]
pub mod fuzzing;
pub mod protocols;
pub mod proxy_public_address;
pub mod proxy_status;
pub mod reject;
pub mod request;
pub mod target;
pub mod template;
pub mod tunnel;
pub mod uri_template;
pub mod varint;
pub mod whole;
