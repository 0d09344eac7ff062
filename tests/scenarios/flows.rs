//! What becomes of flows when their backends change: TCP and SCTP go on, UDP moves at once.

use anyhow::Result;
use lab::api::{Kind, Resource};
use lab::client::Proto;
use lab::clock::{now, until};
use lab::download::Download;
use lab::objects::Condition;
use lab::probe::{Probe, ProbeKind};
use lab::sctp::{Chunk, Endpoint, Packet};
use lab::{objects, play};

use crate::{SOON, spec};

crate::scenarios!(
    udp_moves_at_once_from_a_backend_that_goes_and_tcp_is_not_cut,
    sctp_is_forwarded_and_not_cut_by_an_endpoint_change,
);

fn udp_moves_at_once_from_a_backend_that_goes_and_tcp_is_not_cut(api: Kind) -> Result<()> {
    play(spec(api).without_web(), |world| {
        let web = world.serve("web", 8080)?;
        let [b0, b1] = [0, 1].map(|i| (world.backends[i].address, Condition::Ready));
        world.endpoints(&web, &[b0])?;
        world.client.until(Proto::Udp, world.web(), SOON, |a| a.name() == Some("b0"))?;
        let flow = world.client.flow(world.web())?;
        // What one flow hears: a name, or that it is refused.
        let hears = |wanted: Result<&str, ()>| {
            until(&format!("{wanted:?} in the same flow"), SOON, || {
                let mut buffer = [0; 64];
                let heard = flow.send(b"who").and_then(|_| flow.recv(&mut buffer));
                let name = heard.as_ref().map(|length| String::from_utf8_lossy(&buffer[..*length]).into_owned());
                Ok(match (&name, wanted) {
                    (Ok(name), Ok(wanted)) => name.starts_with(wanted).then_some(()),
                    (Err(error), Err(())) => (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(()),
                    _ => None,
                })
            })
        };
        hears(Ok("b0"))?;
        let long = Probe::start(&world.topology.client, world.web(), ProbeKind::TcpLong)?;
        long.steady_since(now(), 100, SOON)?;
        let download = Download::start(&world.client.patient(SOON), world.web())?;
        let event = now();
        world.endpoints(&web, &[b1])?;
        hears(Ok("b1"))?;
        eprintln!("a UDP flow moved {:?} after its backend went", now() - event);
        world.endpoints(&web, &[])?;
        hears(Err(()))?;
        world.endpoints(&web, &[b0])?;
        hears(Ok("b0"))?;
        world.kube.delete(Resource::Service, "default", "web")?;
        hears(Err(()))?;
        // The backend answers on as long as it lives: neither its going from the slice nor the Service's cuts TCP.
        long.steady_since(now(), 100, SOON)?;
        assert_eq!(long.lost_since(event), 0, "a TCP connection was cut");
        download.goes_on(1_000_000, SOON)?;
        download.finish()?;
        Ok(())
    })
}

fn sctp_is_forwarded_and_not_cut_by_an_endpoint_change(api: Kind) -> Result<()> {
    play(spec(api).without_web(), |world| {
        let mut port = objects::port(Proto::Tcp, 132, 8080);
        port["protocol"] = "SCTP".into();
        let service = objects::service("sctp", "wg0", &[port]);
        world.kube.apply(Resource::Service, service.clone())?;
        let [b0, b1] = [0, 1].map(|i| &world.backends[i]);
        world.endpoints(&service, &[(b0.address, Condition::Ready)])?;
        let client = Endpoint::new(&world.topology.client)?;
        let (at_b0, at_b1) = (Endpoint::new(&b0.netns)?, Endpoint::new(&b1.netns)?);
        let (here, there) = (std::net::SocketAddrV4::new(lab::plan::CLIENT, 5000), world.hubs[0].public(132));
        let hello = |from| Packet { from, to: there, tag: 0, chunk: Chunk::Init(7) };
        let arrived = until("an INIT at the backend", SOON, || {
            client.send(&hello(here))?;
            Ok(at_b0.receive(std::time::Duration::from_millis(200)).ok())
        })?;
        assert_eq!((arrived.to, arrived.chunk, arrived.tag), (b0.socket(), Chunk::Init(7), 0));
        let answer = |tag, chunk| Packet { from: arrived.to, to: arrived.from, tag, chunk };
        let ask = |tag, chunk| Packet { from: here, to: there, tag, chunk };
        at_b0.send(&answer(7, Chunk::InitAck(9)))?;
        let heard = client.receive(SOON)?;
        assert_eq!((heard.from, heard.to, heard.tag, heard.chunk), (there, here, 7, Chunk::InitAck(9)));
        client.send(&ask(9, Chunk::CookieEcho))?;
        until("the third step", SOON, || Ok((at_b0.receive(SOON)?.chunk == Chunk::CookieEcho).then_some(())))?;
        at_b0.send(&answer(7, Chunk::CookieAck))?;
        until("the last step", SOON, || Ok((client.receive(SOON)?.chunk == Chunk::CookieAck).then_some(())))?;

        world.endpoints(&service, &[(b1.address, Condition::Ready)])?;
        let (new, mut number) = (std::net::SocketAddrV4::new(lab::plan::CLIENT, 0), 6000);
        until("new associations at the other backend", SOON, || {
            number += 1;
            client.send(&hello(std::net::SocketAddrV4::new(*new.ip(), number)))?;
            Ok(at_b1.receive(std::time::Duration::from_millis(200)).ok())
        })?;
        client.send(&ask(9, Chunk::Heartbeat))?;
        until("the old one's heartbeat", SOON, || Ok((at_b0.receive(SOON)?.chunk == Chunk::Heartbeat).then_some(())))?;
        at_b0.send(&answer(7, Chunk::Heartbeat))?;
        until("its answer", SOON, || Ok((client.receive(SOON)?.chunk == Chunk::Heartbeat).then_some(())))
    })
}
