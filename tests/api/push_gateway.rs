//! A push gateway that keeps what it is told.

use axum::{Json, response::IntoResponse as _};
use homing::config::Config;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    fake_server::{FakeServer, Recorded, error},
    server::{Answer, User},
    tls,
};

const PATH: &str = "/_matrix/push/v1/notify";

/// A push gateway. It takes everything until the test says otherwise.
pub struct Gateway {
    pub fake: FakeServer,
}

/// Lets a server reach the push gateways of these tests.
pub fn reachable(config: &mut Config) {
    let folder = config.data_dir.clone();
    config.federation.ca_file = Some(tls::write_authority(&folder));
    config.push.allow_addresses = vec!["127.0.0.0/8".parse().expect("a network")];
}

impl Gateway {
    pub async fn start() -> Self {
        let fake = FakeServer::start().await;
        let gateway = Self { fake };
        gateway.takes();
        gateway
    }

    /// Takes everything from now on.
    pub fn takes(&self) {
        self.answers(json!({ "rejected": [] }));
    }

    /// Answers everything with this.
    pub fn answers(&self, answer: Value) {
        self.fake.answers(Method::POST, PATH, answer);
    }

    /// Refuses everything from now on.
    pub fn fails(&self, status: u16) {
        let refuse = move |_: &Recorded| error(status, "M_UNKNOWN");
        self.fake.on(Method::POST, PATH, refuse);
    }

    /// Refuses everything from now on, and wants to be left alone for so many seconds.
    pub fn fails_for_now(&self, seconds: u64) {
        let refuse = move |_: &Recorded| {
            let mut refusal = error(429, "M_LIMIT_EXCEEDED");
            refusal.headers_mut().insert("retry-after", seconds.into());
            refusal
        };
        self.fake.on(Method::POST, PATH, refuse);
    }

    /// Refuses requests with this pushkey, and takes all others.
    pub fn fails_for(&self, pushkey: &'static str) {
        self.fake.on(Method::POST, PATH, move |request: &Recorded| {
            if key(&notification(request)) == pushkey {
                error(503, "M_UNKNOWN")
            } else {
                Json(json!({ "rejected": [] })).into_response()
            }
        });
    }

    /// The address that pushers have.
    pub fn url(&self) -> String {
        format!("https://{}{PATH}", self.fake.name)
    }

    /// What a client says to set a pusher.
    pub fn pusher(&self, pushkey: &str) -> Value {
        json!({
            "kind": "http",
            "app_id": "org.example.app",
            "pushkey": pushkey,
            "app_display_name": "An app",
            "device_display_name": "A phone",
            "lang": "en",
            "data": { "url": self.url() },
        })
    }

    /// Sets a pusher with this key.
    pub async fn set(&self, user: &User<'_>, pushkey: &str) {
        set(user, self.pusher(pushkey)).await.ok();
    }

    /// All notifications so far, with those that were not taken.
    pub fn told(&self) -> Vec<Value> {
        let requests = self.fake.recorded().into_iter();
        requests
            .filter(|request| request.path == PATH)
            .map(|request| notification(&request))
            .collect()
    }

    /// Those for a pushkey.
    pub fn told_to(&self, pushkey: &str) -> Vec<Value> {
        let mut told = self.told();
        told.retain(|told| key(told) == pushkey);
        told
    }

    /// The events of which a pushkey was told.
    pub fn events(&self, pushkey: &str) -> Vec<String> {
        let told = self.told_to(pushkey).into_iter();
        told.filter_map(|told| Some(told["event_id"].as_str()?.to_owned()))
            .collect()
    }

    /// Waits until a pushkey was told of an event, and answers what it was told.
    pub async fn wait_for(&self, pushkey: &str, event: &str) -> Value {
        let is_it = |told: &Value| key(told) == pushkey && told["event_id"] == event;
        self.wait(is_it).await
    }

    /// Waits until a pushkey was told that so much is unread, and nothing else.
    pub async fn wait_for_badge(&self, pushkey: &str, unread: i64) -> Value {
        self.wait(|told| {
            key(told) == pushkey
                && told.get("event_id").is_none()
                && told["counts"]["unread"] == unread
        })
        .await
    }

    /// Waits for a notification.
    pub async fn wait(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let is_it = |request: &Recorded| request.path == PATH && wanted(&notification(request));
        notification(&self.fake.wait_for(is_it).await)
    }
}

pub async fn set(user: &User<'_>, pusher: Value) -> Answer {
    user.post("/pushers/set", pusher).await
}

fn notification(request: &Recorded) -> Value {
    request.body["notification"].clone()
}

fn key(told: &Value) -> &str {
    told["devices"][0]["pushkey"].as_str().unwrap_or_default()
}
