//! One measurement: latencies of the operations, and what the server used meanwhile.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    bench::Bench,
    process::{Sampler, float, rounded},
};

/// Latencies and errors of operations that go on at the same time.
#[derive(Default)]
pub struct Latencies {
    microseconds: Mutex<Vec<u64>>,
    errors: Mutex<usize>,
}

impl Latencies {
    pub fn add(&self, latency: Duration) {
        self.microseconds
            .lock()
            .push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    pub fn fail(&self) {
        *self.errors.lock() += 1;
    }

    pub fn count(&self) -> usize {
        self.microseconds.lock().len()
    }

    /// Percentiles in milliseconds.
    pub fn percentiles<const N: usize>(&self, wanted: [usize; N]) -> [f64; N] {
        let mut sorted = self.microseconds.lock().clone();
        sorted.sort_unstable();
        wanted.map(|percent| {
            let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
            sorted
                .get(index)
                .map_or(0.0, |latency| float(*latency) / 1000.0)
        })
    }
}

pub struct Measurement {
    sampler: Sampler,
    started: Instant,
}

impl Measurement {
    pub fn start(bench: &Bench) -> Self {
        Self {
            sampler: Sampler::start(&bench.options.pid),
            started: Instant::now(),
        }
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints the result. `operations` is what the rate and the CPU time are divided by: the number
    /// of latencies unless a request did more than one thing.
    pub fn end(
        self,
        bench: &Bench,
        scenario: &str,
        operations: usize,
        latencies: &Latencies,
        more: Value,
    ) {
        let seconds = self.started.elapsed().as_secs_f64();
        let used = self.sampler.stop(operations);
        let [p50, p95, p99, max] = latencies.percentiles([50, 95, 99, 100]);
        let mut line = json!({
            "scenario": scenario,
            "server": bench.options.name,
            "operations": operations,
            "seconds": rounded(seconds),
            "per_second": rounded(float(operations as u64) / seconds),
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "max_ms": max,
            "errors": *latencies.errors.lock(),
        });
        for fields in [used, more] {
            if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
                line.extend(fields);
            }
        }
        println!("{line}");
    }
}

/// Does an operation again and again until the scenario's time is over, by so many workers at once,
/// and reports it.
pub async fn rate<W>(
    bench: &Arc<Bench>,
    scenario: &str,
    workers: usize,
    operation: impl Fn(Arc<Bench>, usize) -> W,
) -> Result<()>
where
    W: Future<Output = Result<()>> + Send + 'static,
{
    let latencies = Latencies::default();
    let measurement = Measurement::start(bench);
    let end = Instant::now() + bench.options.duration();
    let work = (0..workers).map(|worker| {
        let (latencies, operation) = (&latencies, &operation);
        async move {
            while Instant::now() < end {
                let began = Instant::now();
                match tokio::spawn(operation(bench.clone(), worker)).await? {
                    Ok(()) => latencies.add(began.elapsed()),
                    Err(error) => {
                        latencies.fail();
                        bench.complain(&error);
                    }
                }
            }
            anyhow::Ok(())
        }
    });
    futures_util::future::try_join_all(work).await?;
    measurement.end(bench, scenario, latencies.count(), &latencies, json!({}));
    Ok(())
}
