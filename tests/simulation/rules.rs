//! The rules of a fence as the simulation reads them: what `tests/fence.rs` shows in a real kernel holds here too.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use wirevip::clock::TokioClock;
use wirevip::fence;
use wirevip::ruleset::model::Hook;
use wirevip::ruleset::testing::{FakeFirewall, Packet};
use wirevip::ruleset::{Firewall, Transaction, fence_table};
use wirevip::secret::TunnelName;

use crate::weather::ms;
use crate::wireguard::{Content, Message};
use crate::world::PORT;

struct World {
    tunnel: TunnelName,
    firewall: FakeFirewall,
}

/// What became of what the pod said.
#[derive(PartialEq, Eq, Debug)]
enum Fate {
    Passed,
    Defused,
    Refused,
}
use Fate::{Defused, Passed, Refused};

/// Of another pod's session.
const OTHERS: u32 = 0xffff;

impl World {
    fn new() -> Self {
        let tunnel = TunnelName::new("wg0").unwrap();
        let mut world = Self { firewall: FakeFirewall::new(Arc::new(TokioClock::new())), tunnel };
        world.commit(&fence::raise(&world.tunnel, PORT));
        world
    }

    /// In hold, with a session of this index.
    fn holding(mine: u32) -> Self {
        let mut world = Self::new();
        world.lead();
        assert_eq!(world.says(call(mine)), Passed);
        world.commit(&fence::hold(&world.tunnel, PORT));
        world
    }

    fn lead(&mut self) {
        self.commit(&fence::lead(&self.tunnel, PORT, ms(3000), true).unwrap());
    }

    fn commit(&mut self, transaction: &Transaction) {
        self.firewall.commit(transaction).unwrap();
    }

    fn says(&self, message: Message) -> Fate {
        let (pod, hub) = addresses();
        let mut packet = Packet::new(pod, hub, &message.bytes());
        match self.firewall.passes(&fence_table(&self.tunnel), Hook::Output, &mut packet) {
            false => Refused,
            true if Message::read(packet.message()) == Some(message) => Passed,
            true => {
                assert_eq!(packet.message()[0], 0);
                Defused
            }
        }
    }

    fn hears(&self, message: Message) -> bool {
        let (pod, hub) = addresses();
        self.firewall.passes(&fence_table(&self.tunnel), Hook::Input, &mut Packet::new(hub, pod, &message.bytes()))
    }
}

fn addresses() -> (SocketAddrV4, SocketAddrV4) {
    (SocketAddrV4::new([192, 0, 2, 2].into(), PORT), SocketAddrV4::new([192, 0, 2, 1].into(), PORT))
}

fn call(sender: u32) -> Message {
    Message::Call { sender }
}

fn data(receiver: u32) -> Message {
    Message::Data { receiver, content: Content::Answer }
}

fn keepalive(receiver: u32) -> Message {
    Message::Data { receiver, content: Content::Keepalive }
}

#[tokio::test(start_paused = true)]
async fn a_leader_says_and_hears_all_and_a_closed_fence_nothing() {
    let mut world = World::new();
    let all = [call(1), Message::Response { sender: 1, receiver: 2 }, data(3), keepalive(3)];
    assert!(all.iter().all(|message| world.says(*message) == Refused && !world.hears(*message)));
    world.lead();
    assert!(all.iter().all(|message| world.says(*message) == Passed && world.hears(*message)));
    tokio::time::advance(ms(3000)).await;
    assert_eq!(world.says(call(1)), Defused, "it holds by itself");
    world.commit(&fence::close(&world.tunnel));
    assert!(all.iter().all(|message| world.says(*message) == Refused && !world.hears(*message)));
}

#[tokio::test(start_paused = true)]
async fn who_holds_answers_for_a_minute_what_came_in_its_own_session_and_begins_nothing() {
    let world = World::holding(0xa1);
    assert_eq!(world.says(data(7)), Refused, "nobody asked");
    assert!(world.hears(data(0xa1)));
    assert_eq!([world.says(data(7)), world.says(call(0xa2)), world.says(call(0xa3))], [Passed, Defused, Refused]);
    tokio::time::advance(ms(20_000)).await;
    assert_eq!(world.says(call(0xa2)), Defused, "three a minute");
    tokio::time::advance(ms(40_000)).await;
    assert_eq!([world.says(data(7)), world.says(keepalive(7))], [Refused, Defused]);
    assert!(world.hears(call(9)), "the hub calls");
    assert_eq!(world.says(Message::Response { sender: 0xa4, receiver: 9 }), Passed);
}

#[tokio::test(start_paused = true)]
async fn who_holds_is_silent_while_the_hub_speaks_to_another_and_two_seconds_more() {
    let world = World::holding(0xa1);
    for foreign in [data(OTHERS), Message::Response { sender: 9, receiver: OTHERS }] {
        assert!(world.hears(data(0xa1)));
        assert_eq!(world.says(data(7)), Passed);
        if let Message::Response { .. } = foreign {
            assert!(world.hears(foreign));
            assert_eq!(world.says(data(7)), Passed, "one response may have lost its way");
        }
        assert!(world.hears(foreign));
        tokio::time::advance(Duration::from_millis(1999)).await;
        assert!(world.hears(data(0xa1)), "too soon to count");
        assert_eq!(world.says(data(7)), Refused, "after {foreign:?}");
        tokio::time::advance(ms(1)).await;
        assert_eq!(world.says(data(7)), Refused, "not spoken to yet");
    }
    assert!(world.hears(data(0xa1)));
    assert_eq!(world.says(data(7)), Passed);
}
