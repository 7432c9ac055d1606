//! Media of other servers: fetched, kept, given up, and given to others.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::future;
use homing::media::remote;
use reqwest::{Method, header};

use crate::{
    fake_server::{FakeServer, Recorded, endless, error},
    media::{Sent, ask, download, fetch, files, path, upload},
    server::{TestServer, User},
    thumbnails::huge_png,
};

const DOWNLOAD: &str = "/_matrix/federation/v1/media/download/";
const OLD: &str = "/_matrix/media/v3/download/";

/// What the fake server answers.
type Page = Box<dyn Fn(&Recorded) -> Response + Send + Sync>;

/// An answer with this file in its second part.
fn parts(content_type: &str, file: &[u8]) -> Response {
    let start = format!(
        "--xyz\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--xyz\r\nContent-Type: {content_type}\r\n\
         Content-Disposition: attachment; filename=\"a b.txt\"\r\n\r\n"
    );
    raw_parts([start.as_bytes(), file, b"\r\n--xyz--\r\n"].concat())
}

fn raw_parts(body: impl Into<Body>) -> Response {
    Response::builder()
        .header(header::CONTENT_TYPE, "multipart/mixed; boundary=\"xyz\"")
        .body(body.into())
        .expect("an answer")
}

async fn server_and_fake() -> (TestServer, FakeServer) {
    tokio::join!(TestServer::federated(), FakeServer::start())
}

/// Asks for a media of the fake server.
async fn get(user: &User<'_>, fake: &FakeServer, media_id: &str) -> Sent {
    download(user, &format!("mxc://{}/{media_id}", fake.name)).await
}

#[tokio::test]
async fn media_of_other_servers_are_fetched_and_kept() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let uri = upload(&bob, "image/jpeg", bytes.clone()).await;
    let sent = download(&alice, &uri).await;
    assert_eq!(sent.status, 200);
    assert!(sent.bytes == bytes);
    assert_eq!(sent.header("content-type"), "image/jpeg");
    assert_eq!(sent.header("content-disposition"), "inline");
    there.app.shutdown.cancel();
    drop(there);
    let again = download(&alice, &uri).await;
    assert!(again.bytes == bytes);
    let unknown = download(&alice, &format!("{uri}x")).await;
    unknown.answer().fails(502, "M_UNKNOWN");
}

#[tokio::test]
async fn thumbnails_are_made_of_media_of_other_servers() {
    let (here, there) = tokio::join!(TestServer::federated(), TestServer::federated());
    let (alice, bob) = (here.register("alice").await, there.register("bob").await);
    let image = image::DynamicImage::new_rgb8(700, 500);
    let mut png = std::io::Cursor::new(Vec::new());
    image.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let uri = upload(&bob, "image/png", png.into_inner()).await;
    let path = format!("{}?width=320&height=240", path("thumbnail", &uri));
    let sent = fetch(ask(&alice, Method::GET, &path)).await;
    let small = image::load_from_memory(&sent.bytes).unwrap();
    assert_eq!((small.width(), small.height()), (320, 229));
}

#[tokio::test]
async fn images_of_other_servers_that_are_too_large_have_no_thumbnails() {
    let (server, fake) = server_and_fake().await;
    let alice = server.register("alice").await;
    fake.on(Method::GET, DOWNLOAD, |_| parts("image/png", &huge_png()));
    let name = format!("mxc://{}/abc", fake.name);
    let path = format!("{}?width=32&height=32", path("thumbnail", &name));
    // Here it is that server's answer which is bad.
    alice.get(&path).await.fails(502, "M_TOO_LARGE");
}

#[tokio::test]
async fn what_many_want_is_fetched_once() {
    let (server, fake) = server_and_fake().await;
    let alice = server.register("alice").await;
    fake.on(Method::GET, DOWNLOAD, |_| {
        std::thread::sleep(Duration::from_millis(200));
        parts("text/plain", b"hello")
    });
    let all = future::join_all((0..8).map(|_| get(&alice, &fake, "abc"))).await;
    for sent in all {
        assert_eq!(sent.bytes, "hello");
        assert_eq!(
            sent.header("content-disposition"),
            "inline; filename=\"a b.txt\""
        );
    }
    assert_eq!(fake.count(&Method::GET, DOWNLOAD), 1);
    let path = format!(
        "/_matrix/client/v1/media/download/{}/slow?timeout_ms=1500",
        fake.name
    );
    alice.get(&path).await;
    let asked = fake.recorded().pop().unwrap().path;
    assert_eq!(asked, format!("{DOWNLOAD}slow?timeout_ms=1500"));
}

#[tokio::test]
async fn old_servers_are_asked_on_the_old_path() {
    let (server, fake) = server_and_fake().await;
    let alice = server.register("alice").await;
    fake.on(Method::GET, OLD, |_| {
        Response::builder()
            .header(header::CONTENT_TYPE, "text/plain")
            .header(header::CONTENT_DISPOSITION, "inline; filename=old.txt")
            .body(Body::from("from the old path"))
            .expect("an answer")
    });
    let sent = get(&alice, &fake, "abc").await;
    assert_eq!(sent.bytes, "from the old path");
    assert_eq!(sent.header("content-type"), "text/plain");
    assert_eq!(
        sent.header("content-disposition"),
        "inline; filename=old.txt"
    );
    let asked = fake.recorded();
    let asked = asked.iter().find(|it| it.path.starts_with(OLD)).unwrap();
    let expected = format!("{OLD}{}/abc?allow_remote=false", fake.name);
    assert!(asked.path.starts_with(&expected), "{}", asked.path);
    assert!(!asked.headers.contains_key(header::AUTHORIZATION));

    // Older ones say 400, and some have no parts.
    fake.on(Method::GET, DOWNLOAD, |_| {
        let answer = Response::builder().status(400);
        answer.body(Body::from("no such path")).unwrap()
    });
    let sent = get(&alice, &fake, "older").await;
    assert_eq!(sent.bytes, "from the old path");
    fake.on(Method::GET, DOWNLOAD, |_| Response::new(Body::from("?")));
    let sent = get(&alice, &fake, "without_parts").await;
    assert_eq!(sent.bytes, "from the old path");

    // One who knows the new path is not asked on the old one.
    for (status, errcode, expected) in [
        (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
        (504, "M_NOT_YET_UPLOADED", (504, "M_NOT_YET_UPLOADED")),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
        (413, "M_TOO_LARGE", (502, "M_TOO_LARGE")),
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
    ] {
        fake.refuses(Method::GET, DOWNLOAD, status, errcode);
        let sent = get(&alice, &fake, "other").await;
        sent.answer().fails(expected.0, expected.1);
    }
    assert_eq!(fake.count(&Method::GET, OLD), 3);
}

/// An answer that says where the file is.
fn elsewhere(address: String) -> impl Fn(&Recorded) -> Response {
    move |_| {
        raw_parts(format!(
            "--xyz\r\n\r\n{{}}\r\n--xyz\r\nLocation: {address}\r\n\r\n\r\n--xyz--"
        ))
    }
}

#[tokio::test]
async fn a_file_may_be_elsewhere() {
    let (server, fake) = server_and_fake().await;
    let alice = server.register("alice").await;
    let cdn = FakeServer::start().await;
    cdn.on(Method::GET, "/cdn/1?token=x", |_| {
        Response::builder()
            .header(header::CONTENT_TYPE, "text/csv")
            .body(Body::from("a,b"))
            .expect("an answer")
    });
    let address = format!("https://{}/cdn/1?token=x", cdn.name);
    fake.on(Method::GET, DOWNLOAD, elsewhere(address));
    let sent = get(&alice, &fake, "abc").await;
    assert_eq!(sent.bytes, "a,b");
    assert_eq!(sent.header("content-type"), "text/csv");
    let asked = cdn.recorded().pop().unwrap();
    assert!(!asked.headers.contains_key(header::AUTHORIZATION));

    for address in [
        format!("http://{}/cdn/1?token=x", cdn.name),
        format!("https://{}/cdn/2", cdn.name),
        "https://10.0.0.1/".to_owned(),
        "https://169.254.169.254/latest".to_owned(),
        "https://[::ffff:10.0.0.1]/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "nonsense".to_owned(),
        String::new(),
    ] {
        fake.on(Method::GET, DOWNLOAD, elsewhere(address.clone()));
        let sent = get(&alice, &fake, "other").await;
        let answer = sent.answer();
        assert_eq!(answer.status, 502, "{address}: {}", answer.body);
    }
}

#[tokio::test]
async fn hostile_answers_are_no_media() {
    let server = TestServer::federated_with(|config| config.media.max_upload_bytes = 100_000);
    let (server, fake) = tokio::join!(server, FakeServer::start());
    let alice = server.register("alice").await;
    let head = "--xyz\r\n\r\n{}\r\n--xyz\r\nContent-Type: text/plain\r\n\r\n";
    let pages: Vec<(&str, Page)> = vec![
        ("no parts", Box::new(|_| Response::new(Body::from("hello")))),
        (
            "no end",
            Box::new(move |_| raw_parts(format!("{head}hello"))),
        ),
        (
            "one part",
            Box::new(|_| raw_parts("--xyz\r\n\r\n{}\r\n--xyz--")),
        ),
        ("no head", Box::new(|_| raw_parts(vec![b' '; 80_000]))),
        (
            "no JSON",
            Box::new(|_| raw_parts("--xyz\r\n\r\n\r\n--xyz\r\n\r\nx\r\n--xyz--")),
        ),
        (
            "too large",
            Box::new(|_| parts("text/plain", &[b'x'; 100_001])),
        ),
        (
            "much too large",
            Box::new(|_| parts("text/plain", &vec![b'x'; 1_000_000])),
        ),
        (
            "endless",
            Box::new(move |_| {
                let endless = endless(&[b'x'; 10_000], Duration::ZERO).into_body();
                let endless = endless.into_data_stream();
                let start = futures_util::stream::iter([Ok(Bytes::from(head))]);
                raw_parts(Body::from_stream(futures_util::StreamExt::chain(
                    start, endless,
                )))
            }),
        ),
        (
            "endless head",
            Box::new(|_| raw_parts(endless(b"x-a: b\r\n", Duration::ZERO).into_body())),
        ),
    ];
    for (what, page) in pages {
        fake.on(Method::GET, DOWNLOAD, page);
        let answer = get(&alice, &fake, "abc").await.answer();
        assert_eq!(answer.status, 502, "{what}: {}", answer.body);
        let errcode = answer.body["errcode"].as_str().unwrap();
        let is_too_large = what.contains("too large") || what == "endless";
        let expected = if is_too_large {
            "M_TOO_LARGE"
        } else {
            "M_UNKNOWN"
        };
        assert_eq!(errcode, expected, "{what}");
    }
    for kind in ["blobs", "incoming"] {
        assert!(files(&server, kind).is_empty(), "{kind}");
    }
    fake.on(Method::GET, DOWNLOAD, |_| {
        parts("text/html\r\nX: y", &vec![b'x'; 100_000])
    });
    let sent = get(&alice, &fake, "abc").await;
    assert_eq!(sent.bytes.len(), 100_000);
    assert!(sent.header("content-disposition").starts_with("attachment"));
    for name in ["..%2F..%2Fx", "a%20b"] {
        let path = format!("/_matrix/client/v1/media/download/{}/{name}", fake.name);
        alice.get(&path).await.fails(404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn what_nobody_asks_for_is_given_up() {
    let server = TestServer::federated_with(|config| config.media.remote_cache_bytes = 2500);
    let (server, fake) = tokio::join!(server, FakeServer::start());
    let alice = server.register("alice").await;
    fake.on(Method::GET, DOWNLOAD, |asked| {
        let name = asked.path.trim_start_matches(DOWNLOAD).as_bytes()[0];
        parts("text/plain", &[name; 1000])
    });
    upload(&alice, "text/plain", vec![b'a'; 1000]).await;
    upload(&alice, "text/plain", vec![b'l'; 10_000]).await;
    let app: &Arc<_> = &server.app;
    for name in ["a", "b"] {
        get(&alice, &fake, name).await;
        app.clock.advance(Duration::from_mins(1));
    }
    assert_eq!(remote::sweep(app).await.unwrap(), 0);
    // The oldest, and yet the last that somebody has asked for.
    app.clock.advance(Duration::from_mins(20));
    get(&alice, &fake, "a").await;
    app.clock.advance(Duration::from_mins(1));
    get(&alice, &fake, "c").await;
    assert_eq!(files(&server, "blobs").len(), 4);
    assert_eq!(remote::sweep(app).await.unwrap(), 1);
    assert_eq!(files(&server, "blobs").len(), 3);
    let count = |name: &str| fake.count(&Method::GET, &format!("{DOWNLOAD}{name}"));
    for (name, fetched) in [("a", 1), ("c", 1), ("b", 2)] {
        let sent = get(&alice, &fake, name).await;
        assert_eq!(sent.bytes, vec![name.as_bytes()[0]; 1000]);
        assert_eq!(count(name), fetched, "{name}");
    }
    // What somebody here has uploaded too stays.
    for name in ["d", "e", "f"] {
        app.clock.advance(Duration::from_mins(1));
        get(&alice, &fake, name).await;
    }
    assert_eq!(remote::sweep(app).await.unwrap(), 4);
    assert_eq!(files(&server, "blobs").len(), 4);
    assert_eq!(remote::sweep(app).await.unwrap(), 0);
    get(&alice, &fake, "a").await;
    assert_eq!(count("a"), 2);
}

#[tokio::test]
async fn media_are_given_to_other_servers() {
    let (server, fake) = server_and_fake().await;
    let alice = server.register("alice").await;
    let request = ask(
        &alice,
        Method::POST,
        "/_matrix/media/v3/upload?filename=x.txt",
    );
    let request = request
        .header("content-type", "text/plain")
        .body("the file");
    let uri = fetch(request).await.answer().ok();
    let (_, media_id) = uri["content_uri"]
        .as_str()
        .unwrap()
        .rsplit_once('/')
        .unwrap();
    let give = async |path: &str| {
        let method = Method::GET;
        let authorization = fake.authorization(server.name(), &method, path, None);
        let url = format!("http://{}{path}", server.address);
        fetch(server.http.get(url).header("authorization", authorization)).await
    };
    let sent = give(&format!("{DOWNLOAD}{media_id}")).await;
    let content_type = sent.header("content-type");
    let boundary = content_type
        .strip_prefix("multipart/mixed; boundary=")
        .unwrap();
    let expected = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n\
         Content-Type: text/plain\r\nContent-Disposition: inline; filename=x.txt\r\n\r\nthe file\r\n\
         --{boundary}--\r\n"
    );
    assert_eq!(sent.bytes, expected);
    assert_eq!(sent.header("content-length"), expected.len().to_string());
    let thumbnail = format!("/_matrix/federation/v1/media/thumbnail/{media_id}?width=1&height=1");
    give(&thumbnail).await.answer().fails(400, "M_UNKNOWN");

    // What was fetched from elsewhere is not given on.
    fake.on(Method::GET, DOWNLOAD, |_| parts("text/plain", b"theirs"));
    get(&alice, &fake, "theirs").await;
    for unknown in ["theirs", "unknown", "..%2F"] {
        let sent = give(&format!("{DOWNLOAD}{unknown}")).await;
        sent.answer().fails(404, "M_NOT_FOUND");
    }
    let pending = alice.post("/_matrix/media/v1/create", serde_json::json!({}));
    let pending = pending.await.ok();
    let (_, media_id) = pending["content_uri"]
        .as_str()
        .unwrap()
        .rsplit_once('/')
        .unwrap();
    let sent = give(&format!("{DOWNLOAD}{media_id}?timeout_ms=0")).await;
    sent.answer().fails(504, "M_NOT_YET_UPLOADED");
}

#[tokio::test]
async fn on_the_old_paths_others_media_only_if_wanted() {
    let server = TestServer::federated_with(|config| config.media.unauthenticated = true);
    let (server, fake) = tokio::join!(server, FakeServer::start());
    fake.on(Method::GET, DOWNLOAD, |asked| {
        if asked.path.contains("good") {
            parts("text/plain", b"hello")
        } else {
            error(404, "M_NOT_FOUND")
        }
    });
    let name = format!("{}/good", fake.name);
    let get = async |path: String| {
        let url = format!("http://{}{path}", server.address);
        fetch(server.http.get(url)).await
    };
    for what in ["download", "thumbnail"] {
        let path = format!("/_matrix/media/v3/{what}/{name}?allow_remote=false&width=1&height=1");
        get(path).await.answer().fails(404, "M_NOT_FOUND");
    }
    assert!(fake.recorded().is_empty());
    let sent = get(format!("/_matrix/media/v3/download/{name}")).await;
    assert_eq!(sent.bytes, "hello");
}

#[tokio::test]
async fn a_slow_server_keeps_nobody_else_waiting() {
    let (server, slow) = server_and_fake().await;
    let (quick, alice) = tokio::join!(FakeServer::start(), server.register("alice"));
    // Fast enough to go on for as long as a file may take.
    slow.on(Method::GET, DOWNLOAD, |_| {
        let start = b"--xyz\r\n\r\n{}\r\n--xyz\r\nContent-Type: text/plain\r\n\r\n";
        let rest = endless(&[b' '; 1 << 11], Duration::from_millis(100));
        let rest = rest.into_body().into_data_stream();
        let start = futures_util::stream::iter([Ok(Bytes::from_static(start))]);
        raw_parts(Body::from_stream(futures_util::StreamExt::chain(
            start, rest,
        )))
    });
    quick.on(Method::GET, DOWNLOAD, |_| parts("text/plain", b"quick"));
    let ids: Vec<String> = (0..40).map(|number| format!("slow{number}")).collect();
    let waiting = future::join_all(ids.iter().map(|id| get(&alice, &slow, id)));
    let others = async {
        slow.wait_for(|it| it.path.starts_with(DOWNLOAD)).await;
        for id in ["a", "b"] {
            assert_eq!(get(&alice, &quick, id).await.bytes, "quick");
        }
    };
    tokio::select! {
        _ = waiting => panic!("the slow server is not slow"),
        done = tokio::time::timeout(Duration::from_secs(20), others) => done.expect("in time"),
    }
    assert!(slow.count(&Method::GET, DOWNLOAD) < 20);
}
