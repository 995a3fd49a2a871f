//! Under which address other machines find this one.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};

/// The address from which this machine reaches another one, and so, most likely, that under which it is reached from
/// there. Nothing is sent.
///
/// # Errors
/// If the other one has no address, or there is no way to it.
pub fn address_towards(other: impl ToSocketAddrs) -> io::Result<IpAddr> {
    let to = other.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}
