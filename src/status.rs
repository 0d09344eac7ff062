//! What is told to the outside.

pub mod events;
pub mod ingress;
pub mod publish;
