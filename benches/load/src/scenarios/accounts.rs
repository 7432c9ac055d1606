use std::sync::Arc;

use anyhow::Result;
use reqwest::Method;
use serde_json::json;

use crate::{bench::Bench, client::PASSWORD, measure::rate};

pub async fn register(bench: &Arc<Bench>, name: &str) -> Result<()> {
    rate(bench, name, bench.options.workers, |bench, _| async move {
        bench.register().await.map(drop)
    })
    .await
}

pub async fn login(bench: &Arc<Bench>, name: &str) -> Result<()> {
    let users = Arc::new(bench.take(bench.options.workers).await?);
    rate(bench, name, bench.options.workers, |bench, worker| {
        let users = users.clone();
        async move {
            let body = json!({
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": users[worker].id},
                "password": PASSWORD,
            });
            bench
                .fire(
                    Method::POST,
                    "/_matrix/client/v3/login",
                    &users[worker],
                    Some(&body),
                )
                .await
                .map(drop)
        }
    })
    .await
}
