//! "Fallback" of the "User-Interactive Authentication API".

use base64::{Engine as _, engine::general_purpose::STANDARD};
use homing::config::RegistrationMode;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::server::{PASSWORD, TestServer, User};

fn address(server: &TestServer, stage: &str, session: &Value) -> String {
    let session = session.as_str().unwrap();
    let path = format!("/_matrix/client/v3/auth/{stage}/fallback/web?session={session}");
    format!("http://{}{path}", server.address)
}

/// The text of a page that is as strict as it must be.
async fn text(response: Response) -> String {
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/html; charset=utf-8");
    assert_eq!(header("cache-control"), "no-store");
    let policy = header("content-security-policy");
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    let text = response.text().await.unwrap();
    if let Some((_, rest)) = text.split_once("<script>") {
        let (script, _) = rest.split_once("</script>").unwrap();
        let hash = STANDARD.encode(Sha256::digest(script.as_bytes()));
        assert!(policy.contains(&format!("'sha256-{hash}'")), "{policy}");
    }
    text
}

async fn open(server: &TestServer, stage: &str, session: &Value) -> String {
    let page = server.http.get(address(server, stage, session));
    let page = page.send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    text(page).await
}

async fn enter(
    server: &TestServer,
    stage: &str,
    session: &Value,
    form: &'static str,
) -> (StatusCode, String) {
    let request = server.http.post(address(server, stage, session));
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let response = request.body(form).send().await.unwrap();
    (response.status(), text(response).await)
}

#[tokio::test]
async fn an_account_is_registered_with_the_token_entered_in_a_browser() {
    let server = TestServer::start_with(|config| {
        config.registration.mode = RegistrationMode::Token;
        config.registration.tokens = vec!["open sesame".to_owned().into()];
    });
    let server = server.await;
    let stage = "m.login.registration_token";
    let body = json!({ "username": "alice", "password": PASSWORD });
    let asked = server.post("/register", body).await;
    let session = &asked.body["session"];
    let page = open(&server, stage, session).await;
    assert!(page.contains("<form method=\"post\">"), "{page}");
    assert!(page.contains("name=\"token\""), "{page}");
    assert!(!page.contains("<script"), "{page}");

    let again = json!({ "auth": { "session": session } });
    let (status, page) = enter(&server, stage, session, "token=guess").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(page.contains("name=\"token\"") && !page.contains("<script"));
    assert_eq!(server.post("/register", again.clone()).await.status, 401);

    let (status, page) = enter(&server, stage, session, "token=open+sesame").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains("window.onAuthDone()"), "{page}");
    assert!(page.contains("postMessage(\"authDone\", \"*\")"), "{page}");
    let made = server.post("/register", again).await.ok();
    assert_eq!(made["user_id"], "@alice:localhost");
}

#[tokio::test]
async fn a_button_is_enough_where_nothing_is_asked() {
    let server = TestServer::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD });
    let asked = server.post("/register", body).await;
    let session = &asked.body["session"];
    open(&server, "m.login.dummy", session).await;
    // Looking at the page passes nothing.
    let again = json!({ "auth": { "session": session } });
    assert_eq!(server.post("/register", again.clone()).await.status, 401);
    let (status, _) = enter(&server, "m.login.dummy", session, "").await;
    assert_eq!(status, StatusCode::OK);
    server.post("/register", again).await.ok();
}

#[tokio::test]
async fn a_device_is_deleted_with_the_password_entered_in_a_browser() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let more = json!({ "device_id": "PHONE" });
    let phone = User::new(&server, &server.login("alice", PASSWORD, more).await.ok());
    let body = json!({ "devices": ["PHONE"] });
    let asked = alice.post("/delete_devices", body).await;
    let session = &asked.body["session"];
    let page = open(&server, "m.login.password", session).await;
    assert!(page.contains("type=\"password\""), "{page}");
    let stage = "m.login.password";
    let (status, _) = enter(&server, stage, session, "password=guess").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let form = "password=correct%20horse+battery+staple";
    let (status, _) = enter(&server, stage, session, form).await;
    assert_eq!(status, StatusCode::OK);
    let again = json!({ "auth": { "session": session } });
    // The session is the one person's who began it.
    let bob = server.register("bob").await;
    let answer = bob.post(
        "/delete_devices",
        json!({ "devices": ["X"], "auth": { "session": session } }),
    );
    assert_eq!(answer.await.status, 401);
    alice.post("/delete_devices", again).await.ok();
    let answer = phone.get("/account/whoami").await;
    answer.fails(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn there_is_no_page_without_a_session_that_waits_for_it() {
    let server = TestServer::start().await;
    let asked = server.post("/register", json!({})).await;
    let session = asked.body["session"].as_str().unwrap();
    let path = |stage: &str, session: &str| {
        format!("/_matrix/client/v3/auth/{stage}/fallback/web?session={session}")
    };
    for path in [
        path("m.login.dummy", "unknown"),
        path("m.login.password", session),
        path("m.login.recaptcha", session),
    ] {
        for method in [reqwest::Method::GET, reqwest::Method::POST] {
            let answer = server.request(method, &path, None, None).await;
            assert!(
                answer.status.is_client_error() && answer.body["errcode"].is_string(),
                "{path}: {answer:?}"
            );
        }
    }
    let path = "/_matrix/client/v3/auth/m.login.dummy/fallback/web";
    let answer = server.request(reqwest::Method::GET, path, None, None).await;
    answer.fails(400, "M_MISSING_PARAM");
}
