//! Application services register users and log in as them ("Server admin style permissions").

use homing::config::{ApplicationService, RegistrationMode};
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Answer, PASSWORD, TestServer, User};

const TOKEN: &str = "the bridge's token";

async fn start() -> TestServer {
    TestServer::start_with(|config| {
        let bridge = ApplicationService {
            id: "irc".to_owned(),
            token: TOKEN.to_owned().into(),
            sender_localpart: "ircbot".to_owned(),
            users: vec!["@(_irc_|irc-).*:localhost".to_owned()],
            exclusive: true,
        };
        let guest = ApplicationService {
            id: "other".to_owned(),
            token: "another".to_owned().into(),
            sender_localpart: "otherbot".to_owned(),
            users: vec!["@other-.*".to_owned()],
            exclusive: false,
        };
        config.application_services = vec![bridge, guest];
    })
    .await
}

async fn post(server: &TestServer, path: &str, token: Option<&str>, mut body: Value) -> Answer {
    body["type"] = json!("m.login.application_service");
    let path = format!("/_matrix/client/v3/{path}");
    server.request(Method::POST, &path, token, Some(body)).await
}

fn named(user: &str) -> Value {
    json!({ "identifier": { "type": "m.id.user", "user": user } })
}

#[tokio::test]
async fn a_service_makes_its_users_and_logs_in_as_them() {
    let server = start().await;
    for name in ["_irc_alice", "irc-bob", "ircbot"] {
        let body = json!({ "username": name });
        let made = post(&server, "register", Some(TOKEN), body.clone()).await;
        let user = User::new(&server, &made.ok());
        assert_eq!(user.id, format!("@{name}:localhost"));
        user.get("/account/whoami").await.ok();
        let again = post(&server, "register", Some(TOKEN), body).await;
        again.fails(400, "M_USER_IN_USE");
        for name in [name, &user.id] {
            let login = post(&server, "login", Some(TOKEN), named(name)).await;
            User::new(&server, &login.ok())
                .get("/account/whoami")
                .await
                .ok();
        }
        // There is no password.
        let answer = server.login(name, PASSWORD, json!({})).await;
        answer.fails(403, "M_FORBIDDEN");
    }
    let body = json!({ "username": "_irc_quiet", "inhibit_login": true });
    let made = post(&server, "register", Some(TOKEN), body).await.ok();
    assert!(made.get("access_token").is_none());
    let flows = server.request(Method::GET, "/_matrix/client/v3/login", None, None);
    let flows = flows.await.ok().to_string();
    assert!(flows.contains("m.login.application_service"), "{flows}");
}

#[tokio::test]
async fn nobody_takes_the_names_of_others() {
    let server = start().await;
    let alice = server.register("alice").await;
    let body = json!({ "username": "carol" });
    post(&server, "register", Some(TOKEN), body.clone())
        .await
        .fails(400, "M_EXCLUSIVE");
    post(
        &server,
        "register",
        Some("another"),
        json!({ "username": "_irc_x" }),
    )
    .await
    .fails(400, "M_EXCLUSIVE");
    post(&server, "login", Some(TOKEN), named("alice"))
        .await
        .fails(400, "M_EXCLUSIVE");
    post(&server, "login", Some(TOKEN), named("_irc_nobody"))
        .await
        .fails(403, "M_FORBIDDEN");
    for path in ["register", "login"] {
        post(&server, path, None, named("alice"))
            .await
            .fails(401, "M_MISSING_TOKEN");
        post(&server, path, Some(&alice.token), named("alice"))
            .await
            .fails(401, "M_UNKNOWN_TOKEN");
    }
    post(&server, "register", Some(TOKEN), json!({}))
        .await
        .fails(400, "M_MISSING_PARAM");

    for name in ["irc-carol", "ircbot"] {
        let body = json!({
            "username": name, "password": PASSWORD, "auth": { "type": "m.login.dummy" },
        });
        server
            .post("/register", body)
            .await
            .fails(400, "M_EXCLUSIVE");
        let path = format!("/_matrix/client/v3/register/available?username={name}");
        let answer = server.request(Method::GET, &path, None, None).await;
        answer.fails(400, "M_EXCLUSIVE");
    }
    // This service shares its names.
    server.register("other-carol").await;
}

#[tokio::test]
async fn a_service_needs_no_open_registration() {
    let server = TestServer::start_with(|config| {
        config.registration.mode = RegistrationMode::Closed;
        config.application_services = vec![ApplicationService {
            id: "irc".to_owned(),
            token: TOKEN.to_owned().into(),
            sender_localpart: "ircbot".to_owned(),
            users: Vec::new(),
            exclusive: true,
        }];
    });
    let server = server.await;
    let body = json!({ "username": "ircbot" });
    post(&server, "register", Some(TOKEN), body).await.ok();
}
