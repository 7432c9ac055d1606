//! Requests to the homeserver.

use anyhow::{Context, Result, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bench::Bench;

pub const PASSWORD: &str = "load-Password-1!";

/// A hundred bytes, the length of an everyday message.
pub const TEXT: &str = "The quick brown fox jumps over the lazy dog, and then some more words to make it a hundred bytes....";

#[derive(Clone, Serialize, Deserialize)]
pub struct User {
    pub id: String,
    pub token: String,
}

/// One segment of a path, or one value of a query.
pub fn encode(text: &str) -> String {
    const RESERVED: AsciiSet = NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'.')
        .remove(b'_')
        .remove(b'~');
    utf8_percent_encode(text, &RESERVED).to_string()
}

/// The path of something in a room: `what` is what follows the room's id.
pub fn room_path(room: &str, what: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{what}", encode(room))
}

impl Bench {
    /// Any request; the status and the body of the answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Option<&Value>,
    ) -> Result<(u16, Vec<u8>)> {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        Ok((status, response.bytes().await?.to_vec()))
    }

    /// A request that must succeed. The body is not parsed, which keeps this side cheap.
    pub async fn fire(
        &self,
        method: Method,
        path: &str,
        user: &User,
        body: Option<&Value>,
    ) -> Result<Vec<u8>> {
        let (status, answer) = self
            .request(method.clone(), path, Some(&user.token), body)
            .await?;
        if status != 200 {
            bail!(
                "{method} {path}: {status} {}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(answer)
    }

    /// A request that must succeed, and its answer.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        user: &User,
        body: Option<&Value>,
    ) -> Result<Value> {
        Ok(serde_json::from_slice(
            &self.fire(method, path, user, body).await?,
        )?)
    }

    /// Registers by whichever of dummy and token authentication the server asks for.
    pub async fn register(&self) -> Result<User> {
        let username = format!("load{}", self.unique());
        let mut auth = match &self.options.registration_token {
            Some(token) => json!({"type": "m.login.registration_token", "token": token}),
            None => json!({"type": "m.login.dummy"}),
        };
        for _ in 0..3 {
            let body = json!({"username": username, "password": PASSWORD, "auth": auth});
            let (status, answer) = self
                .request(
                    Method::POST,
                    "/_matrix/client/v3/register",
                    None,
                    Some(&body),
                )
                .await?;
            let answer: Value = serde_json::from_slice(&answer)?;
            if status == 200 {
                let field = |name| {
                    answer[name]
                        .as_str()
                        .map(str::to_owned)
                        .context("not registered")
                };
                return Ok(User {
                    id: field("user_id")?,
                    token: field("access_token")?,
                });
            }
            let completed = answer["completed"].as_array();
            if completed.is_some_and(|stages| {
                stages
                    .iter()
                    .any(|stage| stage == "m.login.registration_token")
            }) {
                auth = json!({"type": "m.login.dummy"});
            }
            if status != 401 || answer["session"].is_null() {
                bail!("register: {status} {answer}");
            }
            auth["session"] = answer["session"].clone();
        }
        bail!("the server's registration wants more than a token and a dummy stage")
    }

    pub async fn create_room(&self, user: &User, body: &Value) -> Result<String> {
        let answer = self
            .call(
                Method::POST,
                "/_matrix/client/v3/createRoom",
                user,
                Some(body),
            )
            .await?;
        Ok(answer["room_id"].as_str().context("no room_id")?.to_owned())
    }

    pub async fn join(&self, user: &User, room: &str) -> Result<()> {
        self.fire(
            Method::POST,
            &room_path(room, "join"),
            user,
            Some(&json!({})),
        )
        .await?;
        Ok(())
    }

    /// Sends a text message.
    pub async fn send(&self, user: &User, room: &str, text: &str) -> Result<()> {
        let path = room_path(room, &format!("send/m.room.message/{}", self.unique()));
        self.fire(
            Method::PUT,
            &path,
            user,
            Some(&json!({"msgtype": "m.text", "body": text})),
        )
        .await?;
        Ok(())
    }

    /// One sync; `timeout` in milliseconds.
    pub async fn sync(&self, user: &User, since: Option<&str>, timeout: u64) -> Result<Value> {
        let since = since
            .map(|since| format!("&since={}", encode(since)))
            .unwrap_or_default();
        let path = format!("/_matrix/client/v3/sync?timeout={timeout}{since}");
        self.call(Method::GET, &path, user, None).await
    }

    /// A token after which the server has nothing to tell: presence and the like have arrived.
    pub async fn settle(&self, user: &User) -> Result<String> {
        let mut since = None;
        for _ in 0..4 {
            since = Some(next_batch(&self.sync(user, since.as_deref(), 0).await?)?);
        }
        since.context("never synced")
    }

    /// A direct room of two people.
    pub async fn direct_room(&self, a: &User, b: &User) -> Result<String> {
        let body = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [b.id]});
        let room = self.create_room(a, &body).await?;
        self.join(b, &room).await?;
        Ok(room)
    }
}

pub fn next_batch(sync: &Value) -> Result<String> {
    Ok(sync["next_batch"]
        .as_str()
        .context("no next_batch")?
        .to_owned())
}

/// The texts of the messages in a room's timeline.
pub fn texts<'a>(sync: &'a Value, room: &str) -> impl Iterator<Item = &'a str> {
    let events = sync["rooms"]["join"][room]["timeline"]["events"].as_array();
    events
        .into_iter()
        .flatten()
        .filter_map(|event| event["content"]["body"].as_str())
}
