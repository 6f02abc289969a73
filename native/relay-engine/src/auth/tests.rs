#![allow(clippy::unwrap_used, clippy::expect_used)]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn config() -> config::Auth {
    config::Auth {
        required: true,
        realm: "relay".to_owned(),
        users: vec![
            ("alice".to_owned(), hash_password("sesame").unwrap()),
            ("müller".to_owned(), hash_password("paß").unwrap()),
        ],
        tokens: vec![
            ("ci".to_owned(), hash_token("t0ken")),
            ("lab".to_owned(), hash_token("other")),
        ],
    }
}

fn credentials() -> Credentials {
    Credentials::with_verifier(&config(), Arc::new(Verifier::new(2, 64))).unwrap()
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

async fn ask(credentials: &Credentials, values: &[(&str, &str)]) -> Outcome {
    let fields: Vec<(&str, &[u8])> = values
        .iter()
        .map(|(name, value)| (*name, value.as_bytes()))
        .collect();
    credentials.authenticate(&fields, None).await
}

fn principal(name: &str) -> Outcome {
    Outcome::Principal(name.into())
}

#[tokio::test]
async fn passwords_are_accepted_in_both_fields() {
    let credentials = credentials();
    for name in ["authorization", "Proxy-Authorization"] {
        assert_eq!(
            ask(&credentials, &[(name, &basic("alice", "sesame"))]).await,
            principal("alice")
        );
        assert_eq!(
            ask(&credentials, &[(name, &basic("müller", "paß"))]).await,
            principal("müller")
        );
        assert_eq!(
            ask(&credentials, &[(name, &basic("alice", "Sesame"))]).await,
            Outcome::Invalid
        );
        assert_eq!(
            ask(&credentials, &[(name, &basic("mallory", "sesame"))]).await,
            Outcome::Invalid
        );
    }
}

#[tokio::test]
async fn tokens_are_accepted_as_bearer_and_as_password() {
    let credentials = credentials();
    assert_eq!(
        ask(&credentials, &[("authorization", "Bearer t0ken")]).await,
        principal("ci")
    );
    assert_eq!(
        ask(
            &credentials,
            &[("proxy-authorization", &basic("ci", "t0ken"))]
        )
        .await,
        principal("ci")
    );
    assert_eq!(
        ask(
            &credentials,
            &[("proxy-authorization", &basic("", "other"))]
        )
        .await,
        principal("lab")
    );
    assert_eq!(
        ask(&credentials, &[("authorization", "Bearer t0ke")]).await,
        Outcome::Invalid
    );
    assert_eq!(
        ask(&credentials, &[("authorization", &basic("ci", "nope"))]).await,
        Outcome::Invalid
    );
    // The stored form is no token.
    let stored = format!("Bearer {}", hash_token("t0ken"));
    assert_eq!(
        ask(&credentials, &[("authorization", &stored)]).await,
        Outcome::Invalid
    );
}

#[tokio::test]
async fn absent_and_unreadable_credentials_are_none() {
    let credentials = credentials();
    assert_eq!(ask(&credentials, &[]).await, Outcome::Anonymous);
    for value in ["Basic", "Basic %%%", "Digest x=y", "Bearer", ""] {
        assert_eq!(
            ask(&credentials, &[("authorization", value)]).await,
            Outcome::Anonymous,
            "{value}"
        );
    }
}

#[tokio::test]
async fn any_valid_set_wins() {
    let credentials = credentials();
    let wrong = basic("alice", "wrong");
    let values = [
        ("authorization", wrong.as_str()),
        ("proxy-authorization", "Bearer t0ken"),
    ];
    assert_eq!(ask(&credentials, &values).await, principal("ci"));
    let right = basic("alice", "sesame");
    let values = [("authorization", "Bearer x"), ("authorization", &right)];
    assert_eq!(ask(&credentials, &values).await, principal("alice"));
}

#[tokio::test]
async fn a_certificate_speaks_where_nothing_else_does() {
    let credentials = credentials();
    let certificate: Arc<str> = "client.example".into();
    let none: [(&str, &[u8]); 0] = [];
    assert_eq!(
        credentials.authenticate(&none, Some(&certificate)).await,
        principal("client.example")
    );
    let token: [(&str, &[u8]); 1] = [("authorization", b"Bearer t0ken")];
    assert_eq!(
        credentials.authenticate(&token, Some(&certificate)).await,
        principal("ci")
    );
    let wrong: [(&str, &[u8]); 1] = [("authorization", b"Bearer wrong")];
    assert_eq!(
        credentials.authenticate(&wrong, Some(&certificate)).await,
        Outcome::Invalid
    );
}

#[tokio::test]
async fn a_name_that_nobody_has_costs_a_verification_too() {
    let credentials = credentials();
    let before = credentials.verifier.verifications();
    ask(&credentials, &[("authorization", &basic("nobody", "x"))]).await;
    assert_eq!(credentials.verifier.verifications(), before + 1);
    // Without users there is nothing to hide.
    let empty = config::Auth {
        users: Vec::new(),
        ..config()
    };
    let credentials = Credentials::with_verifier(&empty, Arc::new(Verifier::new(0, 0))).unwrap();
    assert_eq!(
        ask(&credentials, &[("authorization", &basic("nobody", "x"))]).await,
        Outcome::Invalid
    );
}

#[tokio::test]
async fn a_full_queue_is_busy() {
    let credentials = Credentials::with_verifier(&config(), Arc::new(Verifier::new(0, 0))).unwrap();
    assert_eq!(
        ask(
            &credentials,
            &[("authorization", &basic("alice", "sesame"))]
        )
        .await,
        Outcome::Busy
    );
    // Tokens need no verification.
    assert_eq!(
        ask(&credentials, &[("authorization", "Bearer t0ken")]).await,
        principal("ci")
    );
}

#[tokio::test]
async fn octets_of_any_kind_are_only_wrong() {
    let credentials = credentials();
    let value = format!("Basic {}", STANDARD.encode(b"\xff\xfe\x00:\x80"));
    assert_eq!(
        ask(&credentials, &[("authorization", &value)]).await,
        Outcome::Invalid
    );
}

#[test]
fn unreadable_hashes_are_refused_by_name() {
    let mut broken = config();
    broken.users.push(("bob".to_owned(), "plain".to_owned()));
    assert_eq!(
        Credentials::new(&broken).unwrap_err(),
        CredentialsError::User("bob".to_owned())
    );
    let mut broken = config();
    broken.tokens.push(("x".to_owned(), "abc".to_owned()));
    assert_eq!(
        Credentials::new(&broken).unwrap_err(),
        CredentialsError::Token("x".to_owned())
    );
    assert!(!format!("{:?}", credentials()).contains("argon2"));
}
