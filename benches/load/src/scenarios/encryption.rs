//! What encrypted chats ask of a server beside their messages.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{
    bench::{Arrival, Bench},
    client::{User, encode},
    measure::{Latencies, Measurement},
};

/// After this a message that should have arrived counts as lost.
const LOST: Duration = Duration::from_secs(15);
/// Messages on the way to one device: as many as a first message in a room has devices to tell.
const ON_THE_WAY: usize = 4;

/// Claims, one key a request, until the time is over or no keys are left.
pub async fn claim(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let (devices, keys) = (bench.options.claim_devices, bench.options.claim_keys);
    let users = Arc::new(bench.take(devices).await?);
    let owners = users.clone();
    let devices = bench
        .prepare(devices, move |bench, i| {
            let owners = owners.clone();
            async move { upload(&bench, &owners[i], keys).await }
        })
        .await?;
    let claims: Arc<Vec<Value>> = Arc::new(
        users
            .iter()
            .zip(&devices)
            .map(|(user, device)| json!({ "one_time_keys": { &user.id: { device: "signed_curve25519" } } }))
            .collect(),
    );
    let latencies = Arc::new(Latencies::default());
    let claimed = Arc::new(AtomicUsize::new(0));
    let measurement = Measurement::start(bench);
    let end = Instant::now() + bench.options.duration();
    let mut working = Vec::new();
    for worker in 0..bench.options.dm_rooms {
        let (bench, users, claims) = (bench.clone(), users.clone(), claims.clone());
        let (latencies, claimed) = (latencies.clone(), claimed.clone());
        working.push(tokio::spawn(async move {
            while Instant::now() < end {
                let number = claimed.fetch_add(1, Ordering::Relaxed);
                if number >= claims.len() * keys {
                    break;
                }
                let (from, began) = (&users[worker % users.len()], Instant::now());
                let claim = &claims[number % claims.len()];
                let path = "/_matrix/client/v3/keys/claim";
                match bench.fire(Method::POST, path, from, Some(claim)).await {
                    // An answer without a key is as short as that.
                    Ok(answer) if answer.len() > 100 => latencies.add(began.elapsed()),
                    Ok(_) => latencies.fail(),
                    Err(error) => {
                        latencies.fail();
                        bench.complain(&error);
                    }
                }
            }
        }));
    }
    for worker in working {
        worker.await?;
    }
    measurement.end(bench, name, latencies.count(), &latencies, json!({}));
    Ok(())
}

/// Uploads the keys of a user's device, with so many one-time keys. Answers the device's id.
async fn upload(bench: &Bench, user: &User, keys: usize) -> Result<String> {
    let path = "/_matrix/client/v3/account/whoami";
    let me = bench.call(Method::GET, path, user, None).await?;
    let device = me["device_id"].as_str().context("no device_id")?.to_owned();
    let signatures = json!({ &user.id: { format!("ed25519:{device}"): "s".repeat(86) } });
    let key = |number: usize| {
        let key = json!({ "key": format!("{number:043}"), "signatures": signatures });
        (format!("signed_curve25519:{number:011}"), key)
    };
    let body = json!({
        "device_keys": {
            "user_id": user.id,
            "device_id": device,
            "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
            "keys": {
                format!("curve25519:{device}"): "c".repeat(43),
                format!("ed25519:{device}"): "e".repeat(43),
            },
            "signatures": signatures,
        },
        "one_time_keys": (0..keys).map(key).collect::<serde_json::Map<_, _>>(),
    });
    let path = "/_matrix/client/v3/keys/upload";
    let answer = bench.call(Method::POST, path, user, Some(&body)).await?;
    ensure!(
        answer["one_time_key_counts"]["signed_curve25519"] == keys,
        "not all keys were taken: {answer}"
    );
    Ok(device)
}

/// Messages to devices that sleep in a sync, from when they are sent to their arrival; the rate is that of arrivals.
pub async fn to_device(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let users = bench.take(2 * bench.options.dm_rooms).await?;
    let mut pairs = Vec::new();
    for pair in users.chunks_exact(2) {
        let since = bench.settle(&pair[1]).await?;
        pairs.push((pair[0].clone(), pair[1].clone(), since));
    }
    let latencies = Arc::new(Latencies::default());
    let measurement = Measurement::start(bench);
    let end = Instant::now() + bench.options.duration();
    let mut working = Vec::new();
    for (sender, receiver, since) in pairs {
        let (bench, latencies) = (bench.clone(), latencies.clone());
        working.push(tokio::spawn(async move {
            let (arrivals, arrived) = mpsc::unbounded_channel();
            let listening = bench.listen(&receiver, since, arrivals);
            let done = tell(&bench, &sender, &receiver, arrived, end, &latencies).await;
            listening.abort();
            done
        }));
    }
    for pair in working {
        pair.await??;
    }
    measurement.end(bench, name, latencies.count(), &latencies, json!({}));
    Ok(())
}

/// One sends as fast as the other one hears of it.
async fn tell(
    bench: &Arc<Bench>,
    sender: &User,
    receiver: &User,
    mut arrived: mpsc::UnboundedReceiver<Arrival>,
    end: Instant,
    latencies: &Latencies,
) -> Result<()> {
    let epoch = Instant::now();
    let turns = Arc::new(Semaphore::new(ON_THE_WAY));
    let sending = async {
        let mut sent = 0_usize;
        while Instant::now() < end {
            let Ok(Ok(turn)) = timeout(LOST, turns.acquire()).await else {
                break;
            };
            turn.forget();
            let began = epoch.elapsed().as_micros().to_string();
            let content = json!({
                "algorithm": "m.olm.v1.curve25519-aes-sha2",
                "began": began,
                "ciphertext": { "c".repeat(43): { "type": 0, "body": "b".repeat(900) } },
                "sender_key": "k".repeat(43),
            });
            let path = format!(
                "/_matrix/client/v3/sendToDevice/m.room.encrypted/{}",
                encode(&bench.unique())
            );
            let body = json!({ "messages": { &receiver.id: { "*": content } } });
            bench.fire(Method::PUT, &path, sender, Some(&body)).await?;
            sent += 1;
        }
        // The last ones arrive.
        let all = u32::try_from(ON_THE_WAY)?;
        drop(timeout(LOST, turns.acquire_many(all)).await);
        anyhow::Ok(sent)
    };
    let mut heard = 0;
    let hearing = async {
        while let Some((instant, response)) = arrived.recv().await {
            for message in response["to_device"]["events"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let began = message["content"]["began"]
                    .as_str()
                    .and_then(|began| began.parse().ok());
                let began = Duration::from_micros(began.context("not what was sent")?);
                latencies.add(instant.duration_since(epoch).saturating_sub(began));
                heard += 1;
                turns.add_permits(1);
            }
        }
        anyhow::Ok(())
    };
    let sent = tokio::select! {
        sent = sending => sent?,
        failed = hearing => return failed,
    };
    (heard..sent).for_each(|_| latencies.fail());
    Ok(())
}
