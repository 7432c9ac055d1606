//! Which addresses this server connects to when others name them: none that are private, of the machine itself, or
//! reserved. Else whoever can make the server connect somewhere could reach what only its own network may.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), length)
}

const fn v6(a: u16, b: u16, c: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

/// The networks of IPv4 that no server of the public internet is in.
const DENIED_V4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 8),
    v4(10, 0, 0, 8),
    v4(100, 64, 0, 10),
    v4(127, 0, 0, 8),
    v4(169, 254, 0, 16),
    v4(172, 16, 0, 12),
    v4(192, 0, 0, 24),
    v4(192, 0, 2, 24),
    v4(192, 31, 196, 24),
    v4(192, 88, 99, 24),
    v4(192, 168, 0, 16),
    v4(198, 18, 0, 15),
    v4(198, 51, 100, 24),
    v4(203, 0, 113, 24),
    v4(224, 0, 0, 4),
    v4(240, 0, 0, 4),
];

/// The same for IPv6. IPv4 in IPv6 is looked at before, where a gateway may stand behind it.
const DENIED_V6: [Ipv6Net; 12] = [
    // Unspecified, loopback, and the old form of IPv4 in IPv6.
    v6(0, 0, 0, 96),
    // IPv4 translated by the network itself.
    v6(0x64, 0xff9b, 1, 48),
    // Discarded.
    v6(0x100, 0, 0, 64),
    // Teredo and other special purposes.
    v6(0x2001, 0, 0, 23),
    // Documentation.
    v6(0x2001, 0xdb8, 0, 32),
    v6(0x3fff, 0, 0, 20),
    // 6to4.
    v6(0x2002, 0, 0, 16),
    // Segment routing.
    v6(0x5f00, 0, 0, 16),
    // Unique local, link local, site local, multicast.
    v6(0xfc00, 0, 0, 7),
    v6(0xfe80, 0, 0, 10),
    v6(0xfec0, 0, 0, 10),
    v6(0xff00, 0, 0, 8),
];

/// NAT64: what is behind it is an address of IPv4, and on networks with IPv6 alone the way to all of these.
const NAT64: Ipv6Net = v6(0x64, 0xff9b, 0, 96);

/// The rule with its exceptions.
#[derive(Clone, Debug, Default)]
pub struct AddressPolicy {
    allowed: Vec<IpNet>,
}

impl AddressPolicy {
    /// The rule of this module, but for addresses in the `allowed` networks.
    #[must_use]
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Whether the server may connect to an address.
    #[must_use]
    pub fn allows(&self, address: IpAddr) -> bool {
        let meant = unwrap(address);
        if [address, meant]
            .iter()
            .any(|address| self.allowed.iter().any(|net| net.contains(address)))
        {
            return true;
        }
        match meant {
            IpAddr::V4(address) => !DENIED_V4.iter().any(|net| net.contains(&address)),
            IpAddr::V6(address) => !DENIED_V6.iter().any(|net| net.contains(&address)),
        }
    }
}

/// The address of IPv4 that an address of IPv6 stands for, if it does.
fn unwrap(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => {
            if let Some(mapped) = v6.to_ipv4_mapped() {
                return IpAddr::V4(mapped);
            }
            if NAT64.contains(&v6) {
                let [.., a, b, c, d] = v6.octets();
                return IpAddr::V4(Ipv4Addr::new(a, b, c, d));
            }
            address
        }
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_is_denied() {
        let policy = AddressPolicy::default();
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2002:0808:0808::1",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fdff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!policy.allows(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn what_is_public_is_allowed() {
        let policy = AddressPolicy::default();
        for address in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.0.1",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(policy.allows(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn exceptions_open_their_networks_alone() {
        let nets = ["127.0.0.0/8", "10.1.0.0/16", "fd00:1::/32"];
        let policy = AddressPolicy::new(nets.map(|net| net.parse().unwrap()).to_vec());
        let cases = [
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("fd00:1::5", true),
            ("fd00:2::5", false),
            ("::1", false),
            ("8.8.8.8", true),
        ];
        for (address, expected) in cases {
            assert_eq!(
                policy.allows(address.parse().unwrap()),
                expected,
                "{address}"
            );
        }
    }
}
