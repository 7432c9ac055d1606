//! What is done from time to time: memory and the database lose what nobody needs any more.

use std::{sync::Arc, time::Duration};

use crate::{
    app::App, error::Result, key_backup, log::Change, media, server_keys, storage, to_device,
};

/// How long rows of `commit_log` are kept, in milliseconds.
const COMMITS_KEPT: i64 = 3_600_000;
/// How often it is done, and how often what takes longer.
const EVERY: Duration = Duration::from_mins(1);
const SELDOM: usize = 60;
/// How many changes of devices are known.
const DEVICE_CHANGES: i64 = 200_000;
/// How many EDUs with messages for devices wait for another server.
const MESSAGES_OUT: i64 = 10_000;
/// How long it is known which messages for devices came and were sent, in milliseconds.
const MESSAGES_KNOWN: i64 = 7 * 24 * 3_600_000;

/// Runs until the server goes down. What fails is logged, and tried again the next time.
pub async fn run(app: Arc<App>) {
    let mut head = app.log.head();
    let mut count = 0;
    while app
        .shutdown
        .run_until_cancelled(tokio::time::sleep(EVERY))
        .await
        .is_some()
    {
        app.bus.drop_idle();
        let mut change = Change::new();
        change.write(storage::commits::prune(app.clock.now() - COMMITS_KEPT));
        if let Err(error) = app.log.append(change).await {
            tracing::error!(%error, "cannot prune the log");
        }
        write_seen(&app).await;
        if app.remote.has_more()
            && let Err(error) = media::remote::sweep(&app).await
        {
            tracing::error!(%error, "cannot give up media of other servers");
        }
        if let Err(error) = media::remote::sweep_expired(&app).await {
            tracing::error!(%error, "cannot give up the images of previews");
        }
        if let Err(error) = key_backup::sweep(&app).await {
            tracing::error!(%error, "cannot delete the keys of backups that are gone");
        }
        count += 1;
        if count % SELDOM == 0
            && let Err(error) = server_keys::forget_strangers(&app).await
        {
            tracing::error!(%error, "cannot forget the keys of strangers");
        }
        if count % SELDOM == 0
            && let Err(error) = forget(&app).await
        {
            tracing::error!(%error, "cannot forget which devices changed, and which messages came and were sent");
        }
        if count % SELDOM == 0
            && let Err(error) = to_device::drop_oldest(&app, MESSAGES_OUT).await
        {
            tracing::error!(%error, "cannot drop messages for servers that are away");
        }
        let before = std::mem::replace(&mut head, app.log.head());
        if let Err(error) = app.db.tend(head == before).await {
            tracing::warn!(%error, "cannot tend the database");
        }
    }
    write_seen(&app).await;
}

/// Forgets which devices changed long ago, and which messages came and were sent.
async fn forget(app: &App) -> Result<()> {
    // Who is gone is looked for here: nobody can write while the log's writer looks.
    let gone = storage::to_device::gone(&app.db).await?;
    let mut change = Change::new();
    for write in storage::to_device::prune(app.clock.now() - MESSAGES_KNOWN, &gone) {
        change.write(write);
    }
    change.write(storage::device_lists::prune(DEVICE_CHANGES));
    app.log.append(change).await?;
    Ok(())
}

/// Writes when devices were last seen. Nobody waits for it.
async fn write_seen(app: &App) {
    let mut change = Change::new();
    let fresh = app.seen.take();
    if fresh.is_empty() {
        return;
    }
    for (device, (ts, address)) in fresh {
        change.write(storage::devices::seen(
            device,
            ts,
            address.map(|a| a.to_string()),
        ));
    }
    if let Err(error) = app.log.append(change).await {
        tracing::warn!(%error, "cannot write when devices were last seen");
    }
}
