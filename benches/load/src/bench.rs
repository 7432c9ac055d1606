//! What all scenarios share: the connection, the options, accounts that are ready to be used.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    client::{User, next_batch},
    options::Options,
};

pub struct Bench {
    pub options: Options,
    pub url: String,
    pub http: reqwest::Client,
    state: Mutex<State>,
    run: u128,
    counter: AtomicU64,
    complaints: AtomicU64,
}

/// What the file `--state` keeps.
#[derive(Default, Serialize, Deserialize)]
struct State {
    /// Accounts that nothing has used yet.
    pool: Vec<User>,
    /// What a scenario prepared, by its name and sizes.
    prepared: BTreeMap<String, Prepared>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Prepared {
    pub users: Vec<User>,
    pub room: String,
}

/// A response of a sleeping sync and when it came.
pub type Arrival = (Instant, Value);

impl Bench {
    pub fn new(options: Options) -> Result<Arc<Self>> {
        let saved = options
            .state
            .as_ref()
            .and_then(|path| std::fs::read(path).ok());
        let state = saved.map_or_else(
            || Ok(State::default()),
            |bytes| serde_json::from_slice(&bytes),
        )?;
        // Connections are given up before a server would close them under a request.
        let http = reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .pool_max_idle_per_host(10_000)
            .pool_idle_timeout(Duration::from_secs(10))
            .timeout(Duration::from_mins(2))
            .build()?;
        Ok(Arc::new(Self {
            url: options.url.trim_end_matches('/').to_owned(),
            options,
            http,
            state: Mutex::new(state),
            run: SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis(),
            counter: AtomicU64::new(0),
            complaints: AtomicU64::new(0),
        }))
    }

    /// A string that this server has not seen yet.
    pub fn unique(&self) -> String {
        format!(
            "{:x}-{}",
            self.run,
            self.counter.fetch_add(1, Ordering::Relaxed)
        )
    }

    /// Prints the first errors of a run.
    pub fn complain(&self, error: &anyhow::Error) {
        if self.complaints.fetch_add(1, Ordering::Relaxed) < 10 {
            eprintln!("  {error:#}");
        }
    }

    fn save(&self) -> Result<()> {
        if let Some(path) = &self.options.state {
            std::fs::write(path, serde_json::to_vec(&*self.state.lock())?)?;
        }
        Ok(())
    }

    /// Accounts that nothing has used yet, registered now unless the state has some left.
    pub async fn take(self: &Arc<Self>, count: usize) -> Result<Vec<User>> {
        let mut users = {
            let pool = &mut self.state.lock().pool;
            let rest = pool.len().saturating_sub(count);
            pool.split_off(rest)
        };
        self.save()?;
        let missing = count - users.len();
        users.extend(
            self.prepare(missing, |bench, _| async move { bench.register().await })
                .await?,
        );
        Ok(users)
    }

    /// What an earlier run prepared under this name.
    pub fn prepared(&self, name: &str) -> Option<Prepared> {
        self.state.lock().prepared.get(name).cloned()
    }

    pub fn set_prepared(&self, name: String, prepared: &Prepared) -> Result<()> {
        self.state.lock().prepared.insert(name, prepared.clone());
        self.save()
    }

    /// Two new accounts in a direct room, `count` times.
    pub async fn direct_rooms(self: &Arc<Self>, count: usize) -> Result<Vec<(User, User, String)>> {
        let users = Arc::new(self.take(2 * count).await?);
        self.prepare(count, move |bench, i| {
            let users = users.clone();
            async move {
                let (a, b) = (users[2 * i].clone(), users[2 * i + 1].clone());
                let room = bench.direct_room(&a, &b).await?;
                Ok((a, b, room))
            }
        })
        .await
    }

    /// Runs `count` jobs, some at a time. The first error ends it.
    pub async fn prepare<T, W>(
        self: &Arc<Self>,
        count: usize,
        job: impl Fn(Arc<Self>, usize) -> W,
    ) -> Result<Vec<T>>
    where
        W: Future<Output = Result<T>>,
    {
        stream::iter((0..count).map(|i| job(self.clone(), i)))
            .buffered(self.options.preparing)
            .try_collect()
            .await
    }

    /// Long-polls for a user and hands on every response, until it is aborted or nobody listens.
    pub fn listen(
        self: &Arc<Self>,
        user: &User,
        mut since: String,
        to: mpsc::UnboundedSender<Arrival>,
    ) -> JoinHandle<()> {
        let (bench, user) = (self.clone(), user.clone());
        tokio::spawn(async move {
            loop {
                match bench.sync(&user, Some(&since), 30_000).await {
                    Ok(response) => {
                        let arrived = Instant::now();
                        match next_batch(&response) {
                            Ok(token) => since = token,
                            Err(error) => return bench.complain(&error),
                        }
                        if to.send((arrived, response)).is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        bench.complain(&error);
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        })
    }
}
