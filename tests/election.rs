//! The election, part by part: client-go's tables and our own rules against the pure elector, the driver on a server in
//! memory under paused time, and any number of candidates against chance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "election/campaign.rs"]
mod campaign;
#[path = "election/chance.rs"]
mod chance;
#[path = "election/rules.rs"]
mod rules;
#[path = "election/spread.rs"]
mod spread;
#[path = "election/stamps.rs"]
mod stamps;
#[path = "election/tables.rs"]
mod tables;
#[path = "election/world.rs"]
mod world;
