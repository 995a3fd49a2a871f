//! Under which address other machines find this one, and which network interfaces it has.

use nix::ifaddrs::getifaddrs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};

/// The address from which this machine reaches another one, and so, most likely, that under which
/// it is reached from there. Nothing is sent.
///
/// # Errors
/// If the other one has no address, or there is no way to it.
pub fn address_towards(other: impl ToSocketAddrs) -> io::Result<IpAddr> {
    let to = other.to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// The network interface that has this address; `None`: none of this machine has it.
pub fn interface_of(address: IpAddr) -> Option<String> {
    let mut interfaces = getifaddrs().into_iter().flatten();
    let found = interfaces.find(|one| {
        let Some(has) = &one.address else { return false };
        let v4 = has.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or(has.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip()))) == Some(address)
    });
    Some(found?.interface_name)
}

/// Whether this machine has a network interface of this name.
///
/// # Errors
/// The names that it has.
pub fn check_interface(name: &str) -> Result<(), String> {
    let entries = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.iter().any(|known| known == name) { Ok(()) } else { Err(names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_the_interface_of_its_address() {
        assert_eq!(interface_of(Ipv4Addr::LOCALHOST.into()).as_deref(), Some("lo"));
        // TEST-NET-1, RFC 5737.
        assert_eq!(interface_of(Ipv4Addr::new(192, 0, 2, 1).into()), None);
    }
}
