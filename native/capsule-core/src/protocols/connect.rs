//! Classic CONNECT: the data stream is the target's byte stream, its end is the FIN.

use crate::capsule::MAX_HEADER;
use crate::tunnel::{End, Finish, Malformed, Step, StreamTunnel};

/// Bytes as they are, both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Raw;

impl StreamTunnel for Raw {
    #[inline]
    fn inbound(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        Ok(if data.is_empty() {
            Step::Idle
        } else {
            Step::Payload(u64::MAX)
        })
    }

    #[inline]
    fn advance(&mut self, _taken: u64) {}

    #[inline]
    fn payload_pending(&self) -> u64 {
        u64::MAX
    }

    //= rfc9113 §8.5 connect-end-is-fin
    //= rfc9114 §4.4 connect-end-is-fin
    fn inbound_end(&mut self) -> End {
        End::Finish
    }

    #[inline]
    fn outbound_header(&mut self, _payload: usize, _out: &mut [u8; MAX_HEADER]) -> usize {
        0
    }

    //= rfc9113 §8.5 connect-fin-is-end
    //= rfc9114 §4.4 connect-fin-is-end
    fn outbound_finish(&mut self, _out: &mut [u8; MAX_HEADER]) -> Finish {
        Finish::EndStream
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::fuzzing::{Course, course};

    //= rfc9113 §8.5 connect-end-is-fin
    //= rfc9114 §4.4 connect-end-is-fin
    #[test]
    fn bytes_pass_as_they_are() {
        let stream = b"\x00\x01 any bytes \xff";
        for size in 1..stream.len() {
            assert_eq!(
                course(&mut Raw, stream.chunks(size), 3),
                Course {
                    payload: stream.to_vec(),
                    finishes: vec![],
                    end: Ok(End::Finish),
                    unknown: 0,
                }
            );
        }
        assert_eq!(Raw.payload_pending(), u64::MAX);
    }

    //= rfc9113 §8.5 connect-fin-is-end
    //= rfc9114 §4.4 connect-fin-is-end
    #[test]
    fn nothing_is_added() {
        let mut out = [0; MAX_HEADER];
        assert_eq!(Raw.outbound_header(1000, &mut out), 0);
        assert_eq!(Raw.outbound_finish(&mut out), Finish::EndStream);
    }
}
