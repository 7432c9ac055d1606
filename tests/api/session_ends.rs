//! What is waiting for a session that ends: it is told at once, and nothing else any more.

use std::time::Duration;

use futures_util::future;
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Answer, PASSWORD, TestServer, User};

async fn sign_in<'s>(server: &'s TestServer, device: &str) -> User<'s> {
    let more = json!({ "device_id": device });
    User::new(server, &server.login("alice", PASSWORD, more).await.ok())
}

async fn sleeping(server: &TestServer, count: i64) {
    while server.app.metrics.sync_waiters.get() != count {
        tokio::task::yield_now().await;
    }
}

/// A sync of `user` that sleeps until `end` has happened, and its answer.
async fn sync_until(user: &User<'_>, end: impl Future<Output = ()>) -> Answer {
    let first = user.sync("set_presence=offline").await;
    let since = first["next_batch"].as_str().unwrap();
    let path = format!("/sync?since={since}&timeout=300000&set_presence=offline");
    let both = future::join(user.get(&path), async {
        sleeping(user.server, 1).await;
        end.await;
    });
    let both = tokio::time::timeout(Duration::from_secs(30), both).await;
    both.expect("the sync is answered at once").0
}

#[tokio::test]
async fn a_sleeping_sync_is_told_that_its_session_has_ended() {
    let server = TestServer::start().await;
    server.register("alice").await;
    let other = sign_in(&server, "OTHER").await;
    for way in ["logout", "delete", "password", "again", "all", "deactivate"] {
        let phone = sign_in(&server, "PHONE").await;
        let other = match way {
            "all" | "deactivate" => sign_in(&server, "OTHER").await,
            _ => User {
                server: &server,
                id: other.id.clone(),
                token: other.token.clone(),
                device_id: String::new(),
            },
        };
        let interactive = async |method, path: &str, body: Value| {
            other.send_with_password(method, path, body).await.ok();
        };
        let end = async {
            match way {
                "logout" => {
                    phone.post("/logout", json!({})).await.ok();
                }
                "delete" => interactive(Method::DELETE, "/devices/PHONE", json!({})).await,
                "password" => {
                    let body = json!({ "new_password": PASSWORD });
                    interactive(Method::POST, "/account/password", body).await;
                }
                "again" => {
                    sign_in(&server, "PHONE").await;
                }
                "all" => {
                    other.post("/logout/all", json!({})).await.ok();
                }
                _ => interactive(Method::POST, "/account/deactivate", json!({})).await,
            }
        };
        let answer = sync_until(&phone, end).await;
        let body = answer.fails(401, "M_UNKNOWN_TOKEN");
        assert_ne!(body["soft_logout"], json!(true), "{way}");
        sleeping(&server, 0).await;
    }
}

#[tokio::test]
async fn a_sleeping_sync_of_another_session_sleeps_on() {
    let server = TestServer::start().await;
    server.register("alice").await;
    let (phone, laptop) = (
        sign_in(&server, "PHONE").await,
        sign_in(&server, "LAPTOP").await,
    );
    let room = laptop.create_room(json!({})).await;
    let answer = sync_until(&phone, async {
        let tablet = sign_in(&server, "TABLET").await;
        tablet.post("/logout", json!({})).await.ok();
        assert_eq!(server.app.metrics.sync_waiters.get(), 1);
        laptop.say(&room, "still there?").await;
    });
    let answer = answer.await.ok();
    assert!(answer["rooms"]["join"][&room].is_object());
}

#[tokio::test]
async fn a_download_that_waits_is_told_too() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let made = alice.post("/_matrix/media/v1/create", json!({})).await.ok();
    let uri = made["content_uri"].as_str().unwrap();
    let name = uri.strip_prefix("mxc://").unwrap();
    for what in ["download", "thumbnail"] {
        let phone = User::new(
            &server,
            &server.login("bob", PASSWORD, json!({})).await.ok(),
        );
        let path =
            format!("/_matrix/client/v1/media/{what}/{name}?timeout_ms=50000&width=9&height=9");
        let both = future::join(phone.get(&path), async {
            while !server.app.files.is_awaited() {
                tokio::task::yield_now().await;
            }
            phone.post("/logout", json!({})).await.ok();
        });
        let both = tokio::time::timeout(Duration::from_secs(30), both).await;
        let (answer, ()) = both.expect("the download is answered at once");
        answer.fails(401, "M_UNKNOWN_TOKEN");
    }
    bob.get("/account/whoami").await.ok();
}
