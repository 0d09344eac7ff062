//! [`HostNet`] over rtnetlink: sees what is there, does what is missing, takes away what is ours.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, InetDevConf, LinkAttribute};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::rtnl::{Rtnl, SeenLink, gone_is_fine, to_io};
use super::{
    Alias, Device, Found, HostError, HostNet, LinkPlan, Nic, ROUTE_PROTOCOL, RULE_PRIORITY, Slot, Step, Swept, missing,
};
use crate::secret::TunnelName;

/// The pod's network, through the kernel.
#[derive(Clone, Debug)]
pub struct KernelNet {
    rtnl: Rtnl,
}

impl KernelNet {
    /// Works in the namespace in which `rtnl` was opened.
    pub fn new(rtnl: Rtnl) -> Self {
        Self { rtnl }
    }

    async fn routes(&self, version: IpVersion) -> Result<Vec<RouteMessage>, HostError> {
        let mut question = RouteMessage::default();
        question.header.address_family = match version {
            IpVersion::V4 => AddressFamily::Inet,
            IpVersion::V6 => AddressFamily::Inet6,
        };
        let answer = self.rtnl.list(|handle| handle.route().get(question).execute()).await;
        answer.map_err(failed("reading routes"))
    }

    async fn rules(&self, version: IpVersion) -> Result<Vec<RuleMessage>, HostError> {
        let answer = self.rtnl.list(|handle| handle.rule().get(version).execute()).await;
        answer.map_err(failed("reading routing rules"))
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, HostError> {
        let answer = self.rtnl.list(|handle| handle.address().get().execute()).await;
        answer.map_err(failed("reading addresses"))
    }

    /// The link of this plan, if it is there and ours.
    async fn link(&self, plan: &LinkPlan) -> Result<SeenLink, HostError> {
        let name = plan.name.as_str();
        let found = self.rtnl.link(name).await.map_err(failed("looking for the link"))?;
        found.filter(SeenLink::is_ours).ok_or_else(|| HostError::LinkLost { name: name.to_owned() })
    }

    /// Every step of which the kernel says that it is so.
    async fn seen(&self, plan: &LinkPlan, link: &SeenLink, nic: &SeenLink) -> Result<Vec<Step>, HostError> {
        let mut seen = vec![Step::Mtu(u16::try_from(link.mtu).unwrap_or(u16::MAX))];
        seen.extend((link.rp_filter == 2).then_some(Step::LooseReversePath));
        seen.extend(link.forwarding.then_some(Step::Forward(Device::Link)));
        seen.extend(nic.forwarding.then_some(Step::Forward(Device::Nic)));
        seen.extend(link.up.then_some(Step::Up));
        for address in self.addresses().await?.iter().filter(|address| address.header.index == link.index) {
            seen.extend(local_ipv4(address).map(Step::Address));
        }
        let table = plan.slot.routing_table();
        let routed = self.routes(IpVersion::V4).await?.iter().any(|route| {
            table_of_route(route) == table
                && route.header.destination_prefix_length == 0
                && route_link(route) == Some(link.index)
        });
        seen.extend(routed.then_some(Step::Route { table }));
        seen.extend(self.rules(IpVersion::V4).await?.iter().filter_map(step_of_rule));
        Ok(seen)
    }

    async fn missing(&self, plan: &LinkPlan) -> Result<(u32, u32, Vec<Step>), HostError> {
        let link = self.link(plan).await?;
        let nic = self.default_nic().await?;
        let seen = self.seen(plan, &link, &nic).await?;
        Ok((link.index, nic.index, missing(plan, &seen)))
    }

    async fn apply(&self, step: Step, link: u32, nic: u32) -> io::Result<()> {
        let index = |device| if device == Device::Link { link } else { nic };
        match step {
            Step::Mtu(mtu) => self.rtnl.change(link, vec![LinkAttribute::Mtu(u32::from(mtu))]).await,
            Step::Address(vip) => {
                self.rtnl.handle().address().add(link, vip.into(), 32).replace().execute().await.map_err(to_io)
            }
            Step::Forward(device) => self.set_conf(index(device), |conf| conf.forwarding = 1).await,
            Step::LooseReversePath => self.set_conf(link, |conf| conf.rp_filter = 2).await,
            Step::Up => self.rtnl.set_up(link).await,
            Step::Route { table } => {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .table_id(table)
                    .output_interface(link)
                    .scope(RouteScope::Link)
                    .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
                    .build();
                self.rtnl.handle().route().add(route).replace().execute().await.map_err(to_io)
            }
            Step::MarkRule { .. } | Step::SourceRule { .. } => self.add_rule(step).await,
        }
    }

    /// Per-interface settings by netlink, where `/proc/sys` is read-only. All of them set to something other than zero,
    /// which this form of the request leaves out.
    async fn set_conf(&self, index: u32, set: impl FnOnce(&mut InetDevConf)) -> io::Result<()> {
        let mut conf = InetDevConf::default();
        set(&mut conf);
        let family = AfSpecUnspec::Inet(vec![AfSpecInet::DevConfRequest(conf)]);
        self.rtnl.change(index, vec![LinkAttribute::AfSpecUnspec(vec![family])]).await
    }

    async fn add_rule(&self, step: Step) -> io::Result<()> {
        let Some(rule) = rule_of_step(step) else { return Ok(()) };
        let mut request = self.rtnl.handle().rule().add();
        *request.message_mut() = rule;
        match request.execute().await.map_err(to_io) {
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EEXIST as i32) => Ok(()),
            other => other,
        }
    }

    async fn default_nic(&self) -> Result<SeenLink, HostError> {
        let mut routes = self.routes(IpVersion::V4).await?;
        routes.extend(self.routes(IpVersion::V6).await?);
        // IPv4 first, then the smallest metric, as the kernel chooses.
        let index = routes
            .iter()
            .filter(|route| {
                route.header.destination_prefix_length == 0
                    && table_of_route(route) == u32::from(RouteHeader::RT_TABLE_MAIN)
                    && route.header.kind == RouteType::Unicast
            })
            .filter_map(|route| {
                Some((route.header.address_family != AddressFamily::Inet, metric(route), route_link(route)?))
            })
            .min()
            .map(|(_, _, index)| index)
            .ok_or(HostError::NoNic)?;
        let links = self.rtnl.links().await.map_err(failed("reading links"))?;
        links.into_iter().find(|link| link.index == index).ok_or(HostError::NoNic)
    }

    /// Removes a link of this slot's to which somebody gave another name than the tunnel's: it would speak on.
    async fn remove_renamed(&self, tunnel: &TunnelName, slot: Slot, errors: &mut Vec<HostError>) {
        let links = collect(self.rtnl.links().await.map_err(failed("reading links")), errors);
        let of_slot = |link: &SeenLink| Alias::parse(&link.alias).is_some_and(|alias| alias.slot() == slot);
        for link in links.iter().filter(|link| link.name != tunnel.as_str() && of_slot(link)) {
            count(self.rtnl.delete(link.index).await, "removing a link that was renamed", errors);
        }
    }

    /// Removes all rules and routes that fit, whatever fails on the way.
    async fn remove(
        &self,
        fits_rule: impl Fn(&RuleMessage) -> bool,
        fits_route: impl Fn(&RouteMessage) -> bool,
        errors: &mut Vec<HostError>,
    ) -> (usize, usize) {
        let (mut rules, mut routes) = (0, 0);
        for version in [IpVersion::V4, IpVersion::V6] {
            for rule in collect(self.rules(version.clone()).await, errors).into_iter().filter(&fits_rule) {
                let removed = self.rtnl.handle().rule().del(rule).execute().await.map_err(to_io);
                rules += count(gone_is_fine(removed), "removing a routing rule", errors);
            }
            for route in collect(self.routes(version).await, errors).into_iter().filter(&fits_route) {
                let removed = self.rtnl.handle().route().del(route).execute().await.map_err(to_io);
                routes += count(gone_is_fine(removed), "removing a route", errors);
            }
        }
        (rules, routes)
    }
}

impl HostNet for KernelNet {
    async fn nic(&self) -> Result<Nic, HostError> {
        let SeenLink { index, name, mtu, .. } = self.default_nic().await?;
        let addresses: Vec<_> =
            self.addresses().await?.into_iter().filter(|address| address.header.index == index).collect();
        Ok(Nic {
            ipv4: addresses.iter().find_map(local_ipv4),
            ipv6: addresses.iter().any(|address| {
                address.header.family == AddressFamily::Inet6 && address.header.scope == AddressScope::Universe
            }),
            name,
            index,
            mtu,
        })
    }

    async fn found(&self) -> Result<Vec<Found>, HostError> {
        let links = self.rtnl.links().await.map_err(failed("reading links"))?;
        let serving = links.into_iter().filter(|link| link.wireguard && link.up);
        let found = serving.filter_map(|link| {
            let (name, alias) = TunnelName::new(&link.name).zip(Alias::parse(&link.alias))?;
            alias.transitions().map(|_| Found { name, alias })
        });
        Ok(found.collect())
    }

    async fn sweep(&self, but: &[Found]) -> Result<Swept, HostError> {
        let mut errors = Vec::new();
        let mut swept = Swept::default();
        let links = self.rtnl.links().await.map_err(failed("reading links"));
        let stays = |link: &SeenLink| but.iter().any(|found| found.name.as_str() == link.name);
        let kept = |table| but.iter().any(|found| found.alias.slot().routing_table() == table);
        for link in collect(links, &mut errors).into_iter().filter(|link| link.is_ours() && !stays(link)) {
            swept.links += count(self.rtnl.delete(link.index).await, "removing a link left behind", &mut errors);
        }
        let ours = RouteProtocol::Other(ROUTE_PROTOCOL);
        let rule = |rule: &RuleMessage| {
            !kept(table_of_rule(rule))
                && (Slot::owns_table(table_of_rule(rule)) || rule.attributes.contains(&RuleAttribute::Protocol(ours)))
        };
        let route = |route: &RouteMessage| {
            !kept(table_of_route(route)) && (Slot::owns_table(table_of_route(route)) || route.header.protocol == ours)
        };
        (swept.rules, swept.routes) = self.remove(rule, route, &mut errors).await;
        several(errors).map(|()| swept)
    }

    async fn discard(&self, found: &Found) -> Result<(), HostError> {
        let mut errors = Vec::new();
        let link = self.rtnl.link(found.name.as_str()).await.map_err(failed("looking for a link left behind"));
        let link = link.unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        if let Some(link) = link.filter(SeenLink::is_ours) {
            count(self.rtnl.delete(link.index).await, "removing a link left behind", &mut errors);
        }
        self.remove_renamed(&found.name, found.alias.slot(), &mut errors).await;
        let table = found.alias.slot().routing_table();
        self.remove(|rule| table_of_rule(rule) == table, |route| table_of_route(route) == table, &mut errors).await;
        several(errors)
    }

    async fn attach(&self, plan: &LinkPlan) -> Result<Vec<Step>, HostError> {
        let (link, nic, missing) = self.missing(plan).await?;
        for step in &missing {
            self.apply(*step, link, nic).await.map_err(|source| HostError::Failed {
                doing: format!("setting {step:?} for tunnel {}", plan.name),
                source,
            })?;
        }
        Ok(missing)
    }

    async fn drift(&self, plan: &LinkPlan) -> Result<Vec<Step>, HostError> {
        self.missing(plan).await.map(|(_, _, missing)| missing)
    }

    async fn probe(&self, plan: &LinkPlan) -> Result<(), HostError> {
        super::probe::send(plan).map_err(|source| HostError::Failed { doing: "probing the hub".to_owned(), source })
    }

    async fn detach(&self, plan: &LinkPlan) -> Result<(), HostError> {
        let table = plan.slot.routing_table();
        let mut errors = Vec::new();
        self.remove_renamed(&plan.name, plan.slot, &mut errors).await;
        self.remove(|rule| table_of_rule(rule) == table, |route| table_of_route(route) == table, &mut errors).await;
        // The addresses of a link go with it. Where it stays (a TUN that could not be closed), the VIP must not.
        if let Ok(link) = self.link(plan).await {
            for address in collect(self.addresses().await, &mut errors) {
                if address.header.index == link.index && local_ipv4(&address) == Some(plan.vip) {
                    let removed = self.rtnl.handle().address().del(address).execute().await.map_err(to_io);
                    count(gone_is_fine(removed), "removing the VIP", &mut errors);
                }
            }
        }
        several(errors)
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Failed { doing: doing.to_owned(), source }
}

fn several(mut errors: Vec<HostError>) -> Result<(), HostError> {
    match errors.pop() {
        None => Ok(()),
        Some(only) if errors.is_empty() => Err(only),
        Some(last) => {
            errors.push(last);
            Err(HostError::Several(errors))
        }
    }
}

fn collect<T>(result: Result<Vec<T>, HostError>, errors: &mut Vec<HostError>) -> Vec<T> {
    result.unwrap_or_else(|error| {
        errors.push(error);
        Vec::new()
    })
}

fn count(result: io::Result<()>, doing: &'static str, errors: &mut Vec<HostError>) -> usize {
    match result {
        Ok(()) => 1,
        Err(source) => {
            errors.push(failed(doing)(source));
            0
        }
    }
}

fn local_ipv4(address: &AddressMessage) -> Option<Ipv4Addr> {
    address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(local)) => Some(*local),
        _ => None,
    })
}

fn table_of_route(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(u32::from(route.header.table))
}

fn route_link(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        RouteAttribute::MultiPath(hops) => hops.first().map(|hop| hop.interface_index),
        _ => None,
    })
}

fn metric(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    named.unwrap_or(0)
}

fn table_of_rule(rule: &RuleMessage) -> u32 {
    let named = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    named.unwrap_or(u32::from(rule.header.table))
}

fn rule_of_step(step: Step) -> Option<RuleMessage> {
    let mut rule = RuleMessage::default();
    rule.header.family = AddressFamily::Inet;
    rule.header.action = RuleAction::ToTable;
    rule.attributes =
        vec![RuleAttribute::Priority(RULE_PRIORITY), RuleAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL))];
    let table = match step {
        Step::MarkRule { mark, table } => {
            rule.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(Slot::MARK_MASK)]);
            table
        }
        Step::SourceRule { source, table } => {
            rule.header.src_len = 32;
            rule.attributes.push(RuleAttribute::Source(source.into()));
            table
        }
        _ => return None,
    };
    rule.attributes.push(RuleAttribute::Table(table));
    Some(rule)
}

/// The inverse of [`rule_of_step`], for what the kernel tells.
fn step_of_rule(rule: &RuleMessage) -> Option<Step> {
    let table = table_of_rule(rule);
    let (mut mark, mut mask, mut source) = (None, None, None);
    if !rule.attributes.contains(&RuleAttribute::Priority(RULE_PRIORITY)) || rule.header.action != RuleAction::ToTable {
        return None;
    }
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = Some(*value),
            RuleAttribute::Source(IpAddr::V4(value)) => source = Some(*value),
            RuleAttribute::Table(_) | RuleAttribute::Priority(_) | RuleAttribute::Protocol(_) => {}
            // The kernel says -1 for "no such condition".
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => return None,
        }
    }
    match (mark, mask, source) {
        (Some(mark), Some(Slot::MARK_MASK), None) => Some(Step::MarkRule { mark, table }),
        (None, _, Some(source)) if rule.header.src_len == 32 => Some(Step::SourceRule { source, table }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_ours_is_known_again_and_a_rule_with_one_more_condition_is_not() {
        let steps = [
            Step::MarkRule { mark: 0x0003_0000, table: 0x7769_7003 },
            Step::SourceRule { source: Ipv4Addr::new(10, 99, 0, 2), table: 0x7769_7003 },
        ];
        for step in steps {
            let mut rule = rule_of_step(step).unwrap();
            assert_eq!(step_of_rule(&rule), Some(step));
            rule.attributes.push(RuleAttribute::Iifname("eth0".to_owned()));
            assert_eq!(step_of_rule(&rule), None, "a rule for eth0 alone does not do");
        }
        assert_eq!(rule_of_step(Step::Up), None);
    }
}
