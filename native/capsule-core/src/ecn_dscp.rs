//! ECN_DSCP_CONTEXT_ASSIGN and ECN_DSCP_CONTEXT_ACK (draft-ietf-masque-connect-udp-ecn-dscp §3.1): which contexts stand for which marks
//! of IP packets. IANA has assigned no types for them: whoever uses them says which they are.

use alloc::vec::Vec;

use crate::capsule::{self, MAX_HEADER};
use crate::tunnel::Malformed;
use crate::varint;

/// The highest DSCP (RFC 2474 §3): it has six bits.
pub const MAX_DSCP: u8 = 0x3f;
/// Assignments of one end, at most: one for each DSCP.
pub const MAX_ASSIGNMENTS: usize = MAX_DSCP as usize + 1;
/// The longest value of one of these capsules, in bytes.
pub const MAX_VALUE: usize = MAX_ASSIGNMENTS * (1 + ECN_VALUES * varint::MAX_LEN);

/// The values of an ECN field (RFC 3168 §5): Not-ECT, ECT(1), ECT(0) and CE, in the order of their two bits.
pub const ECN_VALUES: usize = 4;

/// The marks of an IP packet, as the octet of the header that holds them: the DSCP and below it the two ECN bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Marks(pub u8);

impl Marks {
    /// DSCP 0, Not-ECT: what a packet has without this extension.
    pub const NONE: Self = Self(0);

    /// Only the low six bits of `dscp` and the low two of `ecn` count.
    #[must_use]
    pub const fn new(dscp: u8, ecn: u8) -> Self {
        Self(dscp << 2 | ecn & 0b11)
    }

    /// The DSCP: at most [`MAX_DSCP`].
    #[must_use]
    pub const fn dscp(self) -> u8 {
        self.0 >> 2
    }

    /// The two ECN bits.
    #[must_use]
    pub const fn ecn(self) -> u8 {
        self.0 & 0b11
    }
}

/// The contexts of one DSCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assignment {
    /// At most [`MAX_DSCP`].
    pub dscp: u8,
    /// Context IDs, each at the place of its ECN bits: Not-ECT, ECT(1), ECT(0), CE.
    pub contexts: [u64; ECN_VALUES],
}

impl Assignment {
    /// Each context with the marks that it stands for.
    pub fn meanings(&self) -> impl Iterator<Item = (u64, Marks)> {
        let dscp = self.dscp;
        let marked = move |(context, ecn)| (context, Marks::new(dscp, ecn));
        self.contexts.into_iter().zip(0..).map(marked)
    }
}

/// The types of the two capsules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapsuleTypes {
    /// ECN_DSCP_CONTEXT_ASSIGN
    pub assign: u64,
    /// ECN_DSCP_CONTEXT_ACK
    pub ack: u64,
}

/// Reads the value of one of these capsules, all of it.
///
/// # Errors
/// [`Malformed::EcnDscp`]: it ends inside an assignment, or holds more than there are DSCPs.
//= connect-udp-ecn-dscp §3.1.2 assignment-format
pub fn decode(mut value: &[u8]) -> Result<Vec<Assignment>, Malformed> {
    let mut assignments = Vec::new();
    while let Some((&first, mut rest)) = value.split_first() {
        if assignments.len() == MAX_ASSIGNMENTS {
            return Err(Malformed::EcnDscp);
        }
        let mut contexts = [0; ECN_VALUES];
        for context in &mut contexts {
            let (id, used) = varint::decode(rest).ok_or(Malformed::EcnDscp)?;
            *context = id;
            rest = &rest[used..];
        }
        // The two bits below are reserved.
        let dscp = first >> 2;
        assignments.push(Assignment { dscp, contexts });
        value = rest;
    }
    Ok(assignments)
}

/// Appends a capsule of type `kind`.
//= connect-udp-ecn-dscp §3.1.2 assignment-format
pub fn encode(kind: u64, assignments: &[Assignment], out: &mut Vec<u8>) {
    let mut value = Vec::new();
    for assignment in assignments {
        value.push(assignment.dscp << 2);
        for context in assignment.contexts {
            let mut id = [0; varint::MAX_LEN];
            let used = varint::encode(context, &mut id);
            value.extend_from_slice(&id[..used]);
        }
    }
    let mut header = [0; MAX_HEADER];
    let used = capsule::encode_header(kind, value.len() as u64, &mut header);
    out.extend_from_slice(&header[..used]);
    out.extend_from_slice(&value);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn marks_are_the_octet_of_the_header() {
        let marks = Marks::new(46, 0b11);
        assert_eq!((marks.0, marks.dscp(), marks.ecn()), (0xbb, 46, 0b11));
        assert_eq!(Marks::new(MAX_DSCP, 0b01), Marks(0xfd));
    }

    //= connect-udp-ecn-dscp §3.1.2 assignment-format
    #[test]
    fn what_goes_over_the_wire() {
        let given = [
            Assignment {
                dscp: 46,
                contexts: [8, 10, 12, 14],
            },
            Assignment {
                dscp: 0,
                contexts: [0, 2, 64, 6],
            },
        ];
        let mut out = Vec::new();
        encode(0x3b, &given, &mut out);
        assert_eq!(out, [0x3b, 11, 0xb8, 8, 10, 12, 14, 0, 0, 2, 0x40, 64, 6]);
        assert_eq!(decode(&out[2..]).unwrap(), given);
        // Reserved bits say nothing.
        out[2] |= 0b11;
        assert_eq!(decode(&out[2..]).unwrap(), given);
        assert_eq!(decode(&[]), Ok(Vec::new()));
    }

    //= connect-udp-ecn-dscp §3.1.2 bound-assignments
    #[test]
    fn more_than_there_are_dscps_is_malformed() {
        let run = |count: usize| [0, 2, 4, 6, 8].repeat(count);
        assert_eq!(decode(&run(MAX_ASSIGNMENTS)).unwrap().len(), 64);
        assert_eq!(decode(&run(MAX_ASSIGNMENTS + 1)), Err(Malformed::EcnDscp));
    }

    proptest! {
        //= connect-udp-ecn-dscp §3.1.2 assignment-format
        #[test]
        fn there_and_back(given in prop::collection::vec((0..=MAX_DSCP, any::<[u64; 4]>()), 0..5)) {
            let given: Vec<_> = given
                .into_iter()
                .map(|(dscp, contexts)| Assignment { dscp, contexts: contexts.map(|id| id & varint::MAX) })
                .collect();
            let mut out = Vec::new();
            encode(0x3b, &given, &mut out);
            let (kind, length, start) = capsule::decode_header(&out).unwrap();
            prop_assert_eq!((kind, length), (0x3b, (out.len() - start) as u64));
            prop_assert_eq!(decode(&out[start..]), Ok(given));
            for cut in start..out.len() {
                if let Ok(fewer) = decode(&out[start..cut]) {
                    let mut again = Vec::new();
                    encode(0x3b, &fewer, &mut again);
                    prop_assert!(again.len() <= cut);
                }
            }
        }
    }
}
