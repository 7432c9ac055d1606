use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, future, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::{
    Body, Method, RequestBuilder, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::server::{Answer, TestServer, User};

/// An answer whose body is not JSON.
pub struct Sent {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Sent {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The answer as a Matrix error or as JSON.
    pub fn answer(self) -> Answer {
        Answer {
            status: self.status,
            headers: self.headers,
            body: serde_json::from_slice(&self.bytes).unwrap_or(Value::Null),
        }
    }
}

pub async fn fetch(request: RequestBuilder) -> Sent {
    let response = request.send().await.expect("the server answers");
    Sent {
        status: response.status(),
        headers: response.headers().clone(),
        bytes: response.bytes().await.expect("the answer is whole"),
    }
}

/// A request of a person.
pub fn ask(user: &User<'_>, method: Method, path: &str) -> RequestBuilder {
    let url = format!("http://{}{path}", user.server.address);
    user.server
        .http
        .request(method, url)
        .bearer_auth(&user.token)
}

/// Uploads; answers the URI.
pub async fn upload(user: &User<'_>, content_type: &str, bytes: impl Into<Body>) -> String {
    let request = ask(user, Method::POST, "/_matrix/media/v3/upload")
        .header("content-type", content_type)
        .body(bytes);
    uri(fetch(request).await.answer())
}

pub fn uri(answer: Answer) -> String {
    answer.ok()["content_uri"]
        .as_str()
        .expect("a URI")
        .to_owned()
}

/// The path of a media under `/_matrix/client/v1/media/{what}/`.
pub fn path(what: &str, uri: &str) -> String {
    let name = uri.strip_prefix("mxc://").expect("a URI");
    format!("/_matrix/client/v1/media/{what}/{name}")
}

pub async fn download(user: &User<'_>, uri: &str) -> Sent {
    fetch(ask(user, Method::GET, &path("download", uri))).await
}

/// All files below a directory of the media.
pub fn files(server: &TestServer, kind: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![server.app.config.data_dir.join("media").join(kind)];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}

/// Bytes that look like none in particular.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn what_is_uploaded_comes_back() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let bytes = noise(300_000);
    let request = ask(
        &alice,
        Method::POST,
        "/_matrix/media/v3/upload?filename=cat%20picture.png",
    )
    .header("content-type", "image/png")
    .body(bytes.clone());
    let uri = uri(fetch(request).await.answer());
    assert!(uri.starts_with("mxc://localhost/"), "{uri}");

    let sent = download(&bob, &uri).await;
    assert_eq!(sent.status, StatusCode::OK);
    assert_eq!(sent.bytes, bytes);
    for (name, value) in [
        ("content-type", "image/png"),
        ("content-length", "300000"),
        (
            "content-disposition",
            "inline; filename=\"cat picture.png\"",
        ),
        ("cache-control", "private, max-age=86400, immutable"),
        ("cross-origin-resource-policy", "cross-origin"),
        ("x-content-type-options", "nosniff"),
        ("access-control-allow-origin", "*"),
    ] {
        assert_eq!(sent.header(name), value, "{name}");
    }
    let policy = sent.header("content-security-policy");
    assert!(
        policy.starts_with("sandbox; default-src 'none';"),
        "{policy}"
    );

    let renamed = format!("{}/K%C3%A4tzchen.png", path("download", &uri));
    let sent = fetch(ask(&bob, Method::GET, &renamed)).await;
    assert_eq!(sent.bytes, bytes);
    assert_eq!(
        sent.header("content-disposition"),
        "inline; filename*=utf-8''K%C3%A4tzchen.png"
    );
    let sent = fetch(ask(&bob, Method::HEAD, &path("download", &uri))).await;
    assert_eq!(
        (sent.status, sent.header("content-length"), sent.bytes.len()),
        (StatusCode::OK, "300000", 0)
    );

    let (id, token) = (alice.id.clone(), alice.token.clone());
    let server = server.restart().await;
    let alice = User {
        server: &server,
        id,
        token,
        device_id: String::new(),
    };
    assert_eq!(download(&alice, &uri).await.bytes, bytes);
}

#[tokio::test]
async fn parts_and_what_is_known_already() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bytes = noise(200_000);
    let uri = upload(&alice, "video/mp4", bytes.clone()).await;
    let get = |name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value).unwrap();
        let request = ask(&alice, Method::GET, &path("download", &uri));
        fetch(request.header(name, value))
    };
    let sent = get("range", "bytes=1000-150000").await;
    assert_eq!(sent.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(sent.header("content-range"), "bytes 1000-150000/200000");
    assert_eq!(sent.bytes, bytes[1000..=150_000]);
    let etag = sent.header("etag").to_owned();
    let sent = get("range", "bytes=-5").await;
    assert_eq!(sent.bytes, bytes[199_995..]);
    let sent = get("range", "bytes=200000-").await;
    assert_eq!(sent.header("content-range"), "bytes */200000");
    sent.answer().fails(416, "M_UNKNOWN");

    let sent = get("if-none-match", &etag).await;
    assert_eq!(
        (sent.status, sent.bytes.len(), sent.header("etag")),
        (StatusCode::NOT_MODIFIED, 0, etag.as_str())
    );
    assert_eq!(get("if-none-match", "\"other\"").await.bytes, bytes);
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_leaves_nothing() {
    let server = TestServer::start_with(|config| config.media.max_upload_bytes = 10_000).await;
    let alice = server.register("alice").await;
    for version in ["client/v1/media", "media/v3", "media/r0"] {
        let answer = alice.get(&format!("/_matrix/{version}/config")).await;
        assert_eq!(answer.ok(), json!({ "m.upload.size": 10_000 }));
    }
    let post = |body: Body| {
        let request = ask(&alice, Method::POST, "/_matrix/media/v3/upload").body(body);
        async move { fetch(request).await.answer() }
    };
    // The length says it beforehand.
    post(noise(10_001).into()).await.fails(413, "M_TOO_LARGE");
    // Without a length it is found out on the way.
    let streamed = |count: usize| {
        let frames = stream::iter(vec![Bytes::from(noise(1000)); count])
            .map(|bytes| Ok::<_, std::io::Error>(Frame::data(bytes)));
        Body::wrap(StreamBody::new(frames))
    };
    post(streamed(11)).await.fails(413, "M_TOO_LARGE");
    assert!(files(&server, "blobs").is_empty());
    post(streamed(10)).await.ok();
    post(noise(10_000).into()).await.ok();
    assert_eq!(files(&server, "blobs").len(), 2);
    assert!(files(&server, "incoming").is_empty());
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let frames = stream::iter([
        Ok(Frame::data(Bytes::from(noise(50_000)))),
        Err(std::io::Error::other("the cable is cut")),
    ]);
    let request = ask(&alice, Method::POST, "/_matrix/media/v3/upload");
    let body = Body::wrap(StreamBody::new(frames));
    assert!(request.body(body).send().await.is_err());
    for _ in 0..500 {
        if files(&server, "incoming").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(files(&server, "incoming").is_empty());
    assert!(files(&server, "blobs").is_empty());
}

#[tokio::test]
async fn browsers_show_only_what_is_harmless() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for (content_type, sent_as, disposition) in [
        ("text/html", "text/html", "attachment"),
        ("image/svg+xml", "image/svg+xml", "attachment"),
        (
            "text/plain; charset=utf-8",
            "text/plain; charset=utf-8",
            "inline",
        ),
        ("Image/PNG", "Image/PNG", "inline"),
        ("nonsense", "application/octet-stream", "attachment"),
        ("a b/c", "application/octet-stream", "attachment"),
        ("", "application/octet-stream", "attachment"),
    ] {
        let uri = upload(&alice, content_type, "<script>alert(1)</script>").await;
        let sent = download(&alice, &uri).await;
        assert_eq!(sent.header("content-type"), sent_as);
        assert_eq!(sent.header("content-disposition"), disposition);
        assert_eq!(sent.header("x-content-type-options"), "nosniff");
        assert!(sent.header("content-security-policy").contains("sandbox"));
    }
    let request = ask(&alice, Method::POST, "/_matrix/media/r0/upload").body("bare");
    let bare = uri(fetch(request).await.answer());
    let sent = download(&alice, &bare).await;
    assert_eq!(sent.header("content-type"), "application/octet-stream");
    assert_eq!(sent.header("content-disposition"), "attachment");
}

#[tokio::test]
async fn nobody_finds_what_is_not_there() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = upload(&alice, "text/plain", "hello").await;
    for what in ["download", "thumbnail"] {
        let query = if what == "thumbnail" {
            "?width=32&height=32"
        } else {
            ""
        };
        for name in [
            "localhost/unknown",
            "localhost/..%2F..%2Fhoming.db",
            "localhost/%2e%2e%2f%2e%2e%2fsigning.key",
            "localhost/..%5c..",
            "localhost/%C3%A4",
            "elsewhere.org/abc",
        ] {
            let path = format!("/_matrix/client/v1/media/{what}/{name}{query}");
            alice.get(&path).await.fails(404, "M_NOT_FOUND");
        }
        for name in ["..%2F..%2Fetc/passwd", "localhost/a%00b"] {
            let path = format!("/_matrix/client/v1/media/{what}/{name}{query}");
            alice.get(&path).await.fails(400, "M_INVALID_PARAM");
        }
        let path = format!("{}{query}", self::path(what, &uri));
        let answer = server.request(Method::GET, &path, None, None).await;
        answer.fails(401, "M_MISSING_TOKEN");
        let answer = server.request(Method::GET, &path, Some("x"), None).await;
        answer.fails(401, "M_UNKNOWN_TOKEN");
    }
    for (method, path) in [
        (Method::POST, "/_matrix/media/v3/upload"),
        (Method::PUT, "/_matrix/media/v3/upload/localhost/abc"),
        (Method::POST, "/_matrix/media/v1/create"),
        (Method::GET, "/_matrix/client/v1/media/config"),
        (Method::GET, "/_matrix/media/v3/config"),
    ] {
        let answer = server.request(method, path, None, None).await;
        answer.fails(401, "M_MISSING_TOKEN");
    }
    assert_eq!(files(&server, "blobs").len(), 1);
}

#[tokio::test]
async fn the_old_paths_are_frozen_unless_configured() {
    for open in [false, true] {
        let server = TestServer::start_with(|config| config.media.unauthenticated = open).await;
        let alice = server.register("alice").await;
        let uri = upload(&alice, "text/plain", "hello").await;
        let name = uri.strip_prefix("mxc://").unwrap();
        for path in [
            format!("/_matrix/media/v3/download/{name}"),
            format!(
                "/_matrix/media/r0/download/{name}/a.txt?allow_remote=false&allow_redirect=true"
            ),
        ] {
            let url = format!("http://{}{path}", server.address);
            let sent = fetch(server.http.get(url)).await;
            if open {
                assert_eq!(sent.bytes, "hello");
                assert!(sent.header("cache-control").starts_with("public"));
            } else {
                sent.answer().fails(404, "M_NOT_FOUND");
            }
        }
        let path = format!("/_matrix/media/v3/thumbnail/{name}?width=1&height=1");
        let answer = server.request(Method::GET, &path, None, None).await;
        if open {
            answer.fails(400, "M_UNKNOWN");
        } else {
            answer.fails(404, "M_NOT_FOUND");
        }
    }
}

async fn create(user: &User<'_>) -> Value {
    user.post("/_matrix/media/v1/create", json!({})).await.ok()
}

async fn fill(user: &User<'_>, uri: &str, bytes: &'static str) -> Answer {
    let name = uri.strip_prefix("mxc://").unwrap();
    let path = format!("/_matrix/media/v3/upload/{name}");
    let request = ask(user, Method::PUT, &path).header("content-type", "text/plain");
    fetch(request.body(bytes)).await.answer()
}

#[tokio::test]
async fn a_name_is_made_before_its_upload() {
    let server = TestServer::start().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let made = create(&alice).await;
    let uri = made["content_uri"].as_str().unwrap();
    let day = 24 * 60 * 60 * 1000;
    let expires = made["unused_expires_at"].as_i64().unwrap();
    assert!((expires - server.app.clock.now() - day).abs() < 60_000);

    let now = format!("{}?timeout_ms=0", path("download", uri));
    bob.get(&now).await.fails(504, "M_NOT_YET_UPLOADED");
    let now = format!("{}?timeout_ms=0&width=9&height=9", path("thumbnail", uri));
    bob.get(&now).await.fails(504, "M_NOT_YET_UPLOADED");
    fill(&bob, uri, "theirs").await.fails(403, "M_FORBIDDEN");
    for unknown in ["mxc://localhost/unknown", "mxc://elsewhere.org/unknown"] {
        fill(&alice, unknown, "x").await.fails(404, "M_NOT_FOUND");
    }
    assert!(files(&server, "blobs").is_empty());

    let waiting = future::join(download(&bob, uri), async {
        while !server.app.files.is_awaited() {
            tokio::task::yield_now().await;
        }
        fill(&alice, uri, "at last").await.ok();
    });
    // Half of what the download would wait if nothing woke it.
    let woken = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    let (sent, ()) = woken.expect("the upload wakes the download");
    assert_eq!(
        (sent.status, &*sent.bytes),
        (StatusCode::OK, &b"at last"[..])
    );
    assert_eq!(sent.header("content-type"), "text/plain");
    let answer = fill(&alice, uri, "again").await;
    answer.fails(409, "M_CANNOT_OVERWRITE_MEDIA");
    assert_eq!(download(&bob, uri).await.bytes, "at last");
    let uploaded = upload(&alice, "text/plain", "at once").await;
    let answer = fill(&alice, &uploaded, "again").await;
    answer.fails(409, "M_CANNOT_OVERWRITE_MEDIA");
}

#[tokio::test]
async fn who_waits_for_an_upload_is_answered_when_the_server_ends() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let made = create(&alice).await;
    let uri = made["content_uri"].as_str().unwrap();
    let waiting = future::join(download(&alice, uri), async {
        while !server.app.files.is_awaited() {
            tokio::task::yield_now().await;
        }
        server.app.shutdown.cancel();
    });
    let ended = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    let (sent, ()) = ended.expect("the end of the server ends the waiting");
    sent.answer().fails(504, "M_NOT_YET_UPLOADED");
}

#[tokio::test]
async fn it_is_noted_when_a_media_was_last_asked_for() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = upload(&alice, "text/plain", "hello").await;
    let id = uri.strip_prefix("mxc://localhost/").unwrap();
    server.app.clock.advance(Duration::from_hours(48));
    let now = server.app.clock.now();
    download(&alice, &uri).await;
    // What is written after this is written later than the note.
    upload(&alice, "text/plain", "more").await;
    let media = homing::storage::media::get(&server.app.db, "localhost", id).await;
    assert!(media.unwrap().unwrap().last_access >= now);
}

#[tokio::test]
async fn names_without_upload_are_few_and_expire() {
    let server = TestServer::start_with(|config| {
        config.media.max_pending_uploads = 3;
        config.media.pending_upload_seconds = 60;
    })
    .await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let made =
        future::join_all((0..20).map(|_| alice.post("/_matrix/media/v1/create", json!({})))).await;
    let (granted, refused): (Vec<_>, Vec<_>) = made
        .into_iter()
        .partition(|answer| answer.status == StatusCode::OK);
    assert_eq!(granted.len(), 3);
    for answer in refused {
        assert!(answer.fails(429, "M_LIMIT_EXCEEDED")["retry_after_ms"].is_u64());
    }
    create(&bob).await;
    let uris: Vec<String> = granted.into_iter().map(uri).collect();
    fill(&alice, &uris[0], "done").await.ok();
    create(&alice).await;

    server.app.clock.advance(Duration::from_secs(61));
    fill(&alice, &uris[1], "late")
        .await
        .fails(404, "M_NOT_FOUND");
    let answer = download(&alice, &uris[1]).await.answer();
    answer.fails(404, "M_NOT_FOUND");
    for _ in 0..3 {
        create(&alice).await;
    }
    assert_eq!(download(&alice, &uris[0]).await.bytes, "done");
}

#[tokio::test]
async fn the_same_bytes_are_kept_once() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let bytes = noise(100_000);
    let uploads = (0..30).map(|_| upload(&alice, "image/png", bytes.clone()));
    let mut uris = future::join_all(uploads).await;
    assert_eq!(files(&server, "blobs").len(), 1);
    assert!(files(&server, "incoming").is_empty());
    let hash: [u8; 32] = Sha256::digest(&bytes).into();
    let uses = homing::storage::media::uses(&server.app.db, &hash).await;
    assert_eq!(uses.unwrap(), 30);
    for sent in future::join_all(uris.iter().map(|uri| download(&alice, uri))).await {
        assert_eq!(sent.bytes, bytes);
    }
    uris.sort_unstable();
    uris.dedup();
    assert_eq!(uris.len(), 30, "each upload has a name of its own");
    assert_eq!(files(&server, "blobs"), [server.app.files.blob(&hash)]);
}

#[tokio::test]
async fn a_lost_file_is_not_found() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = upload(&alice, "image/png", "gone").await;
    for file in files(&server, "blobs") {
        std::fs::remove_file(file).unwrap();
    }
    let answer = download(&alice, &uri).await.answer();
    answer.fails(404, "M_NOT_FOUND");
    let path = format!("{}?width=1&height=1", path("thumbnail", &uri));
    alice.get(&path).await.fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn files_without_a_row_are_deleted_at_the_next_start() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let uri = upload(&alice, "image/png", "kept").await;
    let kept = files(&server, "blobs");
    // As a crash leaves them between the move to their place and the commit.
    let mut lost = Vec::new();
    for first in [0, 7, 255] {
        let mut hash = [1; 32];
        hash[0] = first;
        let size = homing::storage::media::ThumbnailSize {
            width: 32,
            height: 32,
            method: homing::storage::media::ThumbnailMethod::Crop,
            animated: first == 7,
        };
        lost.extend([
            server.app.files.blob(&hash),
            server.app.files.thumbnail(&hash, size),
        ]);
    }
    for file in &lost {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "lost").unwrap();
    }
    let token = alice.token.clone();
    let server = server.restart().await;
    let swept = async {
        while lost.iter().any(|file| file.exists()) {
            tokio::task::yield_now().await;
        }
    };
    let swept = tokio::time::timeout(Duration::from_secs(20), swept).await;
    swept.expect("the files are deleted");
    assert_eq!(files(&server, "blobs"), kept);
    let alice = User {
        server: &server,
        id: String::new(),
        token,
        device_id: String::new(),
    };
    assert_eq!(download(&alice, &uri).await.bytes, &b"kept"[..]);
}

#[tokio::test]
async fn a_file_on_the_way_to_its_row_is_not_deleted() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let place = server.app.files.blob(&[9; 32]);
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    // As an upload does it.
    let coming = server.app.files.coming.read().await;
    std::fs::write(&place, "coming").unwrap();
    let mut sweeping = std::pin::pin!(homing::media::sweep::sweep(&server.app));
    let swept = tokio::time::timeout(Duration::from_millis(200), &mut sweeping).await;
    assert!(swept.is_err() && place.exists());
    drop(coming);
    assert_eq!(sweeping.await.unwrap(), 1);
    assert!(!place.exists());

    let uploads = (0..50).map(|number: usize| upload(&alice, "text/plain", format!("{number}")));
    let sweeps = async {
        for _ in 0..5 {
            assert_eq!(homing::media::sweep::sweep(&server.app).await.unwrap(), 0);
        }
    };
    let (uris, ()) = future::join(future::join_all(uploads), sweeps).await;
    for (number, uri) in uris.iter().enumerate() {
        let sent = download(&alice, uri).await;
        assert_eq!(sent.bytes, number.to_string().as_bytes());
    }
}
