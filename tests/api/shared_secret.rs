//! `/_synapse/admin/v1/register`, as Synapse's manual describes it.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use homing::config::RegistrationMode;
use reqwest::Method;
use serde_json::{Value, json};
use sha1::Sha1;

use crate::server::{PASSWORD, TestServer, User};

const PATH: &str = "/_synapse/admin/v1/register";

fn mac(secret: &str, parts: &[&str]) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(parts.join("\0").as_bytes());
    let bytes = mac.finalize().into_bytes();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn nonce(server: &TestServer) -> String {
    let answer = server.request(Method::GET, PATH, None, None).await.ok();
    answer["nonce"].as_str().unwrap().to_owned()
}

async fn closed_server() -> TestServer {
    TestServer::start_with(|config| {
        config.registration.mode = RegistrationMode::Closed;
        config.registration.shared_secret = Some("secret".to_owned().into());
    })
    .await
}

async fn body(server: &TestServer, name: &str, admin: bool) -> Value {
    let nonce = nonce(server).await;
    let word = if admin { "admin" } else { "notadmin" };
    let mac = mac("secret", &[&nonce, name, PASSWORD, word]);
    json!({ "nonce": nonce, "username": name, "password": PASSWORD, "admin": admin, "mac": mac })
}

#[tokio::test]
async fn who_knows_the_secret_registers() {
    let server = closed_server().await;
    for (name, admin) in [("alice", true), ("bob", false)] {
        let answer = server
            .post(PATH, body(&server, name, admin).await)
            .await
            .ok();
        assert_eq!(answer["home_server"], "localhost");
        let user = User::new(&server, &answer);
        assert_eq!(user.id, format!("@{name}:localhost"));
        let requester = homing::auth::requester(&server.app, &user.token)
            .await
            .unwrap();
        assert_eq!(requester.is_admin, admin);
        server.login(name, PASSWORD, json!({})).await.ok();
    }
    let nonce = nonce(&server).await;
    let mac = mac("secret", &[&nonce, "robot", PASSWORD, "notadmin", "bot"]);
    let robot = json!({
        "nonce": nonce, "username": "robot", "password": PASSWORD, "admin": false,
        "user_type": "bot", "displayname": "Robot", "mac": mac,
    });
    server.post(PATH, robot).await.ok();
}

#[tokio::test]
async fn others_do_not() {
    let server = closed_server().await;
    let good = body(&server, "alice", false).await;
    let changed = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    let unknown = changed("nonce", json!("made up"));
    server.post(PATH, unknown).await.fails(400, "M_UNKNOWN");
    for key in ["nonce", "username", "password", "mac"] {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(key);
        server.post(PATH, body).await.fails(400, "M_MISSING_PARAM");
    }
    server
        .post(PATH, changed("admin", json!("yes")))
        .await
        .fails(400, "M_BAD_JSON");
    // A nonce is used up by the first try, right or wrong.
    for (key, value) in [
        ("admin", json!(true)),
        ("mac", json!("ä")),
        ("mac", json!("+f".repeat(20))),
    ] {
        let mut body = body(&server, "alice", false).await;
        body[key] = value;
        server
            .post(PATH, body.clone())
            .await
            .fails(403, "M_UNKNOWN");
        server.post(PATH, body).await.fails(400, "M_UNKNOWN");
    }
    server.post(PATH, good.clone()).await.ok();
    let taken = body(&server, "alice", false).await;
    server.post(PATH, taken).await.fails(400, "M_USER_IN_USE");
    let late = body(&server, "bob", false).await;
    server.app.clock.advance(Duration::from_secs(61));
    server.post(PATH, late).await.fails(400, "M_UNKNOWN");
}

#[tokio::test]
async fn without_a_secret_it_is_closed() {
    let server = TestServer::start().await;
    let answer = server.request(Method::GET, PATH, None, None).await;
    answer.fails(400, "M_UNKNOWN");
    server.post(PATH, json!({})).await.fails(400, "M_UNKNOWN");
}
