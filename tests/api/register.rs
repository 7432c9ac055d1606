//! "Account registration", "Token-authenticated registration", "Guest Access".

use homing::config::RegistrationMode;
use reqwest::Method;
use serde_json::{Value, json};

use crate::server::{Answer, PASSWORD, TestServer, User};

async fn register(server: &TestServer, name: &str, auth: Value) -> Answer {
    let body = json!({ "username": name, "password": PASSWORD, "auth": auth });
    server.post("/register", body).await
}

fn dummy() -> Value {
    json!({ "type": "m.login.dummy" })
}

fn with_token(token: &str) -> Value {
    json!({ "type": "m.login.registration_token", "token": token })
}

#[tokio::test]
async fn session_keeps_what_was_sent_before() {
    let server = TestServer::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD, "device_id": "PHONE" });
    let asked = server.post("/register", body).await;
    assert_eq!(asked.status, 401);
    assert!(asked.body["errcode"].is_null(), "{}", asked.body);
    let flows = asked.body["flows"].as_array().unwrap();
    assert!(flows.contains(&json!({ "stages": ["m.login.dummy"] })));
    let session = asked.body["session"].as_str().unwrap();

    let auth = json!({ "auth": { "type": "m.login.dummy", "session": session } });
    let answer = server.post("/register", auth.clone()).await.ok();
    assert_eq!(answer["user_id"], "@alice:localhost");
    assert_eq!(answer["device_id"], "PHONE");
    assert!(answer["access_token"].is_string());
    // The session has ended with that.
    let again = server.post("/register", auth).await;
    assert_eq!(again.status, 401, "{}", again.body);
    assert_ne!(again.body["session"], session);
}

#[tokio::test]
async fn session_is_for_one_endpoint() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let asked = server.post(
        "/register",
        json!({ "username": "bob", "password": PASSWORD }),
    );
    let session = asked.await.body["session"].clone();
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": PASSWORD,
        "session": session,
    });
    let answer = alice
        .post("/delete_devices", json!({ "devices": [], "auth": auth }))
        .await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.body["errcode"], "M_UNKNOWN");
    assert_ne!(answer.body["session"], session);
}

#[tokio::test]
async fn empty_or_strange_auth_asks_again() {
    let server = TestServer::start().await;
    for auth in [
        json!({}),
        json!(null),
        json!({ "session": "gone" }),
        json!({ "type": "m.login.unheard" }),
        json!({ "type": "m.login.recaptcha", "response": "x" }),
    ] {
        let answer = register(&server, "alice", auth.clone()).await;
        assert_eq!(answer.status, 401, "{auth}: {}", answer.body);
        assert!(answer.body["session"].is_string(), "{auth}");
    }
    register(&server, "alice", json!("x"))
        .await
        .fails(400, "M_BAD_JSON");
    let body = json!({ "username": "alice", "auth": dummy() });
    server
        .post("/register", body)
        .await
        .fails(400, "M_MISSING_PARAM");
    server
        .post("/register", json!([]))
        .await
        .fails(400, "M_BAD_JSON");
}

#[tokio::test]
async fn names_follow_the_rules() {
    let server = TestServer::start().await;
    let long = "a".repeat(255 - ":localhost".len());
    for name in [
        "",
        "a b",
        "ä",
        "@alice:localhost",
        "a:b",
        "123",
        "_service",
        &long,
    ] {
        let answer = register(&server, name, dummy()).await;
        answer.fails(400, "M_INVALID_USERNAME");
        let name: String = name.bytes().map(|b| format!("%{b:02x}")).collect();
        let path = format!("/_matrix/client/v3/register/available?username={name}");
        let answer = server.request(Method::GET, &path, None, None).await;
        answer.fails(400, "M_INVALID_USERNAME");
    }
    for (name, id) in [
        ("a.b_c=d-e/f+1", "@a.b_c=d-e/f+1:localhost"),
        ("Carol", "@carol:localhost"),
        (&long[1..], &format!("@{}:localhost", &long[1..])),
    ] {
        let answer = register(&server, name, dummy()).await.ok();
        assert_eq!(answer["user_id"], *id);
    }
    let nameless = json!({ "password": PASSWORD, "auth": dummy() });
    let answer = server.post("/register", nameless).await.ok();
    let alice = User::new(&server, &answer);
    alice.get("/account/whoami").await.ok();
}

#[tokio::test]
async fn name_belongs_to_one() {
    let server = TestServer::start().await;
    let available = || async {
        let path = "/_matrix/client/v3/register/available?username=alice";
        server.request(Method::GET, path, None, None).await
    };
    assert_eq!(available().await.ok()["available"], true);
    let answers = tokio::join!(
        register(&server, "alice", dummy()),
        register(&server, "alice", dummy()),
        register(&server, "Alice", dummy()),
    );
    let mut made = 0;
    for answer in [answers.0, answers.1, answers.2] {
        if answer.status == 200 {
            made += 1;
        } else {
            answer.fails(400, "M_USER_IN_USE");
        }
    }
    assert_eq!(made, 1);
    available().await.fails(400, "M_USER_IN_USE");
    // Said before anything is proved.
    let body = json!({ "username": "alice", "password": PASSWORD });
    server
        .post("/register", body)
        .await
        .fails(400, "M_USER_IN_USE");
}

#[tokio::test]
async fn account_can_be_made_without_a_session() {
    let server = TestServer::start().await;
    let body = json!({ "username": "alice", "password": PASSWORD, "auth": dummy(), "inhibit_login": true });
    let answer = server.post("/register", body).await.ok();
    assert_eq!(answer["user_id"], "@alice:localhost");
    assert!(answer.get("access_token").is_none());
    assert!(answer.get("device_id").is_none());
    server.login("alice", PASSWORD, json!({})).await.ok();
}

#[tokio::test]
async fn registration_can_give_refresh_tokens_and_name_devices() {
    let server = TestServer::start().await;
    let body = json!({
        "username": "alice", "password": PASSWORD, "auth": dummy(),
        "refresh_token": true, "initial_device_display_name": "phone",
    });
    let answer = server.post("/register", body).await.ok();
    assert_eq!(answer["expires_in_ms"], 3_600_000);
    assert!(answer["refresh_token"].is_string());
    let alice = User::new(&server, &answer);
    let device = alice
        .get(&format!("/devices/{}", alice.device_id))
        .await
        .ok();
    assert_eq!(device["display_name"], "phone");
}

#[tokio::test]
async fn bad_passwords_are_refused() {
    let server = TestServer::start().await;
    for (password, errcode) in [
        ("", "M_WEAK_PASSWORD"),
        (&*"x".repeat(2000), "M_INVALID_PARAM"),
    ] {
        let body = json!({ "username": "alice", "password": password, "auth": dummy() });
        server.post("/register", body).await.fails(400, errcode);
    }
}

#[tokio::test]
async fn other_ways_are_refused() {
    let server = TestServer::start().await;
    let service = json!({ "type": "m.login.application_service", "username": "_bot" });
    server
        .post("/register", service.clone())
        .await
        .fails(401, "M_MISSING_TOKEN");
    let path = "/_matrix/client/v3/register";
    let answer = server
        .request(Method::POST, path, Some("secret"), Some(service))
        .await;
    answer.fails(401, "M_UNKNOWN_TOKEN");
    let answer = server.post("/register?kind=guest", json!({})).await;
    answer.fails(403, "M_GUEST_ACCESS_FORBIDDEN");
    let answer = server.post("/register?kind=god", json!({})).await;
    answer.fails(400, "M_INVALID_PARAM");
}

async fn validity(server: &TestServer, token: &str) -> Answer {
    let path =
        format!("/_matrix/client/v1/register/m.login.registration_token/validity?token={token}");
    server.request(Method::GET, &path, None, None).await
}

#[tokio::test]
async fn first_account_is_the_administrators() {
    let server = TestServer::start_with(|config| {
        config.registration.mode = RegistrationMode::Closed;
    });
    let server = server.await;
    let token = server.first_token.clone().unwrap();
    // The same one is printed again as long as there is no administrator, whoever else has an account.
    let id = ruma::user_id!("@somebody:localhost");
    let somebody = homing::accounts::NewAccount::new(id);
    homing::accounts::create(&server.app, somebody)
        .await
        .unwrap();
    let server = server.restart().await;
    assert_eq!(server.first_token.as_deref(), Some(&*token));

    let asked = server.post("/register", json!({})).await;
    assert_eq!(asked.status, 401);
    assert_eq!(
        asked.body["flows"],
        json!([{ "stages": ["m.login.registration_token"] }])
    );
    assert_eq!(validity(&server, &token).await.ok()["valid"], true);
    assert_eq!(validity(&server, "guess").await.ok()["valid"], false);
    let wrong = register(&server, "alice", with_token("guess")).await;
    assert_eq!(
        (wrong.status.as_u16(), &wrong.body["errcode"]),
        (401, &json!("M_FORBIDDEN"))
    );
    let wrong = register(&server, "alice", dummy()).await;
    assert_eq!(wrong.status, 401);

    let (one, two) = tokio::join!(
        register(&server, "alice", with_token(&token)),
        register(&server, "bob", with_token(&token)),
    );
    let (made, refused) = if one.status == 200 {
        (one, two)
    } else {
        (two, one)
    };
    let admin = User::new(&server, &made.ok());
    assert!(
        refused.status == 403 || refused.status == 401,
        "{}",
        refused.body
    );
    let requester = homing::auth::requester(&server.app, &admin.token)
        .await
        .unwrap();
    assert!(requester.is_admin);

    let answer = server.post("/register", json!({})).await;
    answer.fails(403, "M_FORBIDDEN");
    validity(&server, &token).await.fails(403, "M_FORBIDDEN");
    let server = server.restart().await;
    assert_eq!(server.first_token, None);
}

#[tokio::test]
async fn tokens_let_people_in() {
    let server = TestServer::start_with(|config| {
        config.registration.mode = RegistrationMode::Token;
        config.registration.tokens = vec!["sesame".to_owned().into()];
    });
    let server = server.await;
    assert_eq!(validity(&server, "sesame").await.ok()["valid"], true);
    for name in ["alice", "bob"] {
        let answer = register(&server, name, with_token("sesame")).await.ok();
        let user = User::new(&server, &answer);
        let requester = homing::auth::requester(&server.app, &user.token)
            .await
            .unwrap();
        assert!(!requester.is_admin);
    }
    for auth in [dummy(), with_token("other"), with_token("")] {
        let answer = register(&server, "carol", auth).await;
        assert_eq!(answer.status, 401, "{}", answer.body);
        assert!(answer.body["errcode"].is_string());
    }
}

#[tokio::test]
async fn guests_may_look_but_not_own() {
    let server = TestServer::start_with(|config| config.registration.guests = true).await;
    let answer = server
        .post("/register?kind=guest", json!({ "device_id": "X" }))
        .await
        .ok();
    let guest = User::new(&server, &answer);
    assert_ne!(guest.device_id, "X");
    let me = guest.get("/account/whoami").await.ok();
    assert_eq!(me["is_guest"], true);
    guest.get("/devices").await.ok();
    for (method, path) in [
        (Method::POST, "/createRoom"),
        (Method::POST, "/account/password"),
        (Method::POST, "/account/deactivate"),
        (Method::GET, "/account/3pid"),
    ] {
        let body = json!({ "new_password": "x" });
        let answer = guest.send(method, path, Some(body)).await;
        answer.fails(403, "M_GUEST_ACCESS_FORBIDDEN");
    }

    let alice = server.register("alice").await;
    let open = json!({ "preset": "public_chat" });
    let closed_to_guests = alice.create_room(open).await;
    let answer = guest
        .post(&format!("/join/{closed_to_guests}"), json!({}))
        .await;
    answer.fails(403, "M_GUEST_ACCESS_FORBIDDEN");
    let open = json!({ "preset": "public_chat", "initial_state": [
        { "type": "m.room.guest_access", "state_key": "", "content": { "guest_access": "can_join" } },
    ] });
    let open_to_guests = alice.create_room(open).await;
    guest
        .post(&format!("/join/{open_to_guests}"), json!({}))
        .await
        .ok();
    guest.say(&open_to_guests, "hello").await;

    // The guest stays and becomes a user.
    let localpart = guest.id[1..].split(':').next().unwrap();
    let upgrade = async |name: &str, token: &str| {
        let body = json!({
            "username": name, "password": PASSWORD, "auth": dummy(), "guest_access_token": token,
        });
        server.post("/register", body).await
    };
    upgrade("bob", &guest.token)
        .await
        .fails(400, "M_INVALID_PARAM");
    upgrade(localpart, &alice.token)
        .await
        .fails(403, "M_FORBIDDEN");
    let user = User::new(&server, &upgrade(localpart, &guest.token).await.ok());
    assert_eq!(user.id, guest.id);
    user.create_room(json!({})).await;
    server.login(localpart, PASSWORD, json!({})).await.ok();
}
