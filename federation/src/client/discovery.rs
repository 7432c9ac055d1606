//! Which server a name has delegated to: `/.well-known/matrix/server`.
//!
//! Specification: <https://spec.matrix.org/v1.19/server-server-api/#resolving-server-names>.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, Uri, header};
use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use tokio::time::Instant;

use super::{Error, Guarded, Limits, cache::Cache};
use crate::name::{Destination, Step};

/// What the answer may cost.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(10),
    bytes: 50 << 10,
};
/// How long an answer holds that does not say it, and the bounds for those that do.
const USUAL: Duration = Duration::from_hours(24);
const SHORTEST: Duration = Duration::from_mins(5);
const LONGEST: Duration = Duration::from_hours(48);
/// How long it holds that there is none: this after the first failure, then doubling up to an hour.
const FAILED: Duration = Duration::from_mins(1);
const FAILED_OFTEN: Duration = Duration::from_hours(1);

/// What is known of a name.
#[derive(Clone)]
struct Known {
    /// Whom it has delegated to, and when it said so.
    delegated: Option<(OwnedServerName, Instant)>,
    /// How often it was asked in vain since.
    failures: u32,
}

/// The delegations of names.
#[derive(Default)]
pub(super) struct Discovery(Cache<Known>);

impl Discovery {
    /// Where a server is.
    pub(super) async fn find(
        self: &Arc<Self>,
        http: &Guarded,
        server: &ServerName,
    ) -> Result<Destination, Error> {
        let mut step = Step::first(server);
        loop {
            let host = match step {
                Step::Found(destination) => return Ok(destination),
                Step::WellKnown(host) => host,
            };
            let known = match self.0.fresh(host.as_str()) {
                Some(known) => known,
                None => self.ask(http, host.clone()).await?,
            };
            let delegated = known.delegated.as_ref().map(|(server, _)| &**server);
            step = Step::after_well_known(&host, delegated);
        }
    }

    /// Asks a host, in a task of its own: whoever waits for the answer may give up earlier, and the next who waits
    /// should find it.
    async fn ask(self: &Arc<Self>, http: &Guarded, host: OwnedServerName) -> Result<Known, Error> {
        let (known, http) = (Arc::clone(self), http.clone());
        let task = tokio::spawn(async move {
            let find = async |last: Option<Known>| look(&http, &host, last).await;
            known.0.get(host.as_str(), find).await
        });
        task.await.map_err(|error| Error::unreachable(&error))
    }
}

async fn look(http: &Guarded, host: &ServerName, last: Option<Known>) -> (Known, Duration) {
    let now = Instant::now();
    match fetch(http, host).await {
        Ok((server, lifetime)) => {
            let delegated = Some((server, now));
            (
                Known {
                    delegated,
                    failures: 0,
                },
                lifetime,
            )
        }
        Err(error) => {
            tracing::debug!(%host, %error, "no delegation");
            let (delegated, failures) =
                last.map_or((None, 0), |last| (last.delegated, last.failures));
            let failures = failures.saturating_add(1);
            // One failure does not undo what a server has said not long ago.
            let delegated = delegated.filter(|(_, said)| now - *said < LONGEST);
            (
                Known {
                    delegated,
                    failures,
                },
                after(failures),
            )
        }
    }
}

/// When to ask again after so many failures.
fn after(failures: u32) -> Duration {
    let factor = 1_u32
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u32::MAX);
    FAILED.saturating_mul(factor).min(FAILED_OFTEN)
}

async fn fetch(http: &Guarded, host: &ServerName) -> Result<(OwnedServerName, Duration), Error> {
    #[derive(Deserialize)]
    struct WellKnown {
        #[serde(rename = "m.server")]
        server: OwnedServerName,
    }
    let address = format!("https://{host}/.well-known/matrix/server");
    let address: Uri = address
        .parse()
        .map_err(|_| Error::Nonsense(format!("{host} cannot be part of an address")))?;
    let answer = http.get(address, LIMITS).await?;
    let (parts, body) = answer.into_parts();
    if parts.status != StatusCode::OK {
        return Err(Error::Nonsense(format!("the status is {}", parts.status)));
    }
    let lifetime = lifetime(&parts.headers, SystemTime::now());
    let body = body.collect().await?;
    let said: WellKnown =
        serde_json::from_slice(&body).map_err(|error| Error::Nonsense(error.to_string()))?;
    Ok((said.server, lifetime))
}

/// How long an answer with these headers holds.
fn lifetime(headers: &HeaderMap, now: SystemTime) -> Duration {
    let directives = headers
        .get_all(header::CACHE_CONTROL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|directive| directive.trim().to_ascii_lowercase());
    let mut stated = None;
    for directive in directives {
        if directive == "no-store" || directive == "no-cache" {
            return SHORTEST;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            // What overflows is long, and what is no number says nothing good.
            let seconds = seconds.trim_matches('"');
            let is_number =
                !seconds.is_empty() && seconds.bytes().all(|byte| byte.is_ascii_digit());
            stated = Some(if is_number {
                seconds.parse().unwrap_or(u64::MAX)
            } else {
                0
            });
        }
    }
    let stated = stated.map(Duration::from_secs).or_else(|| {
        let expires = headers.get(header::EXPIRES)?.to_str().ok()?;
        let left = httpdate::parse_http_date(expires)
            .ok()
            .and_then(|until| until.duration_since(now).ok());
        Some(left.unwrap_or_default())
    });
    stated.map_or(USUAL, |stated| stated.clamp(SHORTEST, LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_hold_as_long_as_they_say() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let cases: [(&[(&str, &str)], Duration); 13] = [
            (&[], USUAL),
            (&[("cache-control", "max-age=3600")], minutes(60)),
            (
                &[("cache-control", "public, Max-Age=\"3600\"")],
                minutes(60),
            ),
            (
                &[
                    ("cache-control", "public"),
                    ("cache-control", "max-age=3600"),
                ],
                minutes(60),
            ),
            (&[("cache-control", "max-age=1")], minutes(5)),
            (
                &[("cache-control", "max-age=99999999999999999999999")],
                minutes(48 * 60),
            ),
            (&[("cache-control", "max-age=soon")], minutes(5)),
            (&[("cache-control", "max-age=3600, no-store")], minutes(5)),
            (&[("cache-control", "private")], USUAL),
            (&[("expires", "Sun, 06 Nov 1994 09:49:37 GMT")], minutes(60)),
            (&[("expires", "Sun, 06 Nov 1993 09:49:37 GMT")], minutes(5)),
            (&[("expires", "0")], minutes(5)),
            (
                &[
                    ("expires", "Sun, 06 Nov 1994 09:49:37 GMT"),
                    ("cache-control", "max-age=600"),
                ],
                minutes(10),
            ),
        ];
        for (headers, expected) in cases {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                let name = http::HeaderName::from_static(name);
                map.append(name, value.parse().unwrap());
            }
            assert_eq!(lifetime(&map, now), expected, "{headers:?}");
        }
    }

    #[test]
    fn failures_hold_longer_the_more_there_are() {
        for (failures, minutes) in [(1, 1), (2, 2), (3, 4), (7, 60), (40, 60)] {
            assert_eq!(
                after(failures),
                Duration::from_secs(minutes * 60),
                "{failures}"
            );
        }
    }
}
