//! What a file is called when it is downloaded.

use reqwest::Method;

use crate::{
    media::{ask, download, fetch, path, uri},
    server::TestServer,
};

#[tokio::test]
async fn file_names_are_written_as_headers_have_them() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    for (name, expected) in [
        ("a.txt", "inline; filename=a.txt"),
        ("a b;c=d.txt", "inline; filename=\"a b;c=d.txt\""),
        ("a\"b\\c.txt", "inline; filename=\"a\\\"b\\\\c.txt\""),
        (
            "Käse 🧀.txt",
            "inline; filename*=utf-8''K%C3%A4se%20%F0%9F%A7%80.txt",
        ),
        ("../etc/passwd", "inline; filename=\"../etc/passwd\""),
        (
            "a\r\nX-Evil: 1\u{1}.txt",
            "inline; filename=\"aX-Evil: 1.txt\"",
        ),
        ("", "inline"),
    ] {
        let name: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let place = format!("/_matrix/media/v3/upload?filename={name}");
        let request = ask(&alice, Method::POST, &place).header("content-type", "text/plain");
        let uri = uri(fetch(request.body(name.clone())).await.answer());
        let sent = download(&alice, &uri).await;
        assert_eq!(sent.header("content-disposition"), expected);
        assert_eq!(sent.header("x-evil"), "");
        let name = name.replace('+', "%20");
        if !name.is_empty() {
            let path = format!("{}/{name}", path("download", &uri));
            let sent = fetch(ask(&alice, Method::GET, &path)).await;
            assert_eq!(sent.header("x-evil"), "");
            assert_eq!(sent.bytes, download(&alice, &uri).await.bytes);
        }
    }
}
