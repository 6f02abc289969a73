//! `relay._native`: conversions between Python and the engine, and the decision bridge. Nothing else.

use pyo3::prelude::*;

mod bind;
mod bridge;
mod buffer;
mod client;
mod codec;
mod datagrams;
mod engine;
mod load;
mod logs;
mod secrets;
mod table;
mod tls;
mod toml;
mod tunnel;

/// Python's own objects are not in it. Buffers of a few hundred KiB come and go by the thousand; the C library would give their
/// pages back to the kernel each time, and take them again one fault after the other.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The native side of the package `relay`.
#[pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::bind::ConnectUdpBind;
    #[pymodule_export]
    use crate::bridge::Bridge;
    #[pymodule_export]
    use crate::client::{Client, ClientEnd};
    #[pymodule_export]
    use crate::codec::{
        Capsule, CapsuleDecoder, CapsuleHeader, CapsuleValue, decode_varint, encode_capsule,
        encode_capsule_header, encode_varint,
    };
    #[pymodule_export]
    use crate::datagrams::ConnectUdp;
    #[pymodule_export]
    use crate::engine::Engine;
    #[pymodule_export]
    use crate::load::{Load, serve_origin};
    #[pymodule_export]
    use crate::logs::log_to_stderr;
    #[pymodule_export]
    use crate::secrets::{hash_password, hash_token, is_argon2id};
    #[pymodule_export]
    use crate::table::{check_template, protocols};
    #[pymodule_export]
    use crate::tls::{
        check_certificate, check_client_ca, check_private_key, check_tls, throwaway_certificate,
    };
    #[pymodule_export]
    use crate::toml::toml_lines;
    #[pymodule_export]
    use crate::tunnel::ConnectTcp;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        let profile = if cfg!(debug_assertions) {
            "quick"
        } else {
            "shipped"
        };
        module.add("BUILD_PROFILE", profile)?;
        module.add("MAX_USER_PASS", relay_engine::auth::MAX_USER_PASS)?;
        module.add("MAX_UDP_PAYLOAD", capsule_core::protocols::udp::MAX_PAYLOAD)?;
        module.add("MAX_VARINT", capsule_core::varint::MAX)
    }
}
