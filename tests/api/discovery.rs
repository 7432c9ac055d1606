use reqwest::Method;
use serde_json::{Map, json};

use crate::server::TestServer;

#[tokio::test]
async fn every_version_of_the_specification_is_named() {
    let server = TestServer::start().await;
    let body = server
        .request(Method::GET, "/_matrix/client/versions", None, None)
        .await
        .ok();
    let versions = body["versions"].as_array().unwrap();
    assert_eq!(
        (versions.len(), &versions[0], &versions[18]),
        (19, &"v1.1".into(), &"v1.19".into())
    );
}

#[tokio::test]
async fn unknown_paths_and_methods_are_unrecognized() {
    let server = TestServer::start().await;
    for path in ["/_matrix/client/v3/nothing", "/_matrix/nothing", "/nothing"] {
        server
            .request(Method::GET, path, None, None)
            .await
            .fails(404, "M_UNRECOGNIZED");
    }
    let answer = server
        .request(Method::POST, "/_matrix/client/versions", None, None)
        .await;
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    answer.fails(405, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn browsers_may_ask_first() {
    let server = TestServer::start().await;
    let answer = server
        .request(Method::OPTIONS, "/_matrix/client/v3/login", None, None)
        .await;
    assert!(answer.status.is_success());
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert!(
        answer.headers["access-control-allow-headers"]
            .to_str()
            .unwrap()
            .contains("authorization")
    );
}

#[tokio::test]
async fn well_known_files_tell_what_is_configured() {
    let server = TestServer::start().await;
    for name in ["client", "server", "support"] {
        let path = format!("/.well-known/matrix/{name}");
        server
            .request(Method::GET, &path, None, None)
            .await
            .fails(404, "M_NOT_FOUND");
    }
    let server = TestServer::start_with(|config| {
        config.well_known.client_base_url = Some("https://matrix.example.org".to_owned());
        config.well_known.server = Some("matrix.example.org:443".try_into().unwrap());
        config.well_known.support_page = Some("https://example.org/help".to_owned());
    })
    .await;
    let get = async |name| {
        let path = format!("/.well-known/matrix/{name}");
        server.request(Method::GET, &path, None, None).await.ok()
    };
    assert_eq!(
        get("client").await["m.homeserver"]["base_url"],
        "https://matrix.example.org"
    );
    assert_eq!(get("server").await["m.server"], "matrix.example.org:443");
    assert_eq!(
        get("support").await["support_page"],
        "https://example.org/help"
    );
}

#[tokio::test]
async fn capabilities_are_those_of_the_configuration() {
    let server = TestServer::start_with(|config| {
        config.rooms.default_version = "11".try_into().unwrap();
    })
    .await;
    let alice = server.register("alice").await;
    let body = alice.get("/capabilities").await.ok();
    let available = (6..=12).map(|version| (version.to_string(), json!("stable")));
    let available: Map<_, _> = available.collect();
    let expected = json!({
        "m.room_versions": { "default": "11", "available": available },
        "m.change_password": { "enabled": true },
        "m.get_login_token": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
    });
    // A name and an avatar can be changed where nothing else is said.
    assert_eq!(body["capabilities"], expected);
}
