//! TCP and the others, as scripts: who sends what, and what becomes of it.

use super::*;

/// A line is "who flags: outcome state", flags as letters of S, A, F, R, P, U or "-".
fn play(script: &str) {
    let table = ConnTable::new(config(16));
    let mut lines = script.lines().map(str::trim).filter(|line| !line.is_empty());
    let tuple = tuple(ipproto::TCP, 1000);
    let first = lines.next().unwrap();
    assert!(matches!(first, "O S: open" | "O A: pickup" | "O FA: pickup"), "{first}");
    let (start, pickup) = if first == "O S: open" {
        (SYN, Pickup::No)
    } else if first == "O A: pickup" {
        (ACK, Pickup::Midstream)
    } else {
        (FIN | ACK, Pickup::Midstream)
    };
    let opening = Opening { owner: owner(1, 1), tcp_flags: start, pickup, outside: None };
    let conn = table.open(&tuple, opening, NO_LIMITS, Seconds(0)).unwrap().conn;
    for (number, line) in lines.enumerate() {
        let now = Seconds(number as u32 + 1);
        let before = table.stats(conn, now).unwrap();
        let (packet, expected) = line.split_once(": ").unwrap();
        let (who, letters) = packet.split_once(' ').unwrap();
        let way = if who == "O" { Way::Original } else { Way::Reply };
        let step = table.advance(conn, way, flags(letters), now);
        let after = table.stats(conn, now).unwrap();
        let seen = match step {
            Step::Gone => "anew".to_owned(),
            Step::Invalid => "invalid".to_owned(),
            Step::Live { settled } => {
                assert_eq!(settled, after.state.name() == "established", "{line}\nof {script}");
                let passed = after == before && before.idle > Seconds(0);
                format!("{}{}", if passed { "pass " } else { "" }, after.state)
            }
        };
        assert_eq!(seen, expected, "{line}\nof {script}");
        if step == Step::Gone || step == Step::Invalid {
            assert_eq!(after, before, "{line}\nof {script}");
        }
    }
}

fn flags(letters: &str) -> u8 {
    letters.chars().fold(0, |flags, letter| {
        flags
            | match letter {
                'S' => SYN,
                'A' => ACK,
                'F' => FIN,
                'R' => RST,
                'P' => PSH,
                'U' => URG,
                '-' => 0,
                other => panic!("no flag {other}"),
            }
    })
}

#[test]
fn handshake_data_and_close_go_through_all_states() {
    play(
        "O S: open
         R SA: syn-recv
         O A: established
         O PA: established
         R PA: established
         O FA: fin-wait
         R A: fin-wait
         R PA: fin-wait
         R FA: time-wait
         O A: time-wait",
    );
    play("O S: open\n R SA: syn-recv\n O A: established\n R FA: fin-wait\n O FA: time-wait");
}

#[test]
fn handshake_segments_may_be_sent_again() {
    play(
        "O S: open
         O S: syn-sent
         R SA: syn-recv
         O S: syn-recv
         R SA: syn-recv
         O A: established
         R SA: pass established
         O A: established",
    );
}

#[test]
fn what_cannot_come_before_the_handshake_is_invalid() {
    play(
        "O S: open
         R A: invalid
         R PA: invalid
         R FA: invalid
         O A: invalid
         O PA: invalid
         O FA: invalid
         O SA: invalid
         R SA: syn-recv
         O SA: invalid
         R S: invalid
         O A: established
         O SA: invalid",
    );
}

#[test]
fn flags_that_only_scanners_send_are_invalid_in_every_state() {
    let bad = ["-", "F", "P", "U", "FPU", "SF", "SR", "SFA", "SRA", "SAFRPU"];
    let states = [
        "",
        "R S: syn-both",
        "R SA: syn-recv",
        "R SA: syn-recv\nO A: established",
        "R SA: syn-recv\nO FA: fin-wait",
        "R SA: syn-recv\nO FA: fin-wait\nR FA: time-wait",
        "R RA: closed",
    ];
    for state in states {
        for flags in bad {
            play(&format!("O S: open\n{state}\nO {flags}: invalid\nR {flags}: invalid"));
        }
    }
}

#[test]
fn data_before_the_last_ack_of_the_handshake_passes_but_establishes_nothing() {
    play("O S: open\n R SA: syn-recv\n R PA: syn-recv\n O PA: established");
}

#[test]
fn both_sides_may_open_at_once() {
    play(
        "O S: open
         R S: syn-both
         O S: syn-both
         R A: invalid
         O FA: invalid
         O SA: syn-both
         O SA: syn-both
         O A: syn-both
         R SA: established
         O SA: pass established
         R SA: pass established
         O FA: fin-wait",
    );
    play("O S: open\n R S: syn-both\n R SA: syn-both\n O A: established");
    play("O S: open\n R S: syn-both\n R SA: syn-both\n O SA: established");
    play("O S: open\n R S: syn-both\n O SA: syn-both\n R A: established");
}

#[test]
fn a_syn_within_a_connection_passes_and_changes_nothing() {
    play(
        "O S: open
         R SA: syn-recv
         O A: established
         O S: pass established
         R S: pass established
         R A: established
         R FA: fin-wait
         O S: pass fin-wait
         R S: pass fin-wait",
    );
}

#[test]
fn a_reset_closes_in_every_state_but_time_wait() {
    play("O S: open\n R RA: closed\n R SA: pass closed\n O SA: invalid");
    play("O S: open\n O R: closed");
    play("O S: open\n R S: syn-both\n R R: closed");
    play("O S: open\n R SA: syn-recv\n O R: closed\n R A: closed\n O FA: closed\n R RA: closed");
    play("O S: open\n R SA: syn-recv\n O A: established\n R RA: closed");
    play("O S: open\n R SA: syn-recv\n O FA: fin-wait\n R R: closed");
    play("O S: open\n R SA: syn-recv\n O FA: fin-wait\n R FA: time-wait\n R R: time-wait");
}

#[test]
fn a_fin_may_end_a_handshake() {
    play("O S: open\n R SA: syn-recv\n O FA: fin-wait\n O FA: fin-wait\n R FA: time-wait");
    play("O S: open\n R SA: syn-recv\n R FA: fin-wait\n O A: fin-wait\n O FA: time-wait");
}

#[test]
fn a_syn_after_the_end_begins_anew() {
    play("O S: open\n R RA: closed\n O S: anew\n R S: anew");
    play("O S: open\n R SA: syn-recv\n O FA: fin-wait\n R FA: time-wait\n O S: anew\n R S: anew");
}

#[test]
fn a_connection_may_be_picked_up_in_the_middle() {
    play("O A: pickup\n R A: established\n R FA: fin-wait\n O FA: time-wait");
    play("O FA: pickup\n R A: fin-wait\n R FA: time-wait");
}

#[test]
fn only_a_syn_opens_tcp_unless_midstream_pickup_is_allowed() {
    let table = ConnTable::new(config(16));
    let tuple = tuple(ipproto::TCP, 1);
    for letters in ["A", "PA", "FA", "SA", "R", "RA", "SF", "-"] {
        let opening = opening(owner(1, 1), flags(letters));
        let refused = table.open(&tuple, opening, NO_LIMITS, Seconds(0));
        assert_eq!(refused, Err(Refused::NotAnOpening), "{letters}");
    }
    for letters in ["SA", "R", "RA", "SF", "-"] {
        let (tcp_flags, pickup) = (flags(letters), Pickup::Midstream);
        let opening = Opening { owner: owner(1, 1), tcp_flags, pickup, outside: None };
        let refused = table.open(&tuple, opening, NO_LIMITS, Seconds(0));
        assert_eq!(refused, Err(Refused::NotAnOpening), "{letters}");
    }
    let counts = ConnCounts { not_an_opening: 13, ..ConnCounts::default() };
    assert_eq!(table.counts(), counts);
}

#[test]
fn other_protocols_are_half_open_until_a_reply() {
    for proto in [ipproto::UDP, ipproto::ICMP, ipproto::ICMPV6, 132] {
        let table = ConnTable::new(config(16));
        let conn = open(&table, &tuple(proto, 1), 0).unwrap().conn;
        let state =
            || (table.stats(conn, Seconds(0)).unwrap().state.name(), table.counts().half_open);
        assert_eq!(state(), ("unreplied", 1));
        let live = Step::Live { settled: true };
        assert_eq!(table.advance(conn, Way::Original, 0, Seconds(0)), live);
        assert_eq!(state(), ("unreplied", 1));
        assert_eq!(table.advance(conn, Way::Reply, SYN | FIN, Seconds(0)), live);
        assert_eq!(state(), ("replied", 0));
        assert_eq!(table.advance(conn, Way::Original, 0, Seconds(0)), live);
        assert_eq!(state(), ("replied", 0));
    }
}
