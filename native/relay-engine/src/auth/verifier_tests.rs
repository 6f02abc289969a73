#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::mpsc;

use futures_util::future::join_all;

use super::*;

fn phc() -> Arc<str> {
    secret::hash_password("right").unwrap().into()
}

/// Keeps one thread of the verifier occupied until the returned sender is dropped.
fn occupy(verifier: &Arc<Verifier>) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let (start, started) = mpsc::channel();
    let job = Box::new(move || {
        start.send(()).unwrap();
        let _ = released.recv();
    });
    verifier.submit(&mut verifier.state(), job).unwrap();
    started.recv().unwrap();
    release
}

#[tokio::test]
async fn results_of_both_kinds_are_remembered() {
    let verifier = Arc::new(Verifier::new(2, 8));
    let phc = phc();
    for _ in 0..3 {
        assert_eq!(verifier.verify(b"alice", b"right", &phc).await, Ok(true));
        assert_eq!(verifier.verify(b"alice", b"wrong", &phc).await, Ok(false));
    }
    assert_eq!(verifier.state().verified, 2);
    // Another user with the same password, and a changed password, are questions of their own.
    assert_eq!(verifier.verify(b"bob", b"right", &phc).await, Ok(true));
    let changed: Arc<str> = secret::hash_password("new").unwrap().into();
    assert_eq!(
        verifier.verify(b"alice", b"right", &changed).await,
        Ok(false)
    );
    assert_eq!(verifier.state().verified, 4);
}

#[tokio::test]
async fn identical_questions_share_one_verification() {
    let verifier = Arc::new(Verifier::new(1, 1));
    let phc = phc();
    let gate = occupy(&verifier);
    let questions = (0..50).map(|_| verifier.verify(b"alice", b"right", &phc));
    let all = join_all(questions);
    tokio::pin!(all);
    assert!(futures_util::poll!(&mut all).is_pending());
    drop(gate);
    assert!(all.await.into_iter().all(|result| result == Ok(true)));
    assert_eq!(verifier.state().verified, 1);
}

#[tokio::test]
async fn a_full_queue_is_busy_and_recovers() {
    let verifier = Arc::new(Verifier::new(1, 1));
    let phc = phc();
    let gate = occupy(&verifier);
    let first = verifier.verify(b"alice", b"right", &phc);
    tokio::pin!(first);
    assert!(futures_util::poll!(&mut first).is_pending());
    assert_eq!(verifier.verify(b"bob", b"right", &phc).await, Err(Busy));
    drop(gate);
    assert_eq!(first.await, Ok(true));
    assert_eq!(verifier.verify(b"bob", b"right", &phc).await, Ok(true));
}

#[tokio::test]
async fn questions_that_nobody_waits_for_cost_nothing() {
    let verifier = Arc::new(Verifier::new(1, 4));
    let phc = phc();
    let gate = occupy(&verifier);
    {
        let dropped = verifier.verify(b"alice", b"right", &phc);
        tokio::pin!(dropped);
        assert!(futures_util::poll!(&mut dropped).is_pending());
    }
    drop(gate);
    assert_eq!(verifier.verify(b"bob", b"right", &phc).await, Ok(true));
    let state = verifier.state();
    assert_eq!(state.verified, 1);
    assert!(state.asked.is_empty());
}

#[tokio::test]
async fn a_panicking_job_takes_no_thread_away() {
    let verifier = Arc::new(Verifier::new(1, 4));
    verifier
        .submit(
            &mut verifier.state(),
            Box::new(|| panic!("a test's own panic")),
        )
        .unwrap();
    assert_eq!(verifier.verify(b"alice", b"right", &phc()).await, Ok(true));
}

#[test]
fn memories_end_and_are_bounded() {
    let mut memory = Memory::default();
    let now = Instant::now();
    let question = |n: usize| {
        let mut question = [0; 32];
        question[..8].copy_from_slice(&n.to_be_bytes());
        question
    };
    memory.insert(question(0), now + Duration::from_secs(1));
    assert!(memory.holds(&question(0), now));
    assert!(!memory.holds(&question(0), now + Duration::from_secs(1)));
    assert!(memory.order.is_empty() && memory.until.is_empty());
    for n in 0..REMEMBERED + 10 {
        memory.insert(question(n), now + Duration::from_secs(1));
    }
    assert_eq!(
        (memory.order.len(), memory.until.len()),
        (REMEMBERED, REMEMBERED)
    );
    assert!(!memory.holds(&question(9), now));
    assert!(memory.holds(&question(10), now));
}
