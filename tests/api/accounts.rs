//! "Account registration", "Login" and what belongs to them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Answer, PASSWORD, TestServer, User};

/// Sends a request that needs no access token.
async fn ask(server: &TestServer, method: Method, path: &str, body: Option<Value>) -> Answer {
    let path = if path.starts_with("/_") {
        path.to_owned()
    } else {
        format!("/_matrix/client/v3{path}")
    };
    server.request(method, &path, None, body).await
}

async fn post(server: &TestServer, path: &str, body: Value) -> Answer {
    ask(server, Method::POST, path, Some(body)).await
}

async fn login(server: &TestServer, user: &str, password: &str) -> Answer {
    let body = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
    });
    post(server, "/login", body).await
}

#[tokio::test]
async fn somebody_registers_signs_out_and_in() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    assert_eq!(alice.id, "@alice:localhost");
    let me = alice.get("/account/whoami").await.ok();
    assert_eq!(me["user_id"], alice.id);
    assert_eq!(me["device_id"], alice.device_id);

    alice.post("/logout", json!({})).await.ok();
    alice
        .get("/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");

    for name in ["alice", "Alice", "@alice:localhost"] {
        let answer = login(&server, name, PASSWORD).await.ok();
        let again = User::new(&server, &answer);
        assert_eq!(again.id, alice.id);
        assert_ne!(again.device_id, alice.device_id);
        again.get("/account/whoami").await.ok();
    }
    for (name, password) in [
        ("alice", "wrong"),
        ("bob", PASSWORD),
        ("@alice:elsewhere", PASSWORD),
    ] {
        login(&server, name, password)
            .await
            .fails(403, "M_FORBIDDEN");
    }
}
