//! Who asks: users with passwords, tokens, TLS client certificates.

mod certificate;
mod fields;
mod secret;
mod verifier;

use std::collections::HashMap;
use std::sync::Arc;

use capsule_core::fields::Fields;
use ring::hmac;
use ring::rand::SystemRandom;
use subtle::ConstantTimeEq as _;

pub use certificate::principal_of_certificate;
pub use fields::MAX_USER_PASS;
pub use secret::{HashError, hash_password, hash_token, is_argon2id};

use crate::config;
use fields::{Presented, presented};
use verifier::{Busy, PROCESS, Verifier};

/// Passwords verified for one request: more sets of credentials than that are not looked at.
const MAX_PASSWORDS: usize = 2;

/// What a request's credentials came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// They are this principal's.
    Principal(Arc<str>),
    /// There are none.
    Anonymous,
    /// There are some, and they are wrong: 401 or 407.
    Invalid,
    /// Too many passwords wait to be verified: 503.
    Busy,
}

/// What is wrong with the configured credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// A user's hash cannot be read.
    #[error("user {0}: not an argon2id hash in PHC format")]
    User(String),
    /// A token's hash cannot be read.
    #[error("token {0}: not a SHA-256 in hex")]
    Token(String),
    /// The system gave no random numbers.
    #[error("the system gave no random numbers")]
    Random,
}

/// The users and tokens of one configuration; shared by all workers.
pub struct Credentials {
    users: HashMap<Vec<u8>, User>,
    /// Compared with when nobody has the name, so that this takes as long as a wrong password.
    decoy: Option<Arc<str>>,
    /// By a keyed hash of the digest: how long a look-up takes says nothing about the digests stored.
    tokens: HashMap<[u8; 32], Token>,
    token_key: hmac::Key,
    verifier: Arc<Verifier>,
}

struct User {
    name: Arc<str>,
    phc: Arc<str>,
}

struct Token {
    name: Arc<str>,
    digest: [u8; 32],
}

impl Credentials {
    /// Takes in the users and tokens of a configuration.
    ///
    /// # Errors
    /// A hash that cannot be read.
    pub fn new(config: &config::Auth) -> Result<Self, CredentialsError> {
        Self::with_verifier(config, Arc::clone(&PROCESS))
    }

    fn with_verifier(
        config: &config::Auth,
        verifier: Arc<Verifier>,
    ) -> Result<Self, CredentialsError> {
        let token_key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| CredentialsError::Random)?;
        let mut users = HashMap::new();
        for (name, phc) in &config.users {
            if !secret::is_argon2id(phc) {
                return Err(CredentialsError::User(name.clone()));
            }
            let user = User {
                name: name.as_str().into(),
                phc: phc.as_str().into(),
            };
            users.insert(name.clone().into_bytes(), user);
        }
        let mut tokens = HashMap::new();
        for (name, hex) in &config.tokens {
            let digest =
                secret::parse_digest(hex).ok_or_else(|| CredentialsError::Token(name.clone()))?;
            let token = Token {
                name: name.as_str().into(),
                digest,
            };
            tokens.insert(keyed(&token_key, &digest), token);
        }
        let decoy = config.users.first().map(|(_, phc)| phc.as_str().into());
        Ok(Self {
            users,
            decoy,
            tokens,
            token_key,
            verifier,
        })
    }

    /// Finds out who sent a request.
    ///
    /// Looks at `Proxy-Authorization` and `Authorization`: a token as `Bearer` or as the password of `Basic` with any
    /// user name, a user's password as `Basic`. Any valid set wins; wrong ones are wrong also beside a certificate.
    /// `certificate` is the principal of a verified TLS client certificate.
    pub async fn authenticate(
        &self,
        fields: &dyn Fields,
        certificate: Option<&Arc<str>>,
    ) -> Outcome {
        let presented = presented(fields);
        if presented.is_empty() {
            return certificate.map_or(Outcome::Anonymous, |name| {
                Outcome::Principal(Arc::clone(name))
            });
        }
        for credentials in &presented {
            let token = match credentials {
                Presented::Bearer(token) => token,
                Presented::Basic { password, .. } => password,
            };
            if let Some(name) = self.token(token) {
                return Outcome::Principal(name);
            }
        }
        let passwords = presented
            .iter()
            .filter_map(|credentials| match credentials {
                Presented::Basic { user, password } => Some((user, password)),
                Presented::Bearer(_) => None,
            });
        for (user, password) in passwords.take(MAX_PASSWORDS) {
            match self.password(user, password).await {
                Ok(Some(name)) => return Outcome::Principal(name),
                Ok(None) => {}
                Err(Busy) => return Outcome::Busy,
            }
        }
        Outcome::Invalid
    }

    fn token(&self, presented: &[u8]) -> Option<Arc<str>> {
        let digest = secret::digest(presented);
        let token = self.tokens.get(&keyed(&self.token_key, &digest))?;
        let same: bool = token.digest.ct_eq(&digest).into();
        same.then(|| Arc::clone(&token.name))
    }

    async fn password(&self, user: &[u8], password: &[u8]) -> Result<Option<Arc<str>>, Busy> {
        if let Some(known) = self.users.get(user) {
            let fits = self.verifier.verify(user, password, &known.phc).await?;
            return Ok(fits.then(|| Arc::clone(&known.name)));
        }
        if let Some(decoy) = &self.decoy {
            self.verifier.verify(user, password, decoy).await?;
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Credentials {
    /// Names nothing that is secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("users", &self.users.len())
            .field("tokens", &self.tokens.len())
            .finish_non_exhaustive()
    }
}

fn keyed(key: &hmac::Key, digest: &[u8; 32]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(hmac::sign(key, digest).as_ref());
    out
}

#[cfg(test)]
mod tests;
