//! Whose request it is, as far as the network can tell.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the client that sent a request: an extension of every
/// request.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// The address of a connection's other end.
    pub(super) fn of(peer: SocketAddr) -> Self {
        Self(peer.ip().to_canonical())
    }

    /// The address that the proxy at the connection's other end gives. That is
    /// the last one in the header: a proxy adds the address that it sees to
    /// what the client has sent, which may be a lie.
    pub(super) fn forwarded(headers: &HeaderMap) -> Option<Self> {
        let last = headers.get_all(&FORWARDED_FOR).iter().next_back()?;
        let last = last.to_str().ok()?.rsplit(',').next()?.trim();
        let bare = last.strip_prefix('[').and_then(|v6| v6.strip_suffix(']'));
        let address = bare
            .unwrap_or(last)
            .parse::<IpAddr>()
            .or_else(|_| last.parse::<SocketAddr>().map(|address| address.ip()))
            .ok()?;
        Some(Self(address.to_canonical()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_forwarded_address_counts() {
        let cases: &[(&[&str], Option<&str>)] = &[
            (&[], None),
            (&[""], None),
            (&["unknown"], None),
            (&["192.0.2.1"], Some("192.0.2.1")),
            (&["192.0.2.1, 192.0.2.2"], Some("192.0.2.2")),
            (&["192.0.2.1", "192.0.2.2,192.0.2.3"], Some("192.0.2.3")),
            (&["192.0.2.1, junk"], None),
            (&["192.0.2.1:4711"], Some("192.0.2.1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["[2001:db8::1]"], Some("2001:db8::1")),
            (&["[2001:db8::1]:4711"], Some("2001:db8::1")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1")),
        ];
        for (values, expected) in cases {
            let mut headers = HeaderMap::new();
            for value in *values {
                headers.append(&FORWARDED_FOR, value.parse().unwrap());
            }
            let expected = expected.map(|text| ClientAddress(text.parse().unwrap()));
            assert_eq!(ClientAddress::forwarded(&headers), expected, "{values:?}");
        }
    }

    #[test]
    fn mapped_address_is_the_one_it_maps() {
        let peer = "[::ffff:192.0.2.1]:80".parse().unwrap();
        assert_eq!(ClientAddress::of(peer).0.to_string(), "192.0.2.1");
    }
}
