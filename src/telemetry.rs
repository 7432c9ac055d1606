//! What the server tells its operator: log lines and measurements.

use std::io::{self, IsTerminal};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogFormat, Logging};

/// Sends the log of this process to standard error.
///
/// # Errors
///
/// The filter cannot be parsed, or the process has a log already.
pub fn start_logging(settings: &Logging) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::builder().parse(&settings.filter)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    match settings.format {
        LogFormat::Human => registry.with(lines).try_init()?,
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init()?,
    }
    Ok(())
}

/// The measurements of one server. Each field can be written from anywhere
/// without a lock; [`Metrics::encode`] reads them all.
#[derive(Debug)]
pub struct Metrics {
    /// Requests answered.
    pub requests: Family<Answer, Counter>,
    /// Time from a request's head to its answer's head, in seconds. Long polls
    /// count with the time that they slept.
    pub request_duration: Family<Endpoint, Histogram, fn() -> Histogram>,
    /// Requests that are being answered.
    pub requests_running: Gauge,
    /// Syncs that sleep until something concerns their user.
    pub sync_waiters: Gauge,
    /// Changes committed together.
    pub commit_batch: Histogram,
    /// Time from the start of a commit to its end, in seconds.
    pub commit_duration: Histogram,
    /// Things that wait for their turn.
    pub queue_length: Family<Queue, Gauge>,
    /// Statements that the database has executed.
    pub database_statements: Counter,
    /// Time that the database took to execute a statement, in seconds.
    pub database_duration: Histogram,
    /// Events that other servers have taken, counted once for each server.
    pub pdus_sent: Counter,
    /// Transactions that another server has not taken.
    pub transactions_failed: Counter,
    registry: Registry,
}

/// An endpoint, and how it answered.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Answer {
    pub method: &'static str,
    /// The endpoint's path with the names of its arguments, not their values.
    pub path: String,
    pub status: u16,
}

/// An endpoint.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Endpoint {
    pub method: &'static str,
    /// As in [`Answer`].
    pub path: String,
}

/// A queue.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Queue {
    pub queue: &'static str,
}

impl Metrics {
    /// Makes measurements that all start at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            requests: Family::default(),
            request_duration: Family::new_with_constructor(request_histogram),
            requests_running: Gauge::default(),
            sync_waiters: Gauge::default(),
            commit_batch: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            commit_duration: Histogram::new(exponential_buckets(0.000_25, 2.0, 14)),
            queue_length: Family::default(),
            database_statements: Counter::default(),
            database_duration: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            pdus_sent: Counter::default(),
            transactions_failed: Counter::default(),
            registry: Registry::with_prefix("homing"),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        let registry = &mut self.registry;
        registry.register("build", "The running version", version);
        registry.register("requests", "Requests answered", self.requests.clone());
        registry.register_with_unit(
            "request_duration",
            "Time until a request is answered",
            Unit::Seconds,
            self.request_duration.clone(),
        );
        registry.register(
            "requests_running",
            "Requests that are being answered",
            self.requests_running.clone(),
        );
        registry.register(
            "sync_waiters",
            "Syncs that wait for something new",
            self.sync_waiters.clone(),
        );
        registry.register(
            "commit_batch",
            "Changes committed together",
            self.commit_batch.clone(),
        );
        registry.register_with_unit(
            "commit_duration",
            "Time that a commit takes",
            Unit::Seconds,
            self.commit_duration.clone(),
        );
        registry.register(
            "queue_length",
            "Things that wait for their turn",
            self.queue_length.clone(),
        );
        registry.register(
            "database_statements",
            "Statements that the database has executed",
            self.database_statements.clone(),
        );
        registry.register_with_unit(
            "database_duration",
            "Time that the database takes for a statement",
            Unit::Seconds,
            self.database_duration.clone(),
        );
        registry.register(
            "pdus_sent",
            "Events that other servers have taken",
            self.pdus_sent.clone(),
        );
        registry.register(
            "transactions_failed",
            "Transactions that another server has not taken",
            self.transactions_failed.clone(),
        );
    }

    /// All measurements in the `OpenMetrics` text format, whose media type is
    /// [`MEDIA_TYPE`].
    ///
    /// # Errors
    ///
    /// None that is known: writing to a string does not fail.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

/// The media type of [`Metrics::encode`]'s result.
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// From a millisecond to a minute: a warm answer and a long poll.
fn request_histogram() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}

/// Counts something in a gauge for as long as it lives, however it ends.
#[derive(Debug)]
pub struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    /// Adds one to `gauge`.
    #[must_use]
    pub fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The requests that the server failed at (status 5xx): method, path, status. 502 and 504 do not count: they tell that
/// another server has failed, and that what the request waited for did not come, as a media that nobody uploads.
#[must_use]
pub fn failures(metrics: &Metrics) -> Vec<String> {
    let text = metrics.encode().unwrap_or_default();
    let failed = |line: &&str| {
        line.starts_with("homing_requests_total")
            && line.contains("status=\"5")
            && !line.contains("status=\"502\"")
            && !line.contains("status=\"504\"")
    };
    text.lines().filter(failed).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measurement_is_encoded() {
        let metrics = Metrics::new();
        let answer = Answer {
            method: "GET",
            path: "/_matrix/client/v3/sync".to_owned(),
            status: 200,
        };
        metrics.requests.get_or_create(&answer).inc();
        let endpoint = Endpoint {
            method: "GET",
            path: answer.path.clone(),
        };
        metrics
            .request_duration
            .get_or_create(&endpoint)
            .observe(0.002);
        metrics
            .queue_length
            .get_or_create(&Queue { queue: "log" })
            .set(3);
        metrics.commit_batch.observe(5.0);
        metrics.commit_duration.observe(0.001);
        metrics.database_statements.inc();
        metrics.database_duration.observe(0.0001);

        let waiter = Counted::new(&metrics.sync_waiters);
        let text = metrics.encode().unwrap();
        drop(waiter);
        for line in [
            r#"homing_build_info{version=""#,
            r#"homing_requests_total{method="GET",path="/_matrix/client/v3/sync",status="200"} 1"#,
            r#"homing_request_duration_seconds_bucket{le="0.0025",method="GET",path="/_matrix/client/v3/sync"} 1"#,
            r#"homing_queue_length{queue="log"} 3"#,
            "homing_requests_running 0",
            "homing_sync_waiters 1",
            r#"homing_commit_batch_bucket{le="8.0"} 1"#,
            "homing_commit_duration_seconds_count 1",
            "homing_database_statements_total 1",
            "homing_database_duration_seconds_count 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(metrics.encode().unwrap().contains("homing_sync_waiters 0"));
    }
}
