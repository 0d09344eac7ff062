//! The election, part by part: the tables of client-go against the pure elector, the driver on a scripted store under
//! paused time, and any number of candidates against chance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "election/campaign.rs"]
mod campaign;
#[path = "election/world.rs"]
mod world;
