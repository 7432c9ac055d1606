//! The web beyond Matrix: pages and images to which people link. Whoever links decides where this server looks, so each
//! address is held against the rules of the settings, that of a redirect as well.

use std::sync::Arc;

use homing_federation::{
    address_policy::AddressPolicy,
    client::{self, Body, Guarded, Limits, Names},
};
use http::{Request, Response, Uri, header};
use quick_cache::{Weighter, sync::Cache};
use regex::RegexSet;
use serde_json::value::RawValue;
use tokio::{sync::Semaphore, time::Instant};
use url::{Host, Url};

use crate::{
    config::Config,
    error::Error,
    federation::{self, USER_AGENT},
    flights::Flights,
    storage::UserNid,
    turns::FewTurns,
};

/// The longest address that is looked at, in bytes.
const LONGEST: usize = 4096;
/// How many redirects are followed.
const REDIRECTS: usize = 5;
/// How many previews are made at the same time, and how many of them for one user.
const PLACES: usize = 16;
const PLACES_OF_ONE: usize = 4;
/// How many previews are kept, and how many bytes they have together at most.
const PREVIEWS: usize = 4096;
const PREVIEW_BYTES: u64 = 16 << 20;

/// Why there is nothing to be shown of an address.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The settings do not want it to be asked for, or it is an address of a private network.
    #[error("this server does not look at {0}")]
    Denied(String),
    /// It could not be had.
    #[error("{0}")]
    Unreachable(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match &failure {
            Failure::Denied(_) => Self::forbidden(failure.to_string()),
            Failure::Unreachable(_) => Self::unanswered(failure.to_string()),
        }
    }
}

/// The settings of previews cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`url_previews` cannot be used: {0}")]
pub struct Unusable(String);

impl Unusable {
    fn new(cause: impl std::fmt::Display) -> Self {
        Self(cause.to_string())
    }
}

/// What is known of an address.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Until when, in milliseconds since 1970.
    pub until: i64,
    /// What clients are answered, as JSON; or why not.
    pub answer: Result<Arc<RawValue>, Failure>,
    /// The media of the image in it.
    pub image: Option<String>,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<String, Preview> for ByBytes {
    fn weight(&self, address: &String, preview: &Preview) -> u64 {
        let answer = preview.answer.as_ref();
        let answer = answer.map_or(0, |answer| answer.get().len());
        (256 + address.len() + answer) as u64
    }
}

/// The client for the web, and what memory holds of it.
#[derive(Debug)]
pub struct Web {
    /// There is none if the settings want no previews.
    http: Option<Guarded>,
    denied_hosts: Vec<Host>,
    denied_urls: RegexSet,
    /// What is known of addresses.
    previews: Cache<String, Preview, ByBytes>,
    /// The addresses that are being looked at.
    pub flights: Flights<String>,
    /// Room for pages being looked at.
    pub places: Arc<Semaphore>,
    /// The same for each user.
    pub places_of: FewTurns<UserNid>,
}

impl Web {
    /// The client that the settings want.
    ///
    /// # Errors
    /// If the settings cannot be used.
    pub fn new(config: &Config) -> Result<Self, Unusable> {
        let settings = &config.url_previews;
        let http = if settings.enabled {
            let policy = AddressPolicy::new(settings.allow_addresses.clone());
            let authorities = federation::authorities(config).map_err(Unusable::new)?;
            let http = Guarded::for_pages(policy, Names::System, authorities, USER_AGENT);
            Some(http.map_err(Unusable::new)?)
        } else {
            None
        };
        let hosts = settings.deny_hosts.iter();
        let hosts: Result<Vec<_>, _> = hosts.map(|host| Host::parse(host)).collect();
        Ok(Self {
            http,
            denied_hosts: hosts.map_err(Unusable::new)?,
            denied_urls: settings.denied_urls().map_err(Unusable::new)?,
            previews: Cache::with_weighter(PREVIEWS, PREVIEW_BYTES, ByBytes),
            flights: Flights::default(),
            places: Arc::new(Semaphore::new(PLACES)),
            places_of: FewTurns::new(PLACES_OF_ONE),
        })
    }

    /// What is known of an address at this time.
    #[must_use]
    pub fn known(&self, address: &Url, now: i64) -> Option<Preview> {
        let known = self.previews.get(address.as_str())?;
        (known.until > now).then_some(known)
    }

    /// Keeps what was found out of an address.
    pub fn keep(&self, address: &Url, preview: Preview) {
        self.previews.insert(address.as_str().to_owned(), preview);
    }

    /// Makes sure that an address is one of the web, and that nothing in the settings is against it.
    ///
    /// # Errors
    /// [`Failure::Denied`] if not.
    pub fn expect_allowed(&self, address: &Url) -> Result<(), Failure> {
        let Some(host) = address.host().filter(|_| is_of_web(address)) else {
            return Err(Failure::Denied("such addresses".to_owned()));
        };
        let mut denied = self.denied_hosts.iter();
        if denied.any(|denied| is_below(&host, denied))
            || self.denied_urls.is_match(address.as_str())
        {
            return Err(Failure::Denied(host.to_string()));
        }
        Ok(())
    }

    /// Gets what is at an address, following redirects; answers too where it was. What is compressed is not wanted: it
    /// could be any size.
    ///
    /// # Errors
    /// If there is no good answer within the limits.
    pub async fn get(
        &self,
        address: &Url,
        accept: &'static str,
        limits: Limits,
    ) -> Result<(Url, Response<Body>), Failure> {
        let Some(http) = &self.http else {
            return Err(Failure::Denied("other sites".to_owned()));
        };
        let deadline = Instant::now() + limits.time;
        let mut address = address.clone();
        address.set_fragment(None);
        for _ in 0..=REDIRECTS {
            self.expect_allowed(&address)?;
            let uri: Uri = address.as_str().parse().map_err(nonsense)?;
            let request = Request::get(uri)
                .header(header::ACCEPT, accept)
                .header(header::ACCEPT_ENCODING, "identity")
                .body(bytes::Bytes::new())
                .map_err(nonsense)?;
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = http.request(request, limits.time(left)).await;
            let answer = answer.map_err(|error| failed(&address, &error))?;
            match target(&address, &answer)? {
                Some(next) => address = next,
                None => return expect_good(address, answer),
            }
        }
        Err(Failure::Unreachable(
            "there is no end of redirects".to_owned(),
        ))
    }
}

/// Whether an address is one that anybody could open in a browser. Names and passwords in it are nobody else's business.
#[must_use]
pub fn is_of_web(address: &Url) -> bool {
    matches!(address.scheme(), "http" | "https")
        && address.username().is_empty()
        && address.password().is_none()
        && address.as_str().len() <= LONGEST
}

/// Whether a host is another one or below it.
fn is_below(host: &Host<&str>, denied: &Host) -> bool {
    match (host, denied) {
        (Host::Domain(host), Host::Domain(denied)) => {
            // A dot at the end names the same host.
            let (host, denied) = (host.trim_end_matches('.'), denied.trim_end_matches('.'));
            let rest = host.strip_suffix(denied);
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        }
        (Host::Ipv4(host), Host::Ipv4(denied)) => host == denied,
        (Host::Ipv6(host), Host::Ipv6(denied)) => host == denied,
        _ => false,
    }
}

/// Where an answer redirects to, if it does.
fn target(from: &Url, answer: &Response<Body>) -> Result<Option<Url>, Failure> {
    let Some(location) = Guarded::redirects(answer) else {
        return Ok(None);
    };
    let location = std::str::from_utf8(location.as_bytes()).map_err(nonsense)?;
    let mut next = from.join(location).map_err(nonsense)?;
    next.set_fragment(None);
    Ok(Some(next))
}

fn expect_good(address: Url, answer: Response<Body>) -> Result<(Url, Response<Body>), Failure> {
    let status = answer.status();
    if !status.is_success() {
        let host = address.host_str().unwrap_or_default();
        return Err(Failure::Unreachable(format!("{host} answered {status}")));
    }
    let encodings = answer.headers().get_all(header::CONTENT_ENCODING);
    let mut encodings = encodings.iter();
    if encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Failure::Unreachable("the answer is compressed".to_owned()));
    }
    Ok((address, answer))
}

/// What a client is told of a failure: the host, not what the network around this server looks like.
pub fn failed(address: &Url, error: &client::Error) -> Failure {
    tracing::debug!(%address, %error, "an address cannot be looked at");
    let host = address.host_str().unwrap_or_default();
    match error {
        client::Error::Blocked(_) => Failure::Denied(host.to_owned()),
        client::Error::TooLarge(_) => {
            Failure::Unreachable(format!("the answer of {host} is too large"))
        }
        _ => Failure::Unreachable(format!(
            "{host} could not be reached, or had no good answer"
        )),
    }
}

fn nonsense(error: impl std::fmt::Display) -> Failure {
    Failure::Unreachable(format!("there is no good answer: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_say_what_is_not_looked_at() {
        let mut config = Config::default();
        config.url_previews.deny_hosts = vec![
            "example.org".into(),
            "Bücher.example".into(),
            "192.0.2.1".into(),
        ];
        config.url_previews.deny_urls = vec!["^http://plain".into(), "[?&]token=".into()];
        let web = Web::new(&config).unwrap();
        for (address, is_allowed) in [
            ("https://example.com/", true),
            ("https://example.org/", false),
            ("https://www.example.org./a", false),
            ("https://EXAMPLE.org:8443/", false),
            ("https://notexample.org/", true),
            ("https://bücher.example/", false),
            ("https://xn--bcher-kva.example/", false),
            ("https://192.0.2.1/", false),
            ("https://3221225985/", false),
            ("https://192.0.2.2/", true),
            ("http://plain.example/", false),
            ("https://plain.example/?a=b&token=c", false),
            ("https://plain.example/token", true),
            ("https://alice@example.com/", false),
            ("https://:secret@example.com/", false),
            ("file:///etc/passwd", false),
            ("ftp://example.com/", false),
            ("data:text/html,x", false),
        ] {
            let read = Url::parse(address).unwrap();
            assert_eq!(web.expect_allowed(&read).is_ok(), is_allowed, "{address}");
        }
        let long = Url::parse(&format!("https://example.com/{}", "a".repeat(LONGEST))).unwrap();
        assert!(web.expect_allowed(&long).is_err());
    }
}
