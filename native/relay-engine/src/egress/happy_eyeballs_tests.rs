#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

fn v4(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn v6(last: u8) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(last)])
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
//= rfc8305 §3 resolution-delay
fn ipv4_waits_a_moment_for_ipv6() {
    let t = Instant::now();
    let mut race = Race::new();
    assert_eq!(race.poll(t), Step::Wait(None));
    race.resolved(Family::V4, [v4(1)], t);
    assert_eq!(race.poll(t), Step::Wait(Some(t + RESOLUTION_DELAY)));
    race.resolved(Family::V6, [v6(1)], t + ms(20));
    assert_eq!(race.poll(t + ms(20)), Step::Start(v6(1)));
    assert_eq!(race.poll(t + ms(20)), Step::Wait(Some(t + ms(270))));
    assert_eq!(race.poll(t + ms(270)), Step::Start(v4(1)));
    assert_eq!(race.poll(t + ms(270)), Step::Wait(None));
}

#[test]
//= rfc8305 §3 resolution-delay
fn ipv4_starts_alone_once_the_resolution_delay_is_over_and_late_ipv6_joins() {
    let t = Instant::now();
    let mut race = Race::new();
    race.resolved(Family::V4, [v4(1), v4(2)], t);
    assert_eq!(race.poll(t + ms(50)), Step::Start(v4(1)));
    race.resolved(Family::V6, [v6(1)], t + ms(90));
    assert_eq!(race.poll(t + ms(90)), Step::Wait(Some(t + ms(300))));
    assert_eq!(race.poll(t + ms(300)), Step::Start(v6(1)));
    assert_eq!(race.poll(t + ms(550)), Step::Start(v4(2)));
}

#[test]
fn no_ipv6_addresses_end_the_resolution_delay() {
    let t = Instant::now();
    let mut race = Race::new();
    race.resolved(Family::V4, [v4(1)], t);
    race.resolved(Family::V6, [], t + ms(1));
    assert_eq!(race.poll(t + ms(1)), Step::Start(v4(1)));
}

#[test]
//= rfc8305 §4 interleave-families
fn families_take_turns_and_ipv6_goes_first() {
    let t = Instant::now();
    let mut race = Race::new();
    race.resolved(Family::V6, [v6(1), v6(2), v6(3)], t);
    race.resolved(Family::V4, [v4(1), v4(2)], t);
    let mut order = Vec::new();
    for n in 0..5 {
        if let Step::Start(address) = race.poll(t + ATTEMPT_DELAY * n) {
            order.push(address);
        }
    }
    assert_eq!(order, [v6(1), v4(1), v6(2), v4(2), v6(3)]);
}

#[test]
//= rfc8305 §5 attempt-delay
fn a_failure_starts_the_next_attempt_at_once() {
    let t = Instant::now();
    let mut race = Race::new();
    race.resolved(Family::V6, [v6(1)], t);
    race.resolved(Family::V4, [v4(1)], t);
    assert_eq!(race.poll(t), Step::Start(v6(1)));
    race.failed(v6(1));
    assert_eq!(race.poll(t + ms(1)), Step::Start(v4(1)));
    race.failed(v4(1));
    assert_eq!(race.poll(t + ms(2)), Step::Failed);
}

#[test]
fn a_race_without_addresses_fails_only_when_both_families_are_known() {
    let t = Instant::now();
    let mut race = Race::new();
    race.resolved(Family::V6, [], t);
    assert_eq!(race.poll(t), Step::Wait(None));
    race.resolved(Family::V4, [], t);
    assert_eq!(race.poll(t), Step::Failed);
}

#[test]
fn a_literal_is_a_race_of_one() {
    let t = Instant::now();
    let mut race = Race::literal(v4(7));
    assert_eq!(race.poll(t), Step::Start(v4(7)));
    assert_eq!(race.poll(t), Step::Wait(None));
    race.failed(v4(7));
    assert_eq!(race.poll(t), Step::Failed);
}

#[test]
fn a_crowd_of_addresses_is_cut() {
    let t = Instant::now();
    let mut race = Race::new();
    race.resolved(Family::V6, (0..200).map(v6), t);
    race.resolved(Family::V4, [], t);
    let mut started = 0;
    while let Step::Start(address) = race.poll(t) {
        started += 1;
        race.failed(address);
    }
    assert_eq!(started, MAX_PER_FAMILY);
}

/// What a simulated world does: answers of both families after a delay, and how each attempt ends.
#[derive(Debug, Clone)]
struct World {
    v6: (u64, Vec<u8>),
    v4: (u64, Vec<u8>),
    /// Per attempt, in the order started: milliseconds until it fails, or never.
    failures: Vec<Option<u64>>,
}

fn world() -> impl Strategy<Value = World> {
    let family = || (0u64..400, prop::collection::vec(any::<u8>(), 0..12));
    let failures = prop::collection::vec(prop::option::of(0u64..600), 32);
    (family(), family(), failures).prop_map(|(v6, v4, failures)| World { v6, v4, failures })
}

proptest! {
    #[test]
    fn every_world_is_tried_fairly(world in world()) {
        let start = Instant::now();
        let mut race = Race::new();
        // (time in ms, event); events of one moment keep their order.
        enum Event { Resolved(Family), Fails(IpAddr), Timer }
        let mut agenda: Vec<(u64, Event)> = vec![
            (world.v6.0, Event::Resolved(Family::V6)),
            (world.v4.0, Event::Resolved(Family::V4)),
        ];
        let mut started: Vec<(u64, IpAddr)> = Vec::new();
        let mut last_failure = None;
        let mut ended = None;
        for _ in 0..1000 {
            let Some(next) = agenda.iter().enumerate().min_by_key(|(index, (at, _))| (*at, *index)).map(|(i, _)| i) else {
                break;
            };
            let (now, event) = agenda.remove(next);
            let instant = start + ms(now);
            match event {
                Event::Resolved(Family::V6) => race.resolved(Family::V6, world.v6.1.iter().map(|&n| v6(n)), instant),
                Event::Resolved(Family::V4) => race.resolved(Family::V4, world.v4.1.iter().map(|&n| v4(n)), instant),
                Event::Fails(address) => { race.failed(address); last_failure = Some(now); }
                Event::Timer => {}
            }
            loop {
                match race.poll(instant) {
                    Step::Start(address) => {
                        if let Some(&(before, _)) = started.last() {
                            prop_assert!(
                                now - before >= 250 || last_failure.is_some_and(|at| at >= before),
                                "two attempts within the delay, and none failed between them"
                            );
                        }
                        if let Some(Some(after)) = world.failures.get(started.len()) {
                            agenda.push((now + after, Event::Fails(address)));
                        }
                        started.push((now, address));
                    }
                    Step::Wait(Some(at)) => {
                        let at = u64::try_from(at.duration_since(start).as_millis()).unwrap();
                        prop_assert!(at > now);
                        agenda.push((at, Event::Timer));
                        break;
                    }
                    Step::Wait(None) => break,
                    Step::Failed => { ended = Some(now); break; }
                }
            }
        }
        let expected: HashSet<IpAddr> = first_distinct(&world.v6.1).map(v6).chain(first_distinct(&world.v4.1).map(v4)).collect();
        let tried: Vec<IpAddr> = started.iter().map(|&(_, address)| address).collect();
        let distinct: HashSet<IpAddr> = tried.iter().copied().collect();
        prop_assert_eq!(distinct.len(), tried.len(), "no address is tried twice");
        prop_assert_eq!(distinct, expected, "every address gets its turn");
        let all_fail = (0..tried.len()).all(|n| world.failures[n].is_some());
        prop_assert_eq!(ended.is_some(), all_fail, "the race is lost exactly when every attempt failed");
        if let Some(&(at, first)) = started.first() {
            let v6_known_first = world.v6.0 <= world.v4.0 + 49 && !world.v6.1.is_empty();
            if v6_known_first {
                prop_assert_eq!(Family::of(first), Family::V6);
            }
            prop_assert!(at <= world.v4.0.max(world.v6.0).max(world.v4.0 + 50));
        }
    }
}

fn first_distinct(bytes: &[u8]) -> impl Iterator<Item = u8> {
    let mut seen = Vec::new();
    for &byte in bytes {
        if !seen.contains(&byte) && seen.len() < MAX_PER_FAMILY {
            seen.push(byte);
        }
    }
    seen.into_iter()
}
