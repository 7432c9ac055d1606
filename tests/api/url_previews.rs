//! What is shown of pages to which people link.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use futures_util::future::join_all;
use homing::{
    config::{Config, Rate},
    media::remote,
};
use image::{DynamicImage, ImageFormat};
use reqwest::{Method, StatusCode, header};
use serde_json::json;

use crate::{
    fake_server::FakeServer,
    media::{download, files, upload},
    server::{Answer, TestServer, User},
    thumbnails::thumbnail,
    tls,
};

const PATHS: [&str; 3] = [
    "/_matrix/client/v1/media/preview_url",
    "/_matrix/media/v3/preview_url",
    "/_matrix/media/r0/preview_url",
];

pub fn enabled(config: &mut Config) {
    config.url_previews.enabled = true;
    config.url_previews.allow_addresses = vec!["127.0.0.1/32".parse().unwrap()];
    config.federation.ca_file = Some(tls::write_authority(&config.data_dir));
}

/// A server that makes previews, and a site without encryption.
pub async fn server_and_site() -> (TestServer, FakeServer) {
    tokio::join!(TestServer::start_with(enabled), FakeServer::start_plain())
}

fn asked(address: &str) -> String {
    let address: String = url::form_urlencoded::byte_serialize(address.as_bytes()).collect();
    format!("{}?url={address}", PATHS[0])
}

pub async fn preview(user: &User<'_>, address: &str) -> Answer {
    user.get(&asked(address)).await
}

pub async fn preview_at(user: &User<'_>, site: &FakeServer, path: &str) -> Answer {
    preview(user, &format!("http://{}{path}", site.name)).await
}

pub fn with_type(content_type: &str, body: impl Into<Body>) -> Response {
    Response::builder()
        .header(header::CONTENT_TYPE, content_type)
        .body(body.into())
        .unwrap()
}

/// Answers with this page.
pub fn shows(site: &FakeServer, path: &str, content_type: &'static str, body: impl Into<Vec<u8>>) {
    let body = body.into();
    site.on(Method::GET, path, move |_| {
        with_type(content_type, body.clone())
    });
}

pub fn redirects(site: &FakeServer, path: &str, to: impl Into<String>) {
    let to = to.into();
    site.on(Method::GET, path, move |_| {
        let answer = Response::builder()
            .status(302)
            .header(header::LOCATION, &to);
        answer.body(Body::empty()).unwrap()
    });
}

pub fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let image = DynamicImage::new_rgb8(width, height);
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

pub const PAGE: &str = r#"<html prefix="og: http://ogp.me/ns#"><head><title>The Rock (1996)</title>
    <meta property="og:title" content="The Rock" /><meta property="og:type" content="video.movie" />
    <meta property="og:url" content="http://www.imdb.com/title/tt0117500/" />
    <meta property="og:image" content="test.png" /></head><body></body></html>"#;

#[tokio::test]
async fn unless_configured_there_is_no_such_endpoint() {
    let server = TestServer::start().await;
    let site = FakeServer::start_plain().await;
    let alice = server.register("alice").await;
    for path in PATHS {
        for token in [None, Some(&*alice.token)] {
            let path = format!("{path}?url=http://{}/", site.name);
            let answer = server.request(Method::GET, &path, token, None).await;
            answer.fails(404, "M_UNRECOGNIZED");
        }
    }
    assert!(site.recorded().is_empty());
}

#[tokio::test]
async fn a_page_is_shown_by_its_properties() {
    let (server, plain) = server_and_site().await;
    let encrypted = FakeServer::start().await;
    let alice = server.register("alice").await;
    let image = png(279, 129);
    for (site, scheme) in [(&plain, "http"), (&encrypted, "https")] {
        shows(site, "/a/test.html", "text/html; charset=utf-8", PAGE);
        shows(site, "/a/test.png", "image/png", image.clone());
        let address = format!("{scheme}://{}/a/test.html", site.name);
        let shown = preview(&alice, &address).await.ok();
        let uri = shown["og:image"].as_str().unwrap().to_owned();
        assert_eq!(
            shown,
            json!({
                "og:title": "The Rock",
                "og:type": "video.movie",
                "og:url": "http://www.imdb.com/title/tt0117500/",
                "og:image": uri,
                "og:image:type": "image/png",
                "og:image:width": 279,
                "og:image:height": 129,
                "matrix:image:size": image.len(),
            })
        );
        assert!(uri.starts_with("mxc://localhost/"), "{uri}");
        let sent = download(&alice, &uri).await;
        assert_eq!(sent.bytes, image);
        assert_eq!(sent.header("content-type"), "image/png");
        let asked = site.recorded();
        assert_eq!(asked.len(), 2);
        for request in asked {
            assert!(!request.headers.contains_key(header::AUTHORIZATION));
            assert_eq!(request.headers[header::HOST], site.name.as_str());
            assert_eq!(request.headers[header::ACCEPT_ENCODING], "identity");
        }
        // Which part of the page is meant makes no difference, and neither does the path on which somebody asks.
        let address = url::form_urlencoded::byte_serialize(address.as_bytes()).collect::<String>();
        for path in PATHS {
            let path = format!("{path}?ts=1510610716656&url={address}%23part");
            assert_eq!(alice.get(&path).await.ok(), shown);
            let answer = server.request(Method::GET, &path, None, None).await;
            answer.fails(401, "M_MISSING_TOKEN");
        }
        assert_eq!(site.recorded().len(), 2, "it is known already");
    }
    alice.get(PATHS[0]).await.fails(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn an_image_is_its_own_preview() {
    let (server, site) = server_and_site().await;
    let alice = server.register("alice").await;
    shows(&site, "/K%C3%A4tzchen.png", "image/png", png(8, 4));
    let shown = preview_at(&alice, &site, "/Kätzchen.png").await.ok();
    assert_eq!(shown["og:title"], "Kätzchen.png");
    assert_eq!(
        (&shown["og:image:width"], &shown["og:image:height"]),
        (&json!(8), &json!(4))
    );
    // What is neither a page nor an image has no preview.
    for (path, content_type, body) in [
        ("/a.txt", "text/plain", PAGE),
        ("/a.json", "application/json", "{}"),
        ("/a", "", PAGE),
        (
            "/a.svg",
            "image/svg+xml",
            "<svg xmlns=\"http://www.w3.org/2000/svg\"/>",
        ),
        ("/b.png", "image/png", "no image"),
    ] {
        shows(&site, path, content_type, body);
        assert_eq!(
            preview_at(&alice, &site, path).await.ok(),
            json!({}),
            "{path}"
        );
    }
    assert_eq!(files(&server, "blobs").len(), 1);
}

#[tokio::test]
async fn what_many_want_is_looked_at_once_an_hour() {
    let (server, site) = server_and_site().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    site.on(Method::GET, "/page", |_| {
        std::thread::sleep(Duration::from_millis(100));
        with_type(
            "text/html",
            "<meta property=og:title content=A><meta property=og:image content=i>",
        )
    });
    shows(&site, "/i", "image/png", png(4, 4));
    let all = (0..16).map(|n| preview_at(if n % 2 == 0 { &alice } else { &bob }, &site, "/page"));
    let all = join_all(all).await;
    let shown = all[0].body.clone();
    for answer in all {
        assert_eq!(answer.ok(), shown);
    }
    assert_eq!(site.count(&Method::GET, "/page"), 1);
    server.app.clock.advance(Duration::from_mins(59));
    assert_eq!(preview_at(&alice, &site, "/page").await.ok(), shown);
    assert_eq!(site.count(&Method::GET, "/page"), 1);
    server.app.clock.advance(Duration::from_mins(2));
    preview_at(&alice, &site, "/page").await.ok();
    assert_eq!(site.count(&Method::GET, "/page"), 2);
    // That there is nothing is known for a shorter time.
    for (wait, count) in [(0, 1), (30, 1), (31, 2)] {
        server.app.clock.advance(Duration::from_secs(wait));
        preview_at(&alice, &site, "/missing")
            .await
            .fails(502, "M_UNKNOWN");
        assert_eq!(site.count(&Method::GET, "/missing"), count);
    }
}

#[tokio::test]
async fn images_of_previews_are_kept_for_a_week_at_most() {
    let (server, site) = server_and_site().await;
    let alice = server.register("alice").await;
    shows(
        &site,
        "/page",
        "text/html",
        "<meta property=og:image content=i>",
    );
    shows(&site, "/i", "image/png", png(600, 400));
    let shown = preview_at(&alice, &site, "/page").await.ok();
    let uri = shown["og:image"].as_str().unwrap();
    let thumbnail = format!(
        "{}?width=32&height=32&method=crop",
        crate::media::path("thumbnail", uri)
    );
    alice.send(Method::GET, &thumbnail, None).await;
    assert_eq!(
        (
            files(&server, "blobs").len(),
            files(&server, "thumbnails").len()
        ),
        (1, 1)
    );
    server.app.clock.advance(Duration::from_hours(7 * 24 - 1));
    assert_eq!(remote::sweep_expired(&server.app).await.unwrap(), 0);
    assert_eq!(download(&alice, uri).await.status, StatusCode::OK);
    server.app.clock.advance(Duration::from_hours(2));
    download(&alice, uri)
        .await
        .answer()
        .fails(404, "M_NOT_FOUND");
    assert_eq!(remote::sweep_expired(&server.app).await.unwrap(), 1);
    assert!(files(&server, "blobs").is_empty() && files(&server, "thumbnails").is_empty());

    // What somebody here has uploaded too stays.
    let again = preview_at(&alice, &site, "/page").await.ok();
    let mine = upload(&alice, "image/png", png(600, 400)).await;
    server.app.clock.advance(Duration::from_hours(8 * 24));
    assert_eq!(remote::sweep_expired(&server.app).await.unwrap(), 1);
    assert_eq!(download(&alice, &mine).await.status, StatusCode::OK);
    let uri = again["og:image"].as_str().unwrap();
    download(&alice, uri)
        .await
        .answer()
        .fails(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn images_of_previews_count_as_what_is_kept_of_others() {
    let image = png(64, 64);
    let server = TestServer::start_with(|config| {
        enabled(config);
        config.media.remote_cache_bytes = image.len() as u64;
        // They are nobody's files.
        config.media.max_user_bytes = Some(1);
    });
    let (server, site) = tokio::join!(server, FakeServer::start_plain());
    let alice = server.register("alice").await;
    for name in ["/1", "/2"] {
        let page = format!("<meta property=og:image content={name}.png>");
        shows(&site, name, "text/html", page);
        // Each has another content.
        let mut image = png(64, 64);
        image.extend_from_slice(name.as_bytes());
        shows(&site, &format!("{name}.png"), "image/png", &image[..]);
    }
    server.app.remote.has_more();
    let first = preview_at(&alice, &site, "/1").await.ok();
    assert!(
        server.app.remote.has_more(),
        "it is looked soon what is too much"
    );
    assert_eq!(remote::sweep(&server.app).await.unwrap(), 1);
    let gone = first["og:image"].as_str().unwrap();
    download(&alice, gone)
        .await
        .answer()
        .fails(404, "M_NOT_FOUND");
    // A preview whose image is gone is made again.
    let again = preview_at(&alice, &site, "/1").await.ok();
    assert_ne!(again["og:image"], first["og:image"]);
    server.app.clock.advance(Duration::from_mins(1));
    preview_at(&alice, &site, "/2").await.ok();
    assert_eq!(remote::sweep(&server.app).await.unwrap(), 2);
    assert!(files(&server, "blobs").is_empty());
}

#[tokio::test]
async fn an_image_that_is_given_up_leaves_no_thumbnail() {
    let server = TestServer::start_with(|config| {
        enabled(config);
        config.media.remote_cache_bytes = 1;
    });
    let (server, site) = tokio::join!(server, FakeServer::start_plain());
    let alice = server.register("alice").await;
    let page = "<meta property=og:image content=i>";
    shows(&site, "/page", "text/html", page);
    shows(&site, "/i", "image/png", png(600, 400));
    let shown = preview_at(&alice, &site, "/page").await.ok();
    let uri = shown["og:image"].as_str().unwrap();
    // Who gives it up waits for its turn, and is the first in the queue.
    let coming = server.app.files.coming.read().await;
    let app = Arc::clone(&server.app);
    let sweep = tokio::spawn(async move { remote::sweep(&app).await });
    while server.app.files.coming.try_read().is_ok() {
        tokio::task::yield_now().await;
    }
    let is_made = async {
        while files(&server, "incoming").is_empty() && files(&server, "thumbnails").is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(coming);
    };
    let query = "width=32&height=32&method=crop";
    let (sent, ()) = tokio::join!(thumbnail(&alice, uri, query), is_made);
    assert_eq!(sweep.await.unwrap().unwrap(), 1);
    sent.answer().fails(404, "M_NOT_FOUND");
    assert!(files(&server, "blobs").is_empty() && files(&server, "thumbnails").is_empty());
}

#[tokio::test]
async fn a_page_that_says_nothing_of_itself_is_shown_by_its_text() {
    let (server, site) = server_and_site().await;
    let alice = server.register("alice").await;
    let text = "It is a rock. ".repeat(50);
    let page = format!(
        "<!DOCTYPE html><head><style>h1 {{ color: red }}</style></head><body><header><nav>Home</nav></header>\
         <h1>The <em>Rock</em></h1><script>'rock'</script><p>{text}</p><footer>2026</footer></body>"
    );
    shows(&site, "/page", "text/html", page);
    let shown = preview_at(&alice, &site, "/page").await.ok();
    let expected = format!("{}It is…", "It is a rock. ".repeat(21));
    assert_eq!(
        shown,
        json!({ "og:title": "The Rock", "og:description": expected })
    );
}

#[tokio::test]
async fn the_settings_say_what_is_not_looked_at() {
    let elsewhere = FakeServer::start_plain().await;
    let port = elsewhere.name.port().unwrap();
    let server = TestServer::start_with(|config| {
        enabled(config);
        config.url_previews.deny_hosts = vec!["127.0.0.1".to_owned()];
        config.url_previews.deny_urls = vec!["/private/".to_owned(), "^https:".to_owned()];
    });
    let (server, site) = tokio::join!(server, FakeServer::start_plain());
    let alice = server.register("alice").await;
    shows(&elsewhere, "/", "text/html", "<title>secret</title>");
    shows(&site, "/public", "text/html", "<title>public</title>");
    redirects(&site, "/to", format!("http://127.0.0.1:{port}/"));
    redirects(&site, "/inside", "/private/x");
    let secret = format!("http://127.0.0.1:{port}/i.png");
    let html = format!("<title>t</title><meta property=og:image content={secret}>");
    shows(&site, "/image", "text/html", html);
    assert_eq!(
        preview_at(&alice, &site, "/public").await.ok()["og:title"],
        "public"
    );
    for path in ["/private/x", "/to", "/inside"] {
        preview_at(&alice, &site, path)
            .await
            .fails(403, "M_FORBIDDEN");
    }
    assert_eq!(
        preview_at(&alice, &site, "/image").await.ok(),
        json!({ "og:title": "t" })
    );
    for address in [&secret, &format!("https://{}/", site.name)] {
        preview(&alice, address).await.fails(403, "M_FORBIDDEN");
    }
    assert!(elsewhere.recorded().is_empty());
}

#[tokio::test]
async fn redirects_are_followed_to_an_end() {
    let (server, site) = server_and_site().await;
    let alice = server.register("alice").await;
    let encrypted = FakeServer::start().await;
    redirects(&site, "/1", "2?x#y");
    redirects(&site, "/2?x", format!("//{}/3", site.name));
    redirects(&site, "/3", format!("https://{}/a/4", encrypted.name));
    redirects(&encrypted, "/a/4", "../b/5");
    shows(
        &encrypted,
        "/b/5",
        "text/html",
        "<title>end</title><meta property=og:image content=i.png>",
    );
    shows(&encrypted, "/b/i.png", "image/png", png(4, 4));
    let shown = preview_at(&alice, &site, "/1").await.ok();
    // What is relative is so to where the page is.
    assert_eq!(
        (&shown["og:title"], &shown["og:image:width"]),
        (&json!("end"), &json!(4))
    );
    redirects(&site, "/loop", "/loop");
    preview_at(&alice, &site, "/loop")
        .await
        .fails(502, "M_UNKNOWN");
    assert_eq!(site.count(&Method::GET, "/loop"), 6);
}

#[tokio::test]
async fn one_user_sees_only_so_many_new_pages() {
    let server = TestServer::start_with(|config| {
        enabled(config);
        config.rate_limits.enabled = true;
        config.rate_limits.previews = Rate {
            per_second: 0.001,
            burst: 2,
        };
    });
    let (server, site) = tokio::join!(server, FakeServer::start_plain());
    // The first account is an administrator's, who is not limited.
    server.register("admin").await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    shows(&site, "/", "text/html", "<title>t</title>");
    for path in ["/1", "/2", "/1", "/2", "/1"] {
        preview_at(&alice, &site, path).await.ok();
    }
    let answer = preview_at(&alice, &site, "/3").await;
    assert!(answer.fails(429, "M_LIMIT_EXCEEDED")["retry_after_ms"].is_u64());
    preview_at(&bob, &site, "/3").await.ok();
    preview_at(&alice, &site, "/3").await.ok();
}

#[tokio::test]
async fn one_user_keeps_nobody_else_waiting() {
    let (server, site) = server_and_site().await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    site.never_answers(Method::GET, "/never");
    shows(&site, "/page", "text/html", "<title>t</title>");
    let addresses: Vec<_> = (0..40).map(|number| format!("/never/{number}")).collect();
    let waiting = join_all(addresses.iter().map(|path| preview_at(&alice, &site, path)));
    let other = async {
        site.wait_for(|it| it.path.starts_with("/never")).await;
        let answer = preview_at(&bob, &site, "/page").await;
        assert_eq!(answer.ok()["og:title"], "t");
        assert!(site.count(&Method::GET, "/never") <= 4);
    };
    tokio::select! {
        _ = waiting => panic!("the site does not answer"),
        done = tokio::time::timeout(Duration::from_secs(8), other) => done.expect("in time"),
    }
}

#[tokio::test]
async fn guests_have_no_previews() {
    let server = TestServer::start_with(|config| {
        enabled(config);
        config.registration.guests = true;
    });
    let (server, site) = tokio::join!(server, FakeServer::start_plain());
    let path = "/_matrix/client/v3/register?kind=guest";
    let guest = server
        .request(Method::POST, path, None, Some(json!({})))
        .await
        .ok();
    let token = guest["access_token"].as_str().unwrap();
    for path in PATHS {
        let path = format!("{path}?url=http://{}/", site.name);
        let answer = server.request(Method::GET, &path, Some(token), None).await;
        answer.fails(403, "M_GUEST_ACCESS_FORBIDDEN");
    }
    assert_eq!(site.recorded().len(), 0);
}
