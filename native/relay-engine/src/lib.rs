//! The data plane.

pub mod config;
pub mod egress;
pub mod policy;
