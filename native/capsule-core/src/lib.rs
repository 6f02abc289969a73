#![no_std]
//! Sans-IO heart of the relay.
extern crate alloc;
