//! The names of the internet: addresses from the system's resolver, service records from its name servers.
//!
//! The system's own resolver is asked for addresses, so that what an operator has set up there (`/etc/hosts`, a local
//! cache) holds; it cannot find service records. Both read their settings anew each time, and a name that appears later
//! is found.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{TokioResolver, proto::rr::RData};

use super::{Error, cache::Cache};
use crate::name::{ServiceRecord, service_names};

/// How long the addresses of a name may take to be found.
const ADDRESS_TIME: Duration = Duration::from_secs(10);
/// How long a name server may take to answer, and how often it is asked.
const SERVICE_TIME: Duration = Duration::from_secs(3);
const SERVICE_ATTEMPTS: usize = 2;
/// How long service records hold, and how long it holds that there are none.
const FOUND: Duration = Duration::from_mins(5);
const NOT_FOUND: Duration = Duration::from_mins(1);
/// How many service records are looked at.
const MAX_RECORDS: usize = 16;

/// Where names are looked up.
#[derive(Clone, Debug, Default)]
pub enum Names {
    /// Where the system does.
    #[default]
    System,
    /// Nowhere: these are all there are. For tests.
    Given {
        /// What there is for a host and a port.
        addresses: HashMap<(String, u16), Vec<SocketAddr>>,
        /// The service records by host.
        services: HashMap<String, Vec<ServiceRecord>>,
    },
}

/// The addresses of a host, which may itself be an address, with or without brackets.
pub(super) async fn addresses(
    names: &Names,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, Error> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    if let Names::Given { addresses, .. } = names {
        let found = addresses.get(&(bare.to_owned(), port)).cloned();
        return Ok(found.unwrap_or_default());
    }
    let lookup = tokio::time::timeout(ADDRESS_TIME, tokio::net::lookup_host((bare, port)));
    let found = lookup.await.map_err(|_| Error::TimedOut)?;
    let found =
        found.map_err(|error| Error::Unreachable(format!("cannot find {bare}: {error}")))?;
    Ok(found.collect())
}

/// The service records of hosts.
#[derive(Default)]
pub(super) struct Services(Cache<Vec<ServiceRecord>>);

impl Services {
    /// The service records of a host. A name server that fails has none to offer.
    pub(super) async fn of(&self, names: &Names, host: &str) -> Vec<ServiceRecord> {
        if let Names::Given { services, .. } = names {
            return services.get(host).cloned().unwrap_or_default();
        }
        let find = async |_| {
            for name in service_names(host) {
                let records = look_up(&name).await;
                if !records.is_empty() {
                    return (records, FOUND);
                }
            }
            (Vec::new(), NOT_FOUND)
        };
        self.0.get(host, find).await
    }
}

async fn look_up(name: &str) -> Vec<ServiceRecord> {
    let resolver = TokioResolver::builder_tokio().and_then(|mut builder| {
        let options = builder.options_mut();
        options.timeout = SERVICE_TIME;
        options.attempts = SERVICE_ATTEMPTS;
        builder.build()
    });
    let answer = match resolver {
        Ok(resolver) => resolver.srv_lookup(name).await,
        Err(error) => Err(error),
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(name, %error, "no service records");
            return Vec::new();
        }
    };
    let records = answer
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            // The root as target says that there is no such service.
            RData::SRV(record) if !record.target.is_root() => Some(ServiceRecord {
                priority: record.priority,
                weight: record.weight,
                host: record.target.to_utf8().trim_end_matches('.').to_owned(),
                port: record.port,
            }),
            _ => None,
        });
    records.take(MAX_RECORDS).collect()
}
