//! How targets are reached: names become addresses, addresses race, one connection wins.

pub mod happy_eyeballs;
