use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    bench::Bench,
    client::{User, next_batch},
    measure::{Latencies, Measurement},
};

/// How long memory and CPU time are watched.
const WATCHED: Duration = Duration::from_secs(5);
/// Until everybody's sync has arrived and news of the others' presence have come to rest.
const SETTLING: Duration = Duration::from_secs(10);

pub async fn idle(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let measurement = Measurement::start(bench);
    sleep(WATCHED).await;
    measurement.end(bench, name, 0, &Latencies::default(), json!({}));
    Ok(())
}

/// Everybody is in a direct room, as people are, and sleeps in a sync from the present position.
pub async fn sleeping(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let rooms = bench.direct_rooms(bench.options.sleepers / 2).await?;
    let users = Arc::new(
        rooms
            .into_iter()
            .flat_map(|(a, b, _)| [a, b])
            .collect::<Vec<_>>(),
    );
    let sinces = bench
        .prepare(users.len(), |bench, i| {
            let users = users.clone();
            async move { bench.settle(&users[i]).await }
        })
        .await?;
    let asleep: Vec<_> = users
        .iter()
        .zip(sinces)
        .map(|(user, since)| {
            let (bench, user) = (bench.clone(), user.clone());
            tokio::spawn(async move { sleep_on(&bench, &user, since).await })
        })
        .collect();
    sleep(SETTLING).await;
    ensure!(
        asleep.iter().all(|task| !task.is_finished()),
        "a sync failed that should have slept"
    );

    let measurement = Measurement::start(bench);
    sleep(WATCHED).await;
    measurement.end(
        bench,
        name,
        0,
        &Latencies::default(),
        json!({"sleepers": users.len()}),
    );
    for task in &asleep {
        task.abort();
    }
    join_all(asleep).await;
    Ok(())
}

/// Syncs and never returns, but for an error.
async fn sleep_on(bench: &Bench, user: &User, mut since: String) -> Result<Infallible> {
    loop {
        let response = bench.sync(user, Some(&since), 90_000).await?;
        since = next_batch(&response)?;
    }
}
