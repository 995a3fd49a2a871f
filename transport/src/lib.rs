//! Who is let in: `connections` accepts them, with TLS or without, and knows who is behind each; `pages` serves what people
//! and Prometheus read, `page_access` decides to whom, `recorder` is what it reads, `route` where others find this machine, `gpus` and `device_choice` on what a
//! worker trains, `duration` how times are typed. A crate of its own, as workers show themselves, too.

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

pub use connections::{Accepted, Connection, ConnectionLimits, Identity, Peer, connections, name_of};
pub use descriptors::raise_descriptor_limit;
pub use device_choice::DeviceChoice;
pub use duration::parse_duration;
pub use gpus::{Gpu, GpuFacts, MACHINE_ROOT, count_gpus, cpu_model};
pub use hangup::hangup_is_ignored;
pub use page_access::PageCookie;
pub use pages::{Guard, needs_guard, show};
pub use recorder::{Recorder, metrics_page, run_name};
pub use route::{address_towards, check_interface, interface_of};
