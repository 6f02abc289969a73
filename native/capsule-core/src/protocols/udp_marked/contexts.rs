//! The contexts of a tunnel with marks: what each end has registered, for good.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::super::udp_bind::Role;
use crate::ecn_dscp::{Assignment, Marks};
use crate::tunnel::Malformed;

/// What one end has registered.
#[derive(Debug, Clone)]
pub struct Registered {
    by: Role,
    sets: BTreeMap<u8, Assignment>,
    meanings: BTreeMap<u64, Marks>,
}

impl Registered {
    /// Nothing yet.
    #[must_use]
    pub const fn new(by: Role) -> Self {
        Self {
            by,
            sets: BTreeMap::new(),
            meanings: BTreeMap::new(),
        }
    }

    /// Registers the contexts of a DSCP, all or none of them.
    ///
    /// # Errors
    /// [`Malformed::EcnDscp`]: an ID is the other end's, stands for something already, or for two things; or the DSCP has contexts.
    //= connect-udp-ecn-dscp §3.1.1 none-twice
    //= connect-udp-ecn-dscp §2 context-parity
    pub fn register(&mut self, assignment: &Assignment) -> Result<(), Malformed> {
        let own = |id: u64| id.is_multiple_of(2) == (self.by == Role::Client);
        for (number, (context, marks)) in assignment.meanings().enumerate() {
            //= connect-udp-ecn-dscp §2 context-0
            let is_free = match context {
                0 => marks == Marks::NONE,
                id => own(id) && !self.meanings.contains_key(&id),
            };
            if !is_free || assignment.contexts[..number].contains(&context) {
                return Err(Malformed::EcnDscp);
            }
        }
        if self.sets.contains_key(&assignment.dscp) {
            return Err(Malformed::EcnDscp);
        }
        let named = assignment.meanings().filter(|(context, _)| *context != 0);
        self.meanings.extend(named);
        self.sets.insert(assignment.dscp, *assignment);
        Ok(())
    }

    /// The contexts of a DSCP.
    #[must_use]
    pub fn of(&self, dscp: u8) -> Option<&Assignment> {
        self.sets.get(&dscp)
    }

    /// What a context other than 0 stands for.
    #[must_use]
    pub fn meaning(&self, context: u64) -> Option<Marks> {
        self.meanings.get(&context).copied()
    }

    /// All of it, by DSCP.
    #[must_use]
    pub fn all(&self) -> Vec<Assignment> {
        self.sets.values().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(dscp: u8, contexts: [u64; 4]) -> Assignment {
        Assignment { dscp, contexts }
    }

    //= connect-udp-ecn-dscp §3.1.1 none-twice
    //= connect-udp-ecn-dscp §2 context-parity
    //= connect-udp-ecn-dscp §2 context-0
    #[test]
    fn nothing_is_registered_twice() {
        let mut client = Registered::new(Role::Client);
        for bad in [
            set(0, [1, 2, 4, 6]),
            set(0, [2, 0, 4, 6]),
            set(1, [0, 2, 4, 6]),
            set(0, [2, 4, 6, 2]),
        ] {
            assert_eq!(client.register(&bad), Err(Malformed::EcnDscp), "{bad:?}");
        }
        assert!(client.all().is_empty() && client.meanings.is_empty());
        assert_eq!(client.register(&set(0, [0, 2, 4, 6])), Ok(()));
        for bad in [
            set(0, [0, 2, 4, 6]),
            set(0, [8, 10, 12, 14]),
            set(1, [8, 10, 12, 6]),
        ] {
            assert_eq!(client.register(&bad), Err(Malformed::EcnDscp), "{bad:?}");
        }
        assert_eq!(client.meaning(8), None);
        assert_eq!(client.register(&set(1, [8, 10, 12, 1 << 60])), Ok(()));
        assert_eq!(client.meaning(1 << 60), Some(Marks::new(1, 0b11)));
        assert_eq!(client.meaning(0), None);
        let mut proxy = Registered::new(Role::Proxy);
        assert_eq!(
            proxy.register(&set(0, [0, 1, 2, 3])),
            Err(Malformed::EcnDscp)
        );
        assert_eq!(proxy.register(&set(0, [0, 1, 3, 5])), Ok(()));
    }
}
