//! Network namespaces, as machines of their own on one bridge. They need root and `ip`.

use std::process::Command;

/// Namespaces `thanos-NAME`, each with an address; gone when this is dropped.
pub struct Network {
    bridge: &'static str,
    names: Vec<&'static str>,
}

fn ip(arguments: &str) -> bool {
    Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .is_ok_and(|output| output.status.success())
}

impl Network {
    /// A bridge with the address `PREFIX.1`, and namespaces with `PREFIX.2` and so on; `None`: they
    /// cannot be made here.
    pub fn new(bridge: &'static str, prefix: &str, names: &[&'static str]) -> Option<Self> {
        let network = Self { bridge, names: names.into() };
        let made = ip(&format!("link add {bridge} type bridge"))
            && ip(&format!("addr add {prefix}.1/24 dev {bridge}"))
            && ip(&format!("link set {bridge} up"));
        let joined = |(index, name): (usize, &&str)| {
            // A link's name has at most 15 characters.
            let (space, near, host) =
                (format!("thanos-{name}"), format!("{bridge}-{index}"), index + 2);
            ip(&format!("netns add {space}"))
                && ip(&format!("link add {near} type veth peer name eth0 netns {space}"))
                && ip(&format!("link set {near} master {bridge} up"))
                && ip(&format!("-n {space} addr add {prefix}.{host}/24 dev eth0"))
                && ip(&format!("-n {space} link set eth0 up"))
                && ip(&format!("-n {space} link set lo up"))
        };
        (made && names.iter().enumerate().all(joined)).then_some(network)
    }

    /// # Panics
    /// If there is no such link.
    pub fn set_link(&self, name: &str, state: &str) {
        let index =
            self.names.iter().position(|known| *known == name).expect("one of the namespaces");
        assert!(
            ip(&format!("link set {}-{index} {state}", self.bridge)),
            "the link of {name} cannot be set {state}"
        );
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for (index, name) in self.names.iter().enumerate() {
            // A namespace lives on for minutes if a connection in it was cut off; its link need
            // not.
            ip(&format!("link del {}-{index}", self.bridge));
            ip(&format!("netns del thanos-{name}"));
        }
        ip(&format!("link del {}", self.bridge));
    }
}
