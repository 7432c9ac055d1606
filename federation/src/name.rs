//! From a server's name to where it is: the steps of "Resolving server names".
//!
//! Nothing here asks anybody. [`Step`] says what has to be looked up next, and whoever can look does.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#resolving-server-names>.

use std::net::IpAddr;

use ruma::{OwnedServerName, ServerName};

/// The port of servers that name none.
pub const DEFAULT_PORT: u16 = 8448;

/// What to do next to find a server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Step {
    /// Ask `https://<host>/.well-known/matrix/server`, and go on with [`Step::after_well_known`].
    WellKnown(OwnedServerName),
    /// Nothing more: the server is there.
    Found(Destination),
}

/// Where a server is, and as whom to address it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Destination {
    /// The value of the `Host` header.
    pub host_header: String,
    /// The name or the address that its certificate must be for; an address without brackets.
    pub tls_name: String,
    /// What to connect to.
    pub at: Place,
}

/// What to connect to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Place {
    /// This address and port.
    Address(IpAddr, u16),
    /// The addresses of a host name, and this port.
    Host(String, u16),
    /// What the service records of a host name tell, in the order of [`service_names`]; without any, the addresses of
    /// the host name itself and [`DEFAULT_PORT`].
    Service(String),
}

/// The names under which a host's service records are looked up: the second only if the first has none.
#[must_use]
pub fn service_names(host: &str) -> [String; 2] {
    [
        format!("_matrix-fed._tcp.{host}."),
        format!("_matrix._tcp.{host}."),
    ]
}

impl Step {
    /// The first step to find a server.
    #[must_use]
    pub fn first(name: &ServerName) -> Self {
        if name.is_ip_literal() || name.port().is_some() {
            Self::Found(Destination::of(name))
        } else {
            Self::WellKnown(name.to_owned())
        }
    }

    /// The step after `host` was asked whom it has delegated to. `delegated` is its `m.server`, or `None` if there is no
    /// valid answer.
    #[must_use]
    pub fn after_well_known(host: &ServerName, delegated: Option<&ServerName>) -> Self {
        Self::Found(Destination::of(delegated.unwrap_or(host)))
    }
}

impl Destination {
    /// Steps 1, 2 and 3.1 to 3.5 or 4 to 6: no further delegation is looked for.
    fn of(name: &ServerName) -> Self {
        let host = name.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let at = match (bare.parse::<IpAddr>(), name.port()) {
            (Ok(address), port) => Place::Address(address, port.unwrap_or(DEFAULT_PORT)),
            (Err(_), Some(port)) => Place::Host(host.to_owned(), port),
            (Err(_), None) => Place::Service(host.to_owned()),
        };
        Self {
            host_header: name.as_str().to_owned(),
            tls_name: bare.to_owned(),
            at,
        }
    }
}

/// One service record: a lower priority is tried first, and a higher weight more often.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceRecord {
    /// The priority.
    pub priority: u16,
    /// The weight among those of the same priority.
    pub weight: u16,
    /// The host.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Puts service records into the order in which they are to be tried (RFC 2782). `random` answers numbers from 0 to its
/// argument, both included.
#[must_use]
pub fn in_order(
    mut records: Vec<ServiceRecord>,
    mut random: impl FnMut(u32) -> u32,
) -> Vec<(String, u16)> {
    // Those of weight 0 come first, so that they have a small chance at all.
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|record| record.priority) {
        let peers = records
            .iter()
            .take_while(|record| record.priority == priority);
        let total = peers.map(|record| u32::from(record.weight)).sum();
        let chosen = random(total);
        let mut sum = 0;
        let at = records.iter().position(|record| {
            sum += u32::from(record.weight);
            sum >= chosen
        });
        let record = records.remove(at.unwrap_or(0));
        ordered.push((record.host, record.port));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> OwnedServerName {
        name.try_into().unwrap()
    }

    fn found(step: Step) -> (String, String, Place) {
        match step {
            Step::Found(it) => (it.host_header, it.tls_name, it.at),
            Step::WellKnown(host) => panic!("asks {host}"),
        }
    }

    fn address(address: &str, port: u16) -> Place {
        Place::Address(address.parse().unwrap(), port)
    }

    #[test]
    fn addresses_and_ports_are_taken_at_their_word() {
        let cases = [
            ("1.2.3.4", "1.2.3.4", address("1.2.3.4", 8448)),
            ("1.2.3.4:80", "1.2.3.4", address("1.2.3.4", 80)),
            ("[2001:db8::1]", "2001:db8::1", address("2001:db8::1", 8448)),
            (
                "[2001:db8::1]:80",
                "2001:db8::1",
                address("2001:db8::1", 80),
            ),
            (
                "a.example:80",
                "a.example",
                Place::Host("a.example".to_owned(), 80),
            ),
            (
                "a.example:8448",
                "a.example",
                Place::Host("a.example".to_owned(), 8448),
            ),
            ("hs1:1234", "hs1", Place::Host("hs1".to_owned(), 1234)),
        ];
        for (server, tls_name, at) in cases {
            let expected = (server.to_owned(), tls_name.to_owned(), at);
            assert_eq!(found(Step::first(&name(server))), expected, "{server}");
            // As the target of a delegation they mean the same.
            let delegated = Step::after_well_known(&name("other.example"), Some(&name(server)));
            assert_eq!(found(delegated), expected, "{server}");
        }
    }

    #[test]
    fn names_alone_are_asked_for_a_delegation() {
        let server = name("a.example");
        assert_eq!(Step::first(&server), Step::WellKnown(server.clone()));
        let service = |host: &str| {
            let host = host.to_owned();
            (host.clone(), host.clone(), Place::Service(host))
        };
        let alone = Step::after_well_known(&server, None);
        assert_eq!(found(alone), service("a.example"));
        // Who was delegated to is not asked again.
        let delegated = Step::after_well_known(&server, Some(&name("b.example")));
        assert_eq!(found(delegated), service("b.example"));
        let itself = Step::after_well_known(&server, Some(&server));
        assert_eq!(found(itself), service("a.example"));
    }

    #[test]
    fn the_registered_service_is_looked_up_first() {
        let expected = ["_matrix-fed._tcp.a.example.", "_matrix._tcp.a.example."];
        assert_eq!(service_names("a.example"), expected);
    }

    #[test]
    fn records_are_ordered_by_priority_and_drawn_by_weight() {
        let record = |priority, weight, host: &str| ServiceRecord {
            priority,
            weight,
            host: host.to_owned(),
            port: 1,
        };
        let records = vec![
            record(20, 0, "last"),
            record(10, 30, "heavy"),
            record(10, 0, "none"),
            record(10, 10, "light"),
        ];
        let hosts = |random: &mut dyn FnMut(u32) -> u32| -> Vec<String> {
            let ordered = in_order(records.clone(), random);
            ordered.into_iter().map(|(host, _)| host).collect()
        };
        assert_eq!(hosts(&mut |_| 0), ["none", "light", "heavy", "last"]);
        assert_eq!(
            hosts(&mut |total| total),
            ["heavy", "light", "none", "last"]
        );
        let mut asked = Vec::new();
        hosts(&mut |total| {
            asked.push(total);
            total.min(5)
        });
        assert_eq!(asked, [40, 30, 0, 0]);
        assert!(in_order(Vec::new(), |_| 0).is_empty());
    }
}
