use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{interval, sleep, timeout},
};

use super::rooms::room_of;
use crate::{
    bench::{Arrival, Bench},
    client::{TEXT, User, texts},
    measure::{Latencies, Measurement, rate},
    process::rounded,
};

/// After this a message that should have arrived counts as lost.
const LOST: Duration = Duration::from_secs(15);

pub async fn direct(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let rooms = Arc::new(bench.direct_rooms(bench.options.dm_rooms).await?);
    let mut listening = Vec::new();
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    if bench.options.dm_receivers_sync {
        for (_, receiver, _) in rooms.iter() {
            listening.push(bench.listen(receiver, bench.settle(receiver).await?, arrivals.clone()));
        }
    }
    let discard = tokio::spawn(async move { while arrived.recv().await.is_some() {} });
    rate(bench, name, rooms.len(), |bench, worker| {
        let rooms = rooms.clone();
        async move {
            let (sender, _, room) = &rooms[worker];
            bench.send(sender, room, TEXT).await
        }
    })
    .await?;
    listening.push(discard);
    listening.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}

pub async fn latency(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let rooms = bench.direct_rooms(bench.options.latency_rooms).await?;
    let mut since = Vec::new();
    for (_, receiver, _) in &rooms {
        since.push(bench.settle(receiver).await?);
    }
    let latencies = Arc::new(Latencies::default());
    let measurement = Measurement::start(bench);
    let mut conversations = Vec::new();
    for (i, (room, since)) in rooms.into_iter().zip(since).enumerate() {
        // The rooms do not send at the same moment.
        let delay = Duration::from_millis(100 + 70 * i as u64);
        let (bench, latencies) = (bench.clone(), latencies.clone());
        conversations.push(tokio::spawn(async move {
            converse(&bench, room, since, delay, &latencies).await
        }));
    }
    for conversation in conversations {
        conversation.await??;
    }
    measurement.end(bench, name, latencies.count(), &latencies, json!({}));
    Ok(())
}

/// One sends at a steady pace, the other listens.
async fn converse(
    bench: &Arc<Bench>,
    (sender, receiver, room): (User, User, String),
    since: String,
    delay: Duration,
    latencies: &Latencies,
) -> Result<()> {
    let messages = bench.options.latency_messages;
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    let listening = bench.listen(&receiver, since, arrivals);
    sleep(Duration::from_millis(300) + delay).await;
    let sent: Mutex<HashMap<String, Instant>> = Mutex::default();
    let sending = async {
        let mut pace = interval(Duration::from_millis(500));
        for _ in 0..messages {
            pace.tick().await;
            let text = format!("{} {TEXT}", bench.unique());
            sent.lock().insert(text.clone(), Instant::now());
            bench.send(&sender, &room, &text).await?;
        }
        anyhow::Ok(())
    };
    let receiving = async {
        let mut heard = 0;
        while heard < messages {
            let Ok(Some((instant, response))) = timeout(LOST, arrived.recv()).await else {
                break;
            };
            for text in texts(&response, &room) {
                if let Some(began) = sent.lock().remove(text) {
                    latencies.add(instant - began);
                    heard += 1;
                }
            }
        }
        (heard..messages).for_each(|_| latencies.fail());
    };
    let (result, ()) = tokio::join!(sending, receiving);
    listening.abort();
    result
}

pub async fn fanout(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let members = bench.options.fanout_members;
    let prepared = room_of(bench, members + 1).await?;
    let (sender, receivers) = prepared.users.split_first().context("no members")?;
    let (arrivals, mut arrived) = mpsc::unbounded_channel::<Arrival>();
    let mut listening = Vec::new();
    for receiver in receivers {
        let since = bench.settle(receiver).await?;
        listening.push(bench.listen(receiver, since, arrivals.clone()));
    }
    // Until news of each other's presence have come to rest.
    while timeout(Duration::from_secs(1), arrived.recv())
        .await
        .is_ok()
    {}

    let (all, each) = (Latencies::default(), Latencies::default());
    let measurement = Measurement::start(bench);
    while measurement.elapsed() < bench.options.duration() {
        let text = format!("{} {TEXT}", bench.unique());
        let began = Instant::now();
        let receiving = async {
            for _ in 0..members {
                loop {
                    let (instant, response) = timeout(LOST, arrived.recv()).await.ok().flatten()?;
                    if texts(&response, &prepared.room).any(|heard| heard == text) {
                        each.add(instant - began);
                        break;
                    }
                }
            }
            Some(())
        };
        let (sent, received) = tokio::join!(bench.send(sender, &prepared.room, &text), receiving);
        sent?;
        match received {
            Some(()) => all.add(began.elapsed()),
            None => all.fail(),
        }
    }
    let [p50, p95] = each.percentiles([50, 95]);
    let more = json!({"members": members, "delivery_p50_ms": rounded(p50), "delivery_p95_ms": rounded(p95)});
    measurement.end(bench, name, each.count(), &all, more);
    listening.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(())
}
