//! What the files of one user may take together, where the settings say so.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::{Body, Method, StatusCode};

use crate::{
    media::{ask, fetch, upload},
    server::{Answer, TestServer, User},
};

async fn try_upload(user: &User<'_>, method: Method, path: &str, bytes: usize) -> Answer {
    let path = format!("/_matrix/media/v3/upload{path}");
    let request = ask(user, method, &path).body(vec![b'a'; bytes]);
    fetch(request).await.answer()
}

#[tokio::test]
async fn a_user_cannot_have_files_without_end() {
    let server = TestServer::start_with(|config| config.media.max_user_bytes = Some(1000)).await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let post = async |user: &User<'_>, bytes| try_upload(user, Method::POST, "", bytes).await;
    post(&alice, 1001).await.fails(403, "M_FORBIDDEN");
    post(&alice, 600).await.ok();
    // The same content counts again.
    post(&alice, 600).await.fails(403, "M_FORBIDDEN");
    // Nobody says here how much will come.
    let pieces = ["a", "b"].map(|letter| letter.repeat(300).into());
    let pieces = pieces.map(|piece: Bytes| Ok::<_, Infallible>(Frame::data(piece)));
    let body = Body::wrap(StreamBody::new(stream::iter(pieces)));
    let request = ask(&alice, Method::POST, "/_matrix/media/v3/upload").body(body);
    let answer = fetch(request).await.answer();
    answer.fails(403, "M_FORBIDDEN");

    let reserved = alice.send(Method::POST, "/_matrix/media/v1/create", None);
    let reserved = reserved.await.ok();
    let uri = reserved["content_uri"].as_str().unwrap();
    let path = uri.strip_prefix("mxc:/").unwrap();
    let answer = try_upload(&alice, Method::PUT, path, 401).await;
    answer.fails(403, "M_FORBIDDEN");
    try_upload(&alice, Method::PUT, path, 400).await.ok();
    post(&alice, 1).await.fails(403, "M_FORBIDDEN");
    upload(&bob, "text/plain", vec![b'a'; 1000]).await;
}

#[tokio::test]
async fn uploads_at_the_same_moment_do_not_get_more_together() {
    let server = TestServer::start_with(|config| config.media.max_user_bytes = Some(1000)).await;
    let alice = &server.register("alice").await;
    let uploads = (0..16).map(|_| try_upload(alice, Method::POST, "", 300));
    let answers = futures_util::future::join_all(uploads).await;
    let (kept, refused): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|answer| answer.status == StatusCode::OK);
    assert_eq!(kept.len(), 3);
    for answer in refused {
        answer.fails(403, "M_FORBIDDEN");
    }
}
