//! Pages and images that mean harm to who makes a preview of them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::response::Response;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode, header};
use serde_json::json;

use crate::{
    fake_server::{FakeServer, endless, endless_counted},
    media::{download, files},
    server::TestServer,
    tls,
    url_previews::{
        PAGE, enabled, png, preview, preview_at, redirects, server_and_site, shows, with_type,
    },
};

#[tokio::test]
async fn private_addresses_are_not_looked_at() {
    let (server, site) = server_and_site().await;
    let alice = server.register("alice").await;
    let port = site.name.port().unwrap();
    for host in [
        "127.0.0.2",
        "127.2",
        "0x7f000002",
        "2130706434",
        "０x7f.0.0.2",
        "127。0。0。2",
        "0.0.0.0",
        "10.0.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "[::1]",
        "[::ffff:127.0.0.2]",
        "[::ffff:a00:1]",
        "[64:ff9b::a00:1]",
        "[fe80::1]",
        "[fd00::1]",
    ] {
        for scheme in ["http", "https"] {
            let address = format!("{scheme}://{host}:{port}/");
            let answer = preview(&alice, &address).await;
            assert_eq!(answer.status, 403, "{address}: {}", answer.body);
            let body = answer.fails(403, "M_FORBIDDEN");
            // Nobody is told what is behind it.
            let said = body["error"].as_str().unwrap();
            assert!(said.starts_with("this server does not look at "), "{said}");
        }
    }
    // The one address that the settings allow is reached under all its names.
    shows(&site, "/", "text/html", "<title>here</title>");
    for host in [
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "１２７.0.0.1",
    ] {
        let shown = preview(&alice, &format!("http://{host}:{port}/{host}"))
            .await
            .ok();
        assert_eq!(shown["og:title"], "here", "{host}");
    }
    // Neither does anything lead there from elsewhere.
    for (number, place) in [
        format!("http://127.0.0.2:{port}/"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://[::1]/".to_owned(),
        "https://10.0.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "ftp://localhost/".to_owned(),
        "gopher://localhost:6379/".to_owned(),
        "data:text/html,<title>x</title>".to_owned(),
        "javascript:alert(1)".to_owned(),
        format!("http://alice:secret@localhost:{port}/"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/redirect/{number}/");
        redirects(&site, &path, &place);
        let answer = preview_at(&alice, &site, &path).await;
        assert_eq!(answer.status, 403, "{place}: {}", answer.body);
        answer.fails(403, "M_FORBIDDEN");
        // Nor do images.
        for (kind, image) in [("direct", place), ("redirect", path)] {
            let page = format!("/{kind}/{number}");
            let html = format!("<title>t</title><meta property=og:image content='{image}'>");
            shows(&site, &page, "text/html", html);
            let shown = preview_at(&alice, &site, &page).await.ok();
            assert_eq!(shown, json!({ "og:title": "t" }), "{image}");
        }
    }
    assert!(files(&server, "blobs").is_empty());
}

#[tokio::test]
async fn what_is_no_address_of_the_web_is_refused() {
    let (server, site) = server_and_site().await;
    let alice = server.register("alice").await;
    let long = format!("http://{}/{}", site.name, "a".repeat(5000));
    for address in [
        "",
        "nonsense",
        "/etc/passwd",
        "//example.org/",
        "http://",
        "http://[",
        "http://a b/",
        "http://999.999.999.999/",
        "http://xn--/",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://localhost/",
        "data:text/html,x",
        "javascript:alert(1)",
        "mxc://localhost/abc",
        "matrix://localhost/",
        &format!("http://alice@{}/", site.name),
        &format!("http://alice:secret@{}/", site.name),
        &format!("http://:secret@{}/", site.name),
        &long,
    ] {
        let answer = preview(&alice, address).await;
        assert_eq!(answer.status, 400, "{address}: {}", answer.body);
        answer.fails(400, "M_INVALID_PARAM");
    }
    // A name in another script is the same in its plain form; nobody has this one.
    let answer = preview(&alice, "http://käse.invalid/").await;
    let body = answer.fails(502, "M_UNKNOWN");
    assert!(
        body["error"]
            .as_str()
            .unwrap()
            .contains("xn--kse-qla.invalid"),
        "{body}"
    );
    assert!(site.recorded().is_empty());
}

/// Asks for pages that keep their reader busy; all at once, since each is given up after ten seconds only.
#[tokio::test]
async fn pages_without_end_are_cut_off_or_given_up() {
    let (server, site) = server_and_site().await;
    let names = ["a", "b", "c", "d", "e"];
    let mut users = Vec::new();
    for name in names {
        users.push(server.register(name).await);
    }
    let piece = format!("<meta property=og:title content=start>{:8192}", "<p>");
    let piece: &[u8] = piece.leak().as_bytes();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    site.on(Method::GET, "/endless", move |_| {
        let mut answer = endless_counted(piece, Duration::ZERO, Arc::clone(&counted));
        let html = header::HeaderValue::from_static("text/html");
        answer.headers_mut().insert(header::CONTENT_TYPE, html);
        answer
    });
    let slow = |piece: &'static [u8], kind: &'static str| {
        move |_: &_| {
            let mut answer = endless(piece, Duration::from_millis(100));
            let kind = header::HeaderValue::from_static(kind);
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
            answer
        }
    };
    site.on(
        Method::GET,
        "/slow",
        slow(b"<title>slow</title>", "text/html"),
    );
    // Fast enough to go on, but not for ever.
    site.on(Method::GET, "/steady", slow(&[b' '; 2000], "text/html"));
    site.never_answers(Method::GET, "/never");
    shows(
        &site,
        "/page",
        "text/html",
        "<title>t</title><meta property=og:image content=image>",
    );
    site.on(Method::GET, "/image", slow(b"\x89PNG", "image/png"));
    let began = Instant::now();
    let pages = ["/endless", "/slow", "/steady", "/never", "/page"];
    let asked = pages
        .iter()
        .zip(&users)
        .map(|(path, user)| preview_at(user, &site, path));
    let mut answers = join_all(asked).await.into_iter();
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(answers.next().unwrap().ok()["og:title"], "start");
    assert!(taken.load(Ordering::Relaxed) < 8 << 20);
    for _ in 0..3 {
        answers.next().unwrap().fails(502, "M_UNKNOWN");
    }
    assert_eq!(answers.next().unwrap().ok(), json!({ "og:title": "t" }));
}

#[tokio::test]
async fn bad_pages_have_no_preview() {
    let (server, site) = server_and_site().await;
    let alice = server.register("alice").await;
    // Whatever it would be if one unpacked it.
    site.on(Method::GET, "/bomb", |_| {
        let answer = with_type("text/html", vec![0x1f, 0x8b, 8, 0, 0, 0]);
        let (mut parts, body) = answer.into_parts();
        let gzip = header::HeaderValue::from_static("gzip");
        parts.headers.insert(header::CONTENT_ENCODING, gzip);
        Response::from_parts(parts, body)
    });
    site.on(Method::GET, "/error", |_| {
        let mut answer = with_type("text/html", PAGE);
        *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        answer
    });
    redirects(&site, "/nowhere", "http://[");
    for path in ["/bomb", "/error", "/nowhere"] {
        preview_at(&alice, &site, path)
            .await
            .fails(502, "M_UNKNOWN");
    }
    let closed = format!("http://localhost:{}/", tls::free_port());
    preview(&alice, &closed).await.fails(502, "M_UNKNOWN");
    // TLS with a site that speaks none, and the other way round.
    let wrong = format!("https://{}/", site.name);
    preview(&alice, &wrong).await.fails(502, "M_UNKNOWN");

    // A long page is read as far as pages are.
    let mut long = b"<title>start</title>".to_vec();
    long.resize(3 << 20, b' ');
    long.extend_from_slice(b"<meta property=og:title content=end>");
    shows(&site, "/long", "text/html", long);
    assert_eq!(
        preview_at(&alice, &site, "/long").await.ok(),
        json!({ "og:title": "start" })
    );
    // Letters that are none.
    shows(
        &site,
        "/letters",
        "text/html; charset=utf-8",
        b"<title>K\xe4se \xf0\x9f</title>",
    );
    let shown = preview_at(&alice, &site, "/letters").await.ok();
    assert_eq!(shown["og:title"], "K\u{fffd}se \u{fffd}");
    // Many tags, deep and never closed.
    shows(&site, "/deep", "text/html", "<div><a b=c>".repeat(80_000));
    assert_eq!(preview_at(&alice, &site, "/deep").await.ok(), json!({}));
}

#[tokio::test]
async fn bad_images_are_left_out() {
    let server = TestServer::start_with(|config| {
        enabled(config);
        config.url_previews.max_image_bytes = 10_000;
    });
    let (server, site) = tokio::join!(server, FakeServer::start_plain());
    let alice = server.register("alice").await;
    let too_large = [png(4, 4), vec![0; 10_000]].concat();
    // The same as a page of its own.
    shows(&site, "/direct.png", "image/png", too_large.clone());
    assert_eq!(
        preview_at(&alice, &site, "/direct.png").await.ok(),
        json!({})
    );
    let images: [(&str, &str, Vec<u8>); 7] = [
        ("page", "image/png", PAGE.into()),
        (
            "svg",
            "image/svg+xml",
            "<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>".into(),
        ),
        (
            "svg as png",
            "image/png",
            "<?xml version='1.0'?><svg/>".into(),
        ),
        (
            "bmp",
            "image/bmp",
            b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0".to_vec(),
        ),
        ("truncated", "image/png", png(4, 4)[..20].to_vec()),
        ("huge", "image/png", crate::thumbnails::huge_png()),
        ("too large", "image/png", too_large),
    ];
    for (number, (name, content_type, bytes)) in images.into_iter().enumerate() {
        let html = format!(
            "<title>t</title><meta property=og:image content=/image/{number}>\
            <meta property=og:image:alt content=alt>"
        );
        shows(&site, &format!("/page/{number}"), "text/html", html);
        shows(&site, &format!("/image/{number}"), content_type, bytes);
        let shown = preview_at(&alice, &site, &format!("/page/{number}"))
            .await
            .ok();
        assert_eq!(shown, json!({ "og:title": "t" }), "{name}");
    }
    assert!(files(&server, "blobs").is_empty() && files(&server, "incoming").is_empty());
    // What it is counts, not what it is called.
    shows(
        &site,
        "/page/x",
        "text/html",
        "<meta property=og:image content=/image/x>",
    );
    shows(&site, "/image/x", "text/html", png(4, 4));
    let shown = preview_at(&alice, &site, "/page/x").await.ok();
    assert_eq!(shown["og:image:type"], "image/png");
    let sent = download(&alice, shown["og:image"].as_str().unwrap()).await;
    assert_eq!(sent.header("content-type"), "image/png");
}
