use super::*;
use crate::record::{Entry, Packet};

/// A record from words `TIME:WHAT`, in milliseconds; WHAT is `L1` (node 1 writes the Lease), or packets: from node 1 to the
/// hub `1i` (initiation), `1r`, `1c`, `1d`, `1z` (defused); to node 1 `<1d`; to node 1 in node 2's session `<1d@2`.
/// Node `x` is a stranger.
fn record(hold: bool, script: &str) -> Record {
    let entries = script.split_whitespace().map(|word| {
        let (time, what) = word.split_once(':').unwrap();
        let at = Duration::from_millis(time.parse().unwrap());
        let what = match what.strip_prefix('L') {
            Some(node) => What::Lease(node.parse().ok()),
            None => match what.strip_prefix('<') {
                Some(packet) => What::FromHub(packet_of(packet, false)),
                None => What::ToHub(packet_of(what, true)),
            },
        };
        Entry { at, tunnel: 0, what }
    });
    Record { hold, detour: Duration::ZERO, entries: entries.collect() }
}

fn packet_of(word: &str, to_hub: bool) -> Packet {
    let (packet, session) = word.split_once('@').map_or((word, None), |(packet, node)| (packet, node.parse().ok()));
    let (who, kind) = packet.split_at(1);
    let index: u32 = who.parse().unwrap_or(99);
    let port = if who == "x" { 1024 } else { 20_000 + 100 * u16::try_from(index).unwrap() };
    let kind = match kind {
        "i" => Message::Initiation,
        "r" => Message::Response,
        "c" => Message::Cookie,
        "d" => Message::Data,
        _ => Message::Other(0),
    };
    let hubs = kind != Message::Initiation && !to_hub;
    Packet {
        peer: format!("203.0.113.1:{port}").parse().unwrap(),
        kind,
        length: 32,
        sender: (to_hub && matches!(kind, Message::Initiation | Message::Response)).then_some(index),
        receiver: hubs.then_some(session.unwrap_or(index)),
    }
}

/// Judges a script, with and without hold, and expects a fault that has these words; `""`: none.
#[track_caller]
fn expect(script: &str, without_hold: &str, with_hold: &str) {
    for (hold, words) in [(false, without_hold), (true, with_hold)] {
        let judgement = judge(&record(hold, script));
        let faults = judgement.faults();
        match words {
            "" => assert!(faults.is_empty(), "hold={hold}: {faults:#?}\n{}", judgement.story()),
            _ => {
                assert!(faults.iter().any(|fault| fault.contains(words)), "hold={hold}: {faults:#?}");
                assert!(judgement.story().contains("against the rules"));
            }
        }
    }
}

const BEGUN: &str = "0:L1 10:1i 11:<1r 12:1d 100:<1d 101:1d";

fn after(script: &str) -> String {
    format!("{BEGUN} {script}")
}

#[test]
fn one_speaker_and_clean_turns_are_as_they_may_be() {
    expect("", "", "");
    expect(BEGUN, "", "");
    expect(&after("900:L2 901:2i 902:<2r 903:2d 904:<2d"), "", "");
    // There and back again, each after a write of the Lease.
    let turns = "900:L2 901:2i 902:<2r 903:2d 904:L1 905:1i 906:<1r 907:1d 908:L2 909:2i 910:<2r 911:2d";
    expect(&after(turns), "", "");
    assert_eq!(judge(&record(false, &after(turns))).turns.len(), 4);
    // A leader that begins anew, and one that the hub calls.
    expect(&after("500:1i 501:<1r 502:1d 600:<1i 601:1r"), "", "");
    // The hub was restarted: nobody is told, and the leader calls again.
    expect(&after("5000:1i 6000:1i 6001:<1r 6002:1d"), "", "");
}

#[test]
fn packets_in_flight_are_allowed_and_no_later_ones_without_hold() {
    expect(&after("900:L2 901:2i 902:1d 903:<2r 911:1d 912:2d"), "", "");
    let late = "900:L2 901:2i 903:<2r 904:2d 913:1d";
    expect(&after(late), "node 1 was heard in the turn of node 2 for 12.0 ms", "");
    let mut slow = record(false, &after(late));
    slow.detour = Duration::from_millis(5);
    assert_eq!(judge(&slow).faults(), Vec::<String>::new());
}

#[test]
fn the_interval_and_what_was_said_in_it_are_named() {
    let judgement = judge(&record(false, &after("900:L2 901:2i 902:<2r 920:1d 930:1i 940:1r 950:2d")));
    let [together] = &judgement.together[..] else { panic!("{judgement:?}") };
    let (from, to) = (Duration::from_millis(901), Duration::from_millis(940));
    assert_eq!(
        (together.turn, together.beside, together.from, together.to),
        (Speaker::Node(2), Speaker::Node(1), from, to)
    );
    assert_eq!(together.packets, Count { initiations: 1, responses: 1, data: 1 });
}

#[test]
fn a_holder_may_answer_but_not_call() {
    let answers = "900:L2 901:2i 902:1d 903:<2r 904:2d 940:1d 941:2d 980:1r 981:2d";
    expect(&after(answers), "its turn was over", "");
    expect(&after("900:L2 901:2i 902:<2r 903:2d 950:1i"), "its turn was over", "it began a handshake");
}

#[test]
fn a_holder_answers_for_as_long_as_the_hub_spoke_to_it_lately() {
    let turn = "900:L2 901:2i 902:<2r 903:2d";
    expect(&after(&format!("{turn} 60099:1d")), "its turn was over", "");
    expect(&after(&format!("{turn} 60101:1d")), "its turn was over", "it answered nobody");
    // What the hub says in the successor's session is no word to the one before, wherever it goes.
    expect(&after(&format!("{turn} 30000:<1d@2 30001:2d 60101:1d")), "its turn was over", "it answered nobody");
}

#[test]
fn defused_packets_are_no_speech() {
    expect(&after("900:L2 901:2i 902:<2r 903:2d 20000:1z 40000:1z"), "", "");
    expect("0:1z 10:L2 11:2i 12:<2r 13:2d", "", "");
}

#[test]
fn the_hub_may_go_back_for_300_ms_and_no_longer() {
    let turn = "900:L2 901:2i 902:<2r 903:2d 904:<2d";
    let short = "925:1d 926:<1d@2 1000:<1d@2 1226:2d 1227:<2d";
    expect(&after(&format!("{turn} {short}")), "its turn was over", "");
    let long = "925:1d 926:<1d@2 1000:<1d@2 1227:2d 1228:<2d";
    let went_on = "the hub went on with one whose turn was over";
    expect(&after(&format!("{turn} {long}")), went_on, went_on);
    // The successor was heard, and the hub did not heed it.
    expect(&after(&format!("{turn} 925:1d 926:<1d 1000:2d 1300:<1d 1301:<2d")), went_on, went_on);
    // A handshake takes a round trip.
    let mut slow = record(true, &after(&format!("{turn} {long}")));
    slow.detour = Duration::from_millis(1);
    assert!(!judge(&slow).faults().iter().any(|fault| fault.contains(went_on)));
    // Two short ones are not a long one.
    let two = "925:1d 926:<1d@2 950:2d 2000:1d 2001:<1d@2 2050:2d 2051:<2d";
    expect(&after(&format!("{turn} {two}")), "its turn was over", "");
    assert_eq!(judge(&record(true, &after(&format!("{turn} {two}")))).returns.len(), 2);
    // It never comes home.
    expect(&after(&format!("{turn} 925:1d 926:<1d@2 1500:<1d@2")), went_on, went_on);
    // Until it has heard the successor it may go on: a first handshake can be lost.
    expect(&after("900:L2 901:2i 950:<1d 1500:<1d 2000:2i 2001:<2r 2002:2d"), "", "");
    // A cookie is no sign of anything.
    expect(&after(&format!("{turn} 910:1d 911:<1c 1500:<1c")), "", "");
}

#[test]
fn whoever_takes_a_turn_has_written_the_lease() {
    expect(&after("901:2i 902:<2r 903:2d"), "node 2 was heard in the turn of node 1", "it never took the Lease");
    // The Lease was another's since.
    let second = "900:L2 901:2i 902:<2r 903:2d 2000:1i 2001:<1r 2002:1d";
    expect(&after(second), "its turn was over", "it began a handshake");
    // Written by hand, or by another's elector: nobody's claim.
    expect(&after("900:Lx 901:2i 902:<2r"), "it never took the Lease", "it never took the Lease");
}

#[test]
fn a_stranger_with_the_key_is_caught_and_can_be_left_out() {
    let script = after("500:xi 501:<xr 502:xd 600:1d");
    expect(&script, "a stranger at 203.0.113.1:1024 was heard in the turn of node 1", "it never took the Lease");
    let judgement = judge(&record(false, &script));
    assert_eq!(judgement.faults_among_pods(), Vec::<String>::new());
    let both = judge(&record(false, &format!("{script} 900:L2 901:2i 902:<2r 950:1d")));
    assert_eq!((both.faults().len(), both.faults_among_pods().len()), (2, 1));
}

#[test]
fn tunnels_are_judged_apart() {
    let mut record = record(false, &after("900:L2"));
    let other = record.entries.clone().into_iter().map(|entry| Entry { tunnel: 1, ..entry });
    let other = other.map(|mut entry| {
        if let What::ToHub(packet) | What::FromHub(packet) = &mut entry.what {
            packet.peer = "203.0.113.1:20200".parse().unwrap();
        }
        entry
    });
    record.entries.extend(other.collect::<Vec<_>>());
    record.sort();
    let judgement = judge(&record);
    assert_eq!(judgement.faults(), Vec::<String>::new());
    assert_eq!(judgement.turns.iter().map(|turn| turn.tunnel).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn the_story_has_a_line_for_each_interval() {
    let script = after("900:L2 901:2i 902:1d 903:<2r 904:2d 905:<1d 906:2d 950:1d 951:2d");
    let story = judge(&record(false, &script)).story();
    let expected = "\
tunnel 0
        from           to      for (s)
    0.010000     0.101000     0.091000   node 1: 1 initiation, 2 packets of data
    0.901000     0.951000     0.050000   node 2: 1 initiation, 3 packets of data
    0.901000     0.950000     0.049000 ! node 1 beside node 2: 2 packets of data (its turn was over)
    0.905000     0.906000     0.001000   the hub back at node 1, not at node 2: 1 packets
2 turns; two heard together 1 times; the hub went back 1 times; 1 against the rules (!)
";
    assert_eq!(story, expected);
}
