//! "Password management", "Account deactivation", contact information, "OpenID".

use reqwest::Method;
use serde_json::json;

use crate::server::{PASSWORD, TestServer, User};

async fn second_device<'s>(server: &'s TestServer, name: &str) -> User<'s> {
    User::new(server, &server.login(name, PASSWORD, json!({})).await.ok())
}

#[tokio::test]
async fn another_password_ends_other_sessions() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let other = second_device(&server, "alice").await;
    let login = "/_matrix/client/v1/login/get_token";
    let login = alice.send_with_password(Method::POST, login, json!({}));
    let login = login.await.ok()["login_token"].clone();
    let account = homing::accounts::named(&server.app, "alice").await;
    let before = account.unwrap().unwrap();
    let body = json!({ "new_password": "another one" });
    alice
        .send_with_password(Method::POST, "/account/password", body)
        .await
        .ok();
    let login = json!({ "type": "m.login.token", "token": login });
    server.post("/login", login).await.fails(403, "M_FORBIDDEN");
    // Nor does a login go on whose password was right a moment ago.
    let late = homing::sessions::SignIn {
        password_hash: before.password_hash,
        ..homing::sessions::SignIn::default()
    };
    let late = homing::sessions::sign_in(&server.app, before.user, late).await;
    assert!(late.is_err());
    alice.get("/account/whoami").await.ok();
    other
        .get("/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");
    let answer = server.login("alice", PASSWORD, json!({})).await;
    answer.fails(403, "M_FORBIDDEN");
    server.login("alice", "another one", json!({})).await.ok();
}

#[tokio::test]
async fn another_password_can_leave_other_sessions_alone() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let other = second_device(&server, "alice").await;
    let body = json!({ "new_password": "another one", "logout_devices": false });
    alice
        .send_with_password(Method::POST, "/account/password", body)
        .await
        .ok();
    alice.get("/account/whoami").await.ok();
    other.get("/account/whoami").await.ok();
}

#[tokio::test]
async fn only_the_owner_proves_anything() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    server.register("bob").await;
    let auth = |user: &str, password: &str| {
        json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": user },
            "password": password,
        })
    };
    for (user, password) in [("alice", "wrong"), ("nobody", PASSWORD)] {
        let body = json!({ "new_password": "another one", "auth": auth(user, password) });
        let answer = alice.post("/account/password", body).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.body["errcode"], "M_FORBIDDEN");
        assert!(answer.body["session"].is_string());
    }
    let body = json!({ "new_password": "another one", "auth": auth("bob", PASSWORD) });
    let answer = alice.post("/account/password", body).await;
    answer.fails(403, "M_FORBIDDEN");
    server.login("alice", PASSWORD, json!({})).await.ok();
    let body = json!({ "new_password": "another one" });
    server
        .post("/account/password", body)
        .await
        .fails(401, "M_MISSING_TOKEN");
    let body = json!({ "auth": auth("alice", PASSWORD) });
    alice
        .post("/account/password", body)
        .await
        .fails(400, "M_MISSING_PARAM");
    let body = json!({ "new_password": "", "auth": auth("alice", PASSWORD) });
    alice
        .post("/account/password", body)
        .await
        .fails(400, "M_WEAK_PASSWORD");
}

#[tokio::test]
async fn nobody_has_an_address() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let answer = alice.get("/account/3pid").await.ok();
    assert_eq!(answer["threepids"], json!([]));
    let email = json!({ "client_secret": "secret", "email": "a@example.org", "send_attempt": 1 });
    let number = json!({ "client_secret": "secret", "country": "GB", "phone_number": "1", "send_attempt": 1 });
    for kind in ["account/3pid", "account/password", "register"] {
        for (medium, body) in [("email", &email), ("msisdn", &number)] {
            let path = format!("/{kind}/{medium}/requestToken");
            let answer = server.post(&path, body.clone()).await;
            answer.fails(400, "M_THREEPID_MEDIUM_NOT_SUPPORTED");
        }
    }
    let sid = json!({ "client_secret": "secret", "sid": "1" });
    let answer = alice.post("/account/3pid/add", sid).await;
    answer.fails(400, "M_THREEPID_AUTH_FAILED");
    let bind = json!({ "client_secret": "secret", "sid": "1", "id_server": "x.org", "id_access_token": "t" });
    let answer = alice.post("/account/3pid/bind", bind).await;
    answer.fails(403, "M_THREEPID_DENIED");
    let address = json!({ "medium": "email", "address": "a@example.org" });
    for path in ["/account/3pid/delete", "/account/3pid/unbind"] {
        let answer = alice.post(path, address.clone()).await.ok();
        assert_eq!(answer["id_server_unbind_result"], "no-support");
    }
}

#[tokio::test]
async fn openid_token_is_for_oneself_and_ends() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let path = format!("/user/{}/openid/request_token", alice.id);
    let answer = alice.post(&path, json!({})).await.ok();
    assert_eq!(answer["token_type"], "Bearer");
    assert_eq!(answer["matrix_server_name"], "localhost");
    assert_eq!(answer["expires_in"], 3600);
    let token = answer["access_token"].as_str().unwrap();
    let hash = homing::auth::hash_token(token);
    let stored = homing::storage::tokens::openid(&server.app.db, &hash).await;
    let (_, expires) = stored.unwrap().unwrap();
    assert!((expires - server.app.clock.now() - 3_600_000).abs() < 60_000);
    // It opens nothing else.
    let thief = User {
        token: token.to_owned(),
        ..server.register("thief").await
    };
    thief
        .get("/account/whoami")
        .await
        .fails(401, "M_UNKNOWN_TOKEN");

    let bob = server.register("bob").await;
    bob.post(&path, json!({})).await.fails(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn new_user_is_called_by_name() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let requester = homing::auth::requester(&server.app, &alice.token)
        .await
        .unwrap();
    let profile = homing::storage::profiles::get(&server.app.db, requester.user).await;
    let expected = ("displayname".to_owned(), "\"alice\"".to_owned());
    assert_eq!(profile.unwrap(), [expected]);
}
