//! The data plane.

pub mod auth;
pub mod config;
pub mod egress;
pub mod policy;
