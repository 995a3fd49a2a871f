//! Transport of both programs, a crate of its own since workers serve pages, too.
//!
//! - `connections` accepts connections, with TLS or without, and identifies the peer of each.
//! - `pages` serves HTTP pages, `page_access` decides to which clients.
//! - `recorder` records the metrics.
//! - `route` finds the addresses of this machine.
//! - `gpus` and `device_choice` find the device that a worker trains on.
//! - `duration` parses times.

mod connections;
mod descriptors;
mod device_choice;
mod duration;
mod gpus;
mod hangup;
mod limit;
mod page_access;
mod pages;
mod recorder;
mod route;

pub use connections::{
    Accepted, Connection, ConnectionLimits, Peer, PeerIdentity, connections, name_of,
};
pub use descriptors::raise_descriptor_limit;
pub use device_choice::DeviceChoice;
pub use duration::parse_duration;
pub use gpus::{Gpu, GpuFacts, MACHINE_ROOT, count_gpus, cpu_model};
pub use hangup::hangup_is_ignored;
pub use page_access::PageCookie;
pub use pages::{Guard, needs_guard, show};
pub use recorder::{Recorder, metrics_page, run_name};
pub use route::{address_towards, check_interface, interface_of};
