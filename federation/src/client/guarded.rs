//! HTTP to addresses that others have named, within limits. It knows nothing of Matrix.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::Scheme};
use http_body_util::Full;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::pki_types::CertificateDer;
use tokio::{sync::Semaphore, time::Instant};

use super::{
    Body, Error, Limits, Names, Unusable,
    connect::{Connector, Plain},
    tls,
};
use crate::address_policy::AddressPolicy;

/// How many requests are under way at one time. Who comes later waits. It is more than what others can bring this server to
/// ask at one time by what they send to it, so that they keep nobody here waiting who asks for something.
const CONCURRENT: usize = 384;
/// How long a connection is kept for the next request, and how many of them for each target.
const IDLE_TIME: Duration = Duration::from_secs(25);
const IDLE_CONNECTIONS: usize = 4;
/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;

/// The one HTTP client for all that this server asks because somebody else has told it where.
#[derive(Clone)]
pub struct Guarded {
    client: legacy::Client<Connector, Full<Bytes>>,
    places: Arc<Semaphore>,
    user_agent: HeaderValue,
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").finish_non_exhaustive()
    }
}

impl Guarded {
    /// A client that keeps to `policy`, and trusts `authorities` besides those of the system. Nothing that it sends goes
    /// out unencrypted.
    ///
    /// # Errors
    /// If one of the authorities cannot be used.
    pub fn new(
        policy: AddressPolicy,
        names: Names,
        authorities: Vec<CertificateDer<'static>>,
        user_agent: HeaderValue,
    ) -> Result<Self, Unusable> {
        Self::with(policy, names, authorities, user_agent, Plain::Never)
    }

    /// The same for pages that anybody may read: `http` addresses are asked without encryption.
    ///
    /// # Errors
    /// If one of the authorities cannot be used.
    pub fn for_pages(
        policy: AddressPolicy,
        names: Names,
        authorities: Vec<CertificateDer<'static>>,
        user_agent: HeaderValue,
    ) -> Result<Self, Unusable> {
        Self::with(policy, names, authorities, user_agent, Plain::ForHttp)
    }

    fn with(
        policy: AddressPolicy,
        names: Names,
        authorities: Vec<CertificateDer<'static>>,
        user_agent: HeaderValue,
        plain: Plain,
    ) -> Result<Self, Unusable> {
        let connector = Connector::new(policy, names, tls::config(authorities)?, plain);
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(connector);
        Ok(Self {
            client,
            places: Arc::new(Semaphore::new(CONCURRENT)),
            user_agent,
        })
    }

    /// Sends one request, to an address with a scheme and a host. Redirects are answered, not followed.
    ///
    /// # Errors
    /// If there is no answer within the limits. The answer's status may be any.
    pub async fn request(
        &self,
        mut request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Body>, Error> {
        let deadline = Instant::now() + limits.time;
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        let work = async {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let place = place.map_err(|error| Error::unreachable(&error))?;
            let is_repeatable = matches!(*request.method(), Method::GET | Method::PUT);
            let send =
                |request: &Request<Bytes>| self.client.request(request.clone().map(Full::new));
            let answer = match send(&request).await {
                // The other side may close a kept connection just as it is used again.
                Err(error) if is_repeatable && broke_off(&error) => send(&request).await,
                answer => answer,
            };
            Ok((answer.map_err(|error| failure(&error))?, place))
        };
        let work = tokio::time::timeout_at(deadline, work);
        let (answer, place) = work.await.map_err(|_| Error::TimedOut)??;
        let (parts, body) = answer.into_parts();
        let body = Body::new(body, limits.bytes, deadline, Some(place))?;
        Ok(Response::from_parts(parts, body))
    }

    /// Gets what is at an address, following redirects to other `https` addresses. The status may be any other.
    ///
    /// # Errors
    /// If there is no answer within the limits, or no end of redirects.
    pub async fn get(&self, address: Uri, limits: Limits) -> Result<Response<Body>, Error> {
        let deadline = Instant::now() + limits.time;
        let mut address = address;
        for _ in 0..=MAX_REDIRECTS {
            if address.scheme() != Some(&Scheme::HTTPS) || address.host().is_none() {
                return Err(Error::Nonsense(format!("{address} is no https address")));
            }
            let request = Request::get(address.clone())
                .body(Bytes::new())
                .map_err(|error| Error::Nonsense(error.to_string()))?;
            let limits = limits.time(deadline.saturating_duration_since(Instant::now()));
            let answer = self.request(request, limits).await?;
            match target(&address, &answer)? {
                Some(next) => address = next,
                None => return Ok(answer),
            }
        }
        Err(Error::Nonsense("there is no end of redirects".to_owned()))
    }

    /// Where an answer says that what was asked for is, if it redirects.
    #[must_use]
    pub fn redirects(answer: &Response<Body>) -> Option<&HeaderValue> {
        let redirects = matches!(
            answer.status(),
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        );
        answer.headers().get(header::LOCATION).filter(|_| redirects)
    }
}

/// Where an answer redirects to, if it does.
fn target(from: &Uri, answer: &Response<Body>) -> Result<Option<Uri>, Error> {
    let Some(location) = Guarded::redirects(answer) else {
        return Ok(None);
    };
    let nonsense = || Error::Nonsense("redirects to nowhere".to_owned());
    let location = location.to_str().map_err(|_| nonsense())?;
    let location = location.split('#').next().unwrap_or_default();
    let (host, path) = (from.authority(), from.path());
    let absolute = match (host, location.as_bytes()) {
        (Some(_), [b'/', b'/', ..]) => format!("https:{location}"),
        (Some(host), [b'/', ..]) => format!("https://{host}{location}"),
        _ if location.contains("://") => location.to_owned(),
        (Some(host), _) => {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("https://{host}{folder}/{location}")
        }
        _ => return Err(nonsense()),
    };
    absolute.parse().map(Some).map_err(|_| nonsense())
}

/// Whether a connection ended before there was any answer.
fn broke_off(error: &legacy::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_incomplete_message() || error.is_canceled();
        }
        source = error.source();
    }
    false
}

/// What the connector says if it was the connector; else what became of the connection.
fn failure(error: &legacy::Error) -> Error {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<Error>() {
            return error.clone();
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_parse()
        {
            return Error::Nonsense(error.to_string());
        }
        source = error.source();
    }
    Error::unreachable(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_read_relative_to_their_page() {
        let cases = [
            ("https://b.example/x", Some("https://b.example/x")),
            ("http://b.example/x#y", Some("http://b.example/x")),
            ("//b.example/x", Some("https://b.example/x")),
            ("/x?y", Some("https://a.example:1/x?y")),
            ("x", Some("https://a.example:1/.well-known/x")),
            ("https://", None),
        ];
        let from = Uri::from_static("https://a.example:1/.well-known/page");
        for (location, expected) in cases {
            let body = Body::new(Full::default(), 0, Instant::now(), None).unwrap();
            let mut answer = Response::new(body);
            answer
                .headers_mut()
                .insert(header::LOCATION, location.parse().unwrap());
            assert_eq!(target(&from, &answer).unwrap(), None);
            *answer.status_mut() = StatusCode::FOUND;
            let expected = expected.map(|uri| uri.parse().unwrap());
            assert_eq!(
                target(&from, &answer).ok().flatten(),
                expected,
                "{location}"
            );
        }
    }
}
