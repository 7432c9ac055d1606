use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use reqwest::Method;
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    bench::Bench,
    client::{TEXT, User, encode, room_path},
    measure::{Latencies, Measurement},
    process::rounded,
};

/// Latencies of each kind of update.
#[derive(Default)]
struct Kinds {
    typing: Latencies,
    receipt: Latencies,
    presence: Latencies,
    all: Latencies,
}

/// One person types, reads and changes presence; the other sleeps in syncs meanwhile.
pub async fn run(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let rooms = bench.direct_rooms(bench.options.people_pairs).await?;
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    let mut listening = vec![tokio::spawn(async move {
        while arrived.recv().await.is_some() {}
    })];
    let mut pairs = Vec::new();
    for (a, b, room) in rooms {
        // There must be something left to read.
        let mut events = Vec::new();
        for _ in 0..200 {
            let path = room_path(&room, &format!("send/m.room.message/{}", bench.unique()));
            let sent = bench
                .call(
                    Method::PUT,
                    &path,
                    &b,
                    Some(&json!({"msgtype": "m.text", "body": TEXT})),
                )
                .await?;
            events.push(sent["event_id"].as_str().context("no event_id")?.to_owned());
        }
        listening.push(bench.listen(&b, bench.settle(&b).await?, arrivals.clone()));
        pairs.push((a, room, events));
    }
    let kinds = Arc::new(Kinds::default());
    let measurement = Measurement::start(bench);
    let mut running = Vec::new();
    for (user, room, events) in pairs {
        let (bench, kinds) = (bench.clone(), kinds.clone());
        running.push(tokio::spawn(async move {
            update(&bench, &user, &room, &events, &kinds).await
        }));
    }
    for pair in running {
        pair.await??;
    }
    let [typing, receipt, presence] = [&kinds.typing, &kinds.receipt, &kinds.presence]
        .map(|kind| rounded(kind.percentiles([50])[0]));
    let more =
        json!({"typing_p50_ms": typing, "receipt_p50_ms": receipt, "presence_p50_ms": presence});
    measurement.end(bench, name, kinds.all.count(), &kinds.all, more);
    listening.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

async fn update(
    bench: &Bench,
    user: &User,
    room: &str,
    events: &[String],
    kinds: &Kinds,
) -> Result<()> {
    let typing = room_path(room, &format!("typing/{}", encode(&user.id)));
    let presence = format!("/_matrix/client/v3/presence/{}/status", encode(&user.id));
    let end = Instant::now() + bench.options.duration();
    for (i, event) in events.iter().enumerate() {
        let even = i % 2 == 0;
        let state = if even { "online" } else { "unavailable" };
        let receipt = room_path(room, &format!("receipt/m.read/{}", encode(event)));
        for (kind, method, path, body) in [
            (
                &kinds.typing,
                Method::PUT,
                &typing,
                json!({"typing": even, "timeout": 30000}),
            ),
            (&kinds.receipt, Method::POST, &receipt, json!({})),
            (
                &kinds.presence,
                Method::PUT,
                &presence,
                json!({"presence": state, "status_msg": bench.unique()}),
            ),
        ] {
            let began = Instant::now();
            bench.fire(method, path, user, Some(&body)).await?;
            kind.add(began.elapsed());
            kinds.all.add(began.elapsed());
        }
        if Instant::now() > end {
            break;
        }
    }
    Ok(())
}
