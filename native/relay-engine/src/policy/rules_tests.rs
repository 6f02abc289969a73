#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;

fn policy() -> config::Policy {
    config::Policy {
        allow_networks: Vec::new(),
        deny_networks: Vec::new(),
        deny_ports: vec![25],
        rules: Vec::new(),
        hook: false,
        hook_timeout: Duration::from_secs(2),
        hook_cache: Duration::ZERO,
    }
}

fn rule(allow: bool) -> config::Rule {
    config::Rule {
        allow,
        principals: Vec::new(),
        hosts: Vec::new(),
        networks: Vec::new(),
        ports: Vec::new(),
        protocols: Vec::new(),
    }
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn names(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn name(text: &str) -> Host {
    Host::Name(text.to_owned())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The verdict on `host` at `address`, port 443, connect-tcp.
fn verdict(
    policy: &config::Policy,
    principal: Option<&str>,
    host: &Host,
    address: &str,
) -> Result<(), Refusal> {
    Arc::new(Ruleset::compile(policy))
        .before_dns(principal, "connect-tcp", host, 443)?
        .permits(ip(address))
}

#[test]
fn by_default_public_unicast_is_allowed_and_nothing_else() {
    let policy = policy();
    let host = name("example.com");
    assert_eq!(verdict(&policy, None, &host, "93.184.216.34"), Ok(()));
    assert_eq!(verdict(&policy, None, &host, "2606:4700::1"), Ok(()));
    for address in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
    ] {
        assert_eq!(
            verdict(&policy, None, &host, address),
            Err(Refusal::Address),
            "{address}"
        );
    }
}

#[test]
//= rfc9209 §4 no-secrets
fn refusals_know_their_answer() {
    let reject = Refusal::Address.reject();
    assert_eq!(
        (reject.status, reject.error),
        (403, Some(ProxyError::DestinationIpProhibited))
    );
    let reject = Refusal::Port(25).reject();
    assert_eq!(
        (reject.status, reject.error),
        (403, Some(ProxyError::HttpRequestDenied))
    );
    assert!(reject.detail.contains("25"));
    assert_eq!(Refusal::Rule.error(), ProxyError::HttpRequestDenied);
}

#[test]
//= rfc9110 §9.3.6 connect-restrict
fn denied_ports_are_refused_before_anything_is_resolved() {
    let ruleset = Arc::new(Ruleset::compile(&policy()));
    let refused = ruleset.before_dns(Some("alice"), "connect-tcp", &name("mail.example"), 25);
    assert_eq!(refused.unwrap_err(), Refusal::Port(25));
    assert!(ruleset.before_hook(&name("mail.example"), 26).is_ok());
}

#[test]
fn denied_ports_win_over_allow_rules() {
    let mut policy = policy();
    policy.rules.push(rule(true));
    let ruleset = Arc::new(Ruleset::compile(&policy));
    assert!(
        ruleset
            .before_dns(None, "connect", &name("mail.example"), 25)
            .is_err()
    );
}

#[test]
fn denied_networks_win_over_everything_in_every_spelling() {
    let mut policy = policy();
    policy.deny_networks = nets(&["8.8.8.0/24", "10.0.0.0/8"]);
    policy.allow_networks = nets(&["10.0.0.0/8", "::/0", "0.0.0.0/0"]);
    policy.rules.push(config::Rule {
        networks: nets(&["8.8.8.0/24", "::/0"]),
        ..rule(true)
    });
    for address in [
        "8.8.8.8",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2002:808:808::1",
        "10.1.1.1",
        "64:ff9b:1::10.0.0.1",
    ] {
        assert_eq!(
            verdict(&policy, None, &name("dns.example"), address),
            Err(Refusal::Address),
            "{address}"
        );
        let ruleset = Ruleset::compile(&policy);
        assert_eq!(
            ruleset.before_hook(&Host::Ip(ip(address)), 443),
            Err(Refusal::Address),
            "{address}"
        );
    }
    assert_eq!(
        verdict(&policy, None, &name("dns.example"), "8.8.4.4"),
        Ok(())
    );
}

#[test]
fn allow_networks_open_private_addresses() {
    let mut policy = policy();
    policy.allow_networks = nets(&["127.0.0.0/8", "fd00::/8"]);
    assert_eq!(verdict(&policy, None, &name("a"), "127.0.0.1"), Ok(()));
    assert_eq!(
        verdict(&policy, None, &name("a"), "::ffff:127.0.0.1"),
        Ok(())
    );
    assert_eq!(verdict(&policy, None, &name("a"), "fd00::1"), Ok(()));
    assert!(verdict(&policy, None, &name("a"), "::1").is_err());
    // Translated, it would leave by another path than the network that was opened.
    assert!(verdict(&policy, None, &name("a"), "64:ff9b::127.0.0.1").is_err());
}

#[test]
fn an_allow_rule_by_host_never_opens_a_private_address() {
    let mut policy = policy();
    policy.rules = vec![
        config::Rule {
            hosts: names(&["*.example.com"]),
            ..rule(true)
        },
        config::Rule {
            networks: nets(&["10.1.0.0/16"]),
            principals: names(&["alice"]),
            ..rule(true)
        },
    ];
    let host = name("www.example.com");
    assert_eq!(verdict(&policy, None, &host, "93.184.216.34"), Ok(()));
    assert!(verdict(&policy, None, &host, "10.1.0.1").is_err());
    assert!(verdict(&policy, Some("bob"), &host, "10.1.0.1").is_err());
    assert_eq!(verdict(&policy, Some("alice"), &host, "10.1.0.1"), Ok(()));
    assert!(verdict(&policy, Some("alice"), &host, "10.2.0.1").is_err());
}

#[test]
fn the_first_matching_rule_wins() {
    let mut policy = policy();
    policy.rules = vec![
        config::Rule {
            hosts: names(&["good.example.com"]),
            ..rule(true)
        },
        config::Rule {
            hosts: names(&["*.example.com"]),
            ..rule(false)
        },
    ];
    assert_eq!(
        verdict(&policy, None, &name("good.example.com"), "1.1.1.1"),
        Ok(())
    );
    assert_eq!(
        verdict(&policy, None, &name("BAD.example.com."), "1.1.1.1"),
        Err(Refusal::Rule)
    );
    assert_eq!(
        verdict(&policy, None, &name("example.org"), "1.1.1.1"),
        Ok(())
    );
}

#[test]
fn a_closing_deny_rule_turns_the_default_around() {
    let mut policy = policy();
    policy.rules = vec![
        config::Rule {
            networks: nets(&["1.1.1.0/24"]),
            ..rule(true)
        },
        rule(false),
    ];
    assert_eq!(
        verdict(&policy, None, &name("a.example"), "1.1.1.1"),
        Ok(())
    );
    assert_eq!(
        verdict(&policy, None, &name("a.example"), "8.8.8.8"),
        Err(Refusal::Address)
    );
    policy.rules.remove(0);
    assert_eq!(
        verdict(&policy, None, &name("a.example"), "1.1.1.1"),
        Err(Refusal::Rule)
    );
}

#[test]
fn a_rule_that_denies_networks_leaves_other_addresses_alone() {
    let mut policy = policy();
    policy.rules = vec![config::Rule {
        networks: nets(&["1.1.1.0/24"]),
        ..rule(false)
    }];
    let host = name("a.example");
    assert!(verdict(&policy, None, &host, "1.1.1.1").is_err());
    assert!(verdict(&policy, None, &host, "64:ff9b::1.1.1.1").is_err());
    assert_eq!(verdict(&policy, None, &host, "1.1.2.1"), Ok(()));
}

#[test]
fn conditions_are_anded_and_lists_ored() {
    let mut policy = policy();
    policy.rules = vec![config::Rule {
        principals: names(&["alice", "carol"]),
        ports: vec![(443, 443), (8000, 8999)],
        protocols: names(&["connect-tcp"]),
        ..rule(false)
    }];
    let ruleset = Arc::new(Ruleset::compile(&policy));
    let refused = |principal, protocol, port| {
        ruleset
            .before_dns(principal, protocol, &name("x.example"), port)
            .is_err()
    };
    assert!(refused(Some("alice"), "connect-tcp", 443));
    assert!(refused(Some("carol"), "connect-tcp", 8000));
    assert!(refused(Some("carol"), "connect-tcp", 8999));
    assert!(!refused(Some("carol"), "connect-tcp", 9000));
    assert!(!refused(Some("bob"), "connect-tcp", 443));
    assert!(!refused(None, "connect-tcp", 443));
    assert!(!refused(Some("alice"), "connect", 443));
}

#[test]
fn address_literals_match_host_patterns_in_one_spelling() {
    let mut policy = policy();
    policy.rules = vec![config::Rule {
        hosts: names(&["192.0.2.1", "2606:4700::1111"]),
        ..rule(false)
    }];
    let ruleset = Arc::new(Ruleset::compile(&policy));
    for text in ["192.0.2.1", "::ffff:192.0.2.1", "2606:4700:0:0::1111"] {
        let refused = ruleset.before_dns(None, "connect", &Host::Ip(ip(text)), 443);
        assert_eq!(refused.unwrap_err(), Refusal::Rule, "{text}");
    }
}

#[test]
fn the_unspecified_address_is_no_way_to_this_machine() {
    let mut policy = policy();
    policy.allow_networks = nets(&["0.0.0.0/0", "::/0"]);
    policy.deny_networks = nets(&["127.0.0.0/8", "::1/128"]);
    policy.rules = vec![config::Rule {
        networks: nets(&["0.0.0.0/0", "::/0"]),
        ..rule(true)
    }];
    for text in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
        let verdict = verdict(&policy, None, &Host::Ip(ip(text)), text);
        assert_eq!(verdict, Err(Refusal::Address), "{text}");
    }
    assert_eq!(
        verdict(&policy, None, &Host::Ip(ip("10.0.0.1")), "10.0.0.1"),
        Ok(())
    );
}

#[test]
fn tunnels_to_any_peer_are_refused_where_no_peer_could_be_reached() {
    let verdict = |rules: Vec<config::Rule>| {
        let mut policy = policy();
        policy.rules = rules;
        Ruleset::compile(&policy).before_bind(Some("alice"), "connect-udp")
    };
    let of = |principal: &str, allow| config::Rule {
        principals: names(&[principal]),
        ..rule(allow)
    };
    let web = config::Rule {
        ports: vec![(443, 443)],
        ..rule(true)
    };
    let no_web = config::Rule {
        ports: vec![(443, 443)],
        ..rule(false)
    };
    assert_eq!(verdict(vec![]), Ok(()));
    assert_eq!(verdict(vec![of("bob", false)]), Ok(()));
    assert_eq!(verdict(vec![of("alice", false)]), Err(Refusal::Rule));
    assert_eq!(verdict(vec![web.clone(), rule(false)]), Ok(()));
    assert_eq!(verdict(vec![no_web.clone()]), Ok(()));
    assert_eq!(verdict(vec![no_web, rule(false), web]), Err(Refusal::Rule));
}
