//! Steers QUIC packets to the worker named in their connection ID, inside the kernel.

use std::io;
use std::os::fd::AsRawFd;

/// One classic BPF instruction (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    value: u32,
}

/// A classic BPF program (`struct sock_fprog`).
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

const SOL_SOCKET: i32 = 1;
const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;

/// Makes the SO_REUSEPORT group of `socket` deliver short-header packets to the member whose index is the first byte of the
/// destination connection ID. Long headers, and indices that no member has, stay with the kernel's hash of the addresses.
///
/// The index is the order in which sockets joined the group.
pub fn steer_by_connection_id(socket: &impl AsRawFd) -> io::Result<()> {
    const LOAD_BYTE_ABSOLUTE: u16 = 0x30;
    const JUMP_IF_BITS: u16 = 0x45;
    const RETURN_CONSTANT: u16 = 0x06;
    const RETURN_ACCUMULATOR: u16 = 0x16;
    let instructions = [
        Instruction {
            code: LOAD_BYTE_ABSOLUTE,
            jump_true: 0,
            jump_false: 0,
            value: 0,
        },
        Instruction {
            code: JUMP_IF_BITS,
            jump_true: 0,
            jump_false: 1,
            value: 0x80,
        },
        Instruction {
            code: RETURN_CONSTANT,
            jump_true: 0,
            jump_false: 0,
            value: u32::MAX,
        },
        Instruction {
            code: LOAD_BYTE_ABSOLUTE,
            jump_true: 0,
            jump_false: 0,
            value: 1,
        },
        Instruction {
            code: RETURN_ACCUMULATOR,
            jump_true: 0,
            jump_false: 0,
            value: 0,
        },
    ];
    let program = Program {
        length: instructions.len() as u16,
        instructions: instructions.as_ptr(),
    };
    unsafe extern "C" {
        fn setsockopt(fd: i32, level: i32, name: i32, value: *const Program, length: u32) -> i32;
    }
    // SAFETY: the descriptor is open for the length of the call, `program` has the layout of `struct sock_fprog`, its pointer
    // covers `length` instructions that live until the call returns, and the kernel copies them.
    let result = unsafe {
        setsockopt(
            socket.as_raw_fd(),
            SOL_SOCKET,
            SO_ATTACH_REUSEPORT_CBPF,
            &program,
            size_of::<Program>() as u32,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
