use reqwest::Method;

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
