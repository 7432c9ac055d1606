use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    bench::{Bench, Prepared},
    client::{TEXT, User, encode, next_batch, room_path},
    measure::{Latencies, Measurement, rate},
};

pub async fn initial(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let user = account_in_rooms(bench, name).await?;
    let latencies = Latencies::default();
    let measurement = Measurement::start(bench);
    let mut more = json!({});
    while latencies.count() < 3 || measurement.elapsed() < bench.options.duration() {
        // A filter that was never asked for before, so that no stored answer is given.
        let filter = json!({"room": {"timeline": {"limit": 20}}, "account_data": {"not_types": [bench.unique()]}});
        let path = format!(
            "/_matrix/client/v3/sync?timeout=0&filter={}",
            encode(&filter.to_string())
        );
        let began = Instant::now();
        let answer = bench.fire(Method::GET, &path, &user, None).await?;
        latencies.add(began.elapsed());
        if latencies.count() == 1 {
            let sync: Value = serde_json::from_slice(&answer)?;
            let rooms = sync["rooms"]["join"]
                .as_object()
                .map_or(0, serde_json::Map::len);
            ensure!(
                rooms == bench.options.initial_rooms,
                "{rooms} rooms in the sync"
            );
            more = json!({"rooms": rooms, "bytes": answer.len()});
        }
    }
    measurement.end(bench, name, latencies.count(), &latencies, more);
    Ok(())
}

/// An account in many rooms of four people each, with some messages in each room.
async fn account_in_rooms(bench: &Arc<Bench>, name: &str) -> Result<User> {
    let (rooms, messages) = (bench.options.initial_rooms, bench.options.initial_messages);
    let key = format!("{name}_{rooms}_{messages}");
    if let Some(prepared) = bench.prepared(&key) {
        return prepared
            .users
            .into_iter()
            .next()
            .context("no account was prepared");
    }
    let users = Arc::new(bench.take(5).await?);
    bench
        .prepare(rooms, |bench, i| {
            let users = users.clone();
            async move {
                let other = &users[1 + i % 4];
                let body = json!({"preset": "public_chat", "name": format!("room {i}"), "topic": "a topic"});
                let room = bench.create_room(other, &body).await?;
                bench.join(&users[0], &room).await?;
                for _ in 0..messages {
                    bench.send(other, &room, TEXT).await?;
                }
                Ok(())
            }
        })
        .await?;
    let user = users[0].clone();
    bench.set_prepared(
        key,
        &Prepared {
            users: vec![user.clone()],
            room: String::new(),
        },
    )?;
    Ok(user)
}

pub async fn idle(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let users = bench.take(bench.options.workers).await?;
    for i in 0..bench.options.idle_rooms {
        let room = bench
            .create_room(
                &users[0],
                &json!({"preset": "public_chat", "name": format!("idle {i}")}),
            )
            .await?;
        for user in &users[1..] {
            bench.join(user, &room).await?;
        }
    }
    let mut positions = Vec::new();
    for user in users {
        let since = bench.settle(&user).await?;
        positions.push((user, Mutex::new(since)));
    }
    sleep(Duration::from_millis(500)).await;
    let positions = Arc::new(positions);
    rate(bench, name, bench.options.workers, |bench, worker| {
        let positions = positions.clone();
        async move {
            let (user, since) = &positions[worker];
            let before = since.lock().clone();
            let response = bench.sync(user, Some(&before), 0).await?;
            *since.lock() = next_batch(&response)?;
            Ok(())
        }
    })
    .await
}

pub async fn walk(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let messages = bench.options.walk_messages;
    let prepared = long_room(bench, name, messages).await?;
    let user = prepared.users.first().context("no account was prepared")?;
    let latencies = Latencies::default();
    let measurement = Measurement::start(bench);
    let (mut events, mut missed) = (0, 0);
    while events == 0 || measurement.elapsed() < bench.options.duration() {
        let mut from: Option<String> = None;
        let before = events;
        loop {
            let start = from
                .as_ref()
                .map(|from| format!("&from={}", encode(from)))
                .unwrap_or_default();
            let path = room_path(&prepared.room, &format!("messages?dir=b&limit=100{start}"));
            let began = Instant::now();
            let page = bench.fire(Method::GET, &path, user, None).await?;
            latencies.add(began.elapsed());
            let page: Value = serde_json::from_slice(&page)?;
            events += page["chunk"].as_array().map_or(0, Vec::len);
            match page["end"].as_str() {
                Some(end) if from.as_deref() != Some(end) => from = Some(end.to_owned()),
                _ => break,
            }
        }
        // Synapse was seen to leave some out of a room in which several requests sent at once.
        missed = missed.max(messages.saturating_sub(events - before));
    }
    // Rate and CPU time are per event, latencies per page.
    let more = json!({"pages": latencies.count(), "missed_in_a_walk": missed});
    measurement.end(bench, name, events, &latencies, more);
    Ok(())
}

async fn long_room(bench: &Arc<Bench>, name: &str, messages: usize) -> Result<Prepared> {
    let key = format!("{name}_{messages}");
    if let Some(prepared) = bench.prepared(&key) {
        return Ok(prepared);
    }
    let users = bench.take(1).await?;
    let room = bench
        .create_room(&users[0], &json!({"preset": "private_chat"}))
        .await?;
    let prepared = Arc::new(Prepared { users, room });
    bench
        .prepare(messages, |bench, _| {
            let prepared = prepared.clone();
            async move { bench.send(&prepared.users[0], &prepared.room, TEXT).await }
        })
        .await?;
    bench.set_prepared(key, &prepared)?;
    Ok(prepared.as_ref().clone())
}
