use std::{sync::Arc, time::Instant};

use anyhow::Result;
use reqwest::Method;
use serde_json::json;

use crate::{
    bench::{Bench, Prepared},
    client::room_path,
    measure::{Latencies, Measurement, rate},
};

pub async fn create(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let users = Arc::new(bench.take(bench.options.workers).await?);
    rate(bench, name, bench.options.workers, |bench, worker| {
        let users = users.clone();
        async move {
            let body = json!({"preset": "private_chat", "name": "a room"});
            bench.create_room(&users[worker], &body).await.map(drop)
        }
    })
    .await
}

pub async fn state(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let users = bench.take(bench.options.workers).await?;
    let mut rooms = Vec::new();
    for user in users {
        let room = bench
            .create_room(&user, &json!({"preset": "private_chat"}))
            .await?;
        rooms.push((user, room));
    }
    let rooms = Arc::new(rooms);
    rate(bench, name, bench.options.workers, |bench, worker| {
        let rooms = rooms.clone();
        async move {
            let (user, room) = &rooms[worker];
            let topic = json!({"topic": bench.unique()});
            bench
                .fire(
                    Method::PUT,
                    &room_path(room, "state/m.room.topic/"),
                    user,
                    Some(&topic),
                )
                .await
                .map(drop)
        }
    })
    .await
}

pub async fn large_join(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let members = bench.options.join_members;
    let key = format!("{name}_{members}");
    let prepared = if let Some(prepared) = bench.prepared(&key) {
        prepared
    } else {
        let prepared = room_of(bench, members).await?;
        bench.set_prepared(key, &prepared)?;
        prepared
    };
    let users = bench.take(bench.options.joins).await?;
    let latencies = Latencies::default();
    let measurement = Measurement::start(bench);
    for user in &users {
        let began = Instant::now();
        match bench.join(user, &prepared.room).await {
            Ok(()) => latencies.add(began.elapsed()),
            Err(error) => {
                latencies.fail();
                bench.complain(&error);
            }
        }
    }
    measurement.end(
        bench,
        name,
        latencies.count(),
        &latencies,
        json!({"members": members}),
    );
    Ok(())
}

/// A public room with so many members.
pub async fn room_of(bench: &Arc<Bench>, members: usize) -> Result<Prepared> {
    let users = bench.take(members).await?;
    let room = bench
        .create_room(
            &users[0],
            &json!({"preset": "public_chat", "name": "a large room"}),
        )
        .await?;
    let prepared = Arc::new(Prepared { users, room });
    bench
        .prepare(members - 1, |bench, i| {
            let prepared = prepared.clone();
            async move { bench.join(&prepared.users[i + 1], &prepared.room).await }
        })
        .await?;
    Ok(prepared.as_ref().clone())
}
