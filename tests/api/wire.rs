//! What comes over the wire that is hardly HTTP, or too much of it.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::server::TestServer;

/// How long an answer may take, on a machine that is busy with other tests too.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Sends bytes and then no more; answers all that comes back.
async fn exchange(server: &TestServer, sent: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("the server accepts");
    // The server may close before it has read everything.
    let _ = stream.write_all(sent).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let read = timeout(TIME_LIMIT, stream.read_to_end(&mut answer)).await;
    let _ = read.expect("the server closes in time");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The first bytes of an answer, which has its status.
fn status(answer: &str) -> &str {
    answer.get(.."HTTP/1.1 200".len()).unwrap_or(answer)
}

#[tokio::test]
async fn bad_heads_are_refused() {
    let server = TestServer::start().await;
    let get = |rest: &str| {
        format!("GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n\r\n")
    };
    let many: String = (0..2000).map(|n| format!("X-{n}: 1\r\n")).collect();
    let cases = [
        (get(&many), "HTTP/1.1 431"),
        (get(&format!("X: {}", "x".repeat(200_000))), "HTTP/1.1 431"),
        (
            get("Content-Length: 5\r\nContent-Length: 6"),
            "HTTP/1.1 400",
        ),
        (get("Content-Length: -1"), "HTTP/1.1 400"),
        (
            get("Content-Length: 99999999999999999999999"),
            "HTTP/1.1 400",
        ),
        (get("Transfer-Encoding: chunked, nonsense"), "HTTP/1.1 400"),
        (get("no colon"), "HTTP/1.1 400"),
        (get("X: \0"), "HTTP/1.1 400"),
        (
            format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70_000)),
            "HTTP/1.1 431",
        ),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("\0\0\0\0\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("GET /\u{e9} HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 404"),
        (
            "GET /_matrix/client/../../../etc/passwd HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 404",
        ),
        (
            "GET http://elsewhere.example/_matrix/client/versions HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 200",
        ),
        ("OPTIONS * HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 200"),
        (
            "CONNECT localhost:22 HTTP/1.1\r\n\r\n".to_owned(),
            "HTTP/1.1 404",
        ),
        (get("X: fine"), "HTTP/1.1 200"),
    ];
    for (sent, expected) in cases {
        let answer = exchange(&server, sent.as_bytes()).await;
        let start: String = sent.chars().take(100).collect();
        assert_eq!(status(&answer), expected, "{start:?}");
    }
}

#[tokio::test]
async fn bodies_that_break_off_change_nothing() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let before = server.app.head();
    let head = format!(
        "PUT /_matrix/client/v3/rooms/{room}/send/m.room.message/1 HTTP/1.1\r\nAuthorization: Bearer {}\r\n",
        alice.token
    );
    for rest in [
        "Content-Length: 100\r\n\r\n{\"msgtype\":\"m.text\",\"body\":\"hi\"}",
        "Transfer-Encoding: chunked\r\n\r\n20\r\n{\"msgtype\":\"m.text\",\"body\":\"hi\"}\r\n",
        "Transfer-Encoding: chunked\r\n\r\nnonsense\r\n{}\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}",
        "Content-Length: 2\r\nContent-Length: 200\r\n\r\n{}",
    ] {
        let answer = exchange(&server, format!("{head}{rest}").as_bytes()).await;
        assert!(!answer.contains("event_id"), "{rest}: {answer}");
        assert!(
            ["", "HTTP/1.1 400"].contains(&status(&answer)),
            "{rest}: {answer}"
        );
    }
    assert_eq!(server.app.head(), before);
    // What comes after a body of the wrong length is no second request of the same person.
    let smuggled = "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /_matrix/client/versions HTTP/1.1\r\n\r\n";
    let answer = exchange(&server, format!("{head}{smuggled}").as_bytes()).await;
    assert!(!answer.contains("\"versions\""), "{answer}");
}

#[tokio::test]
async fn a_refused_body_does_not_cost_the_connection() {
    let server = TestServer::start().await;
    let body = "x".repeat(5000);
    let refused = "POST /_matrix/client/v3/createRoom HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer wrong\r\nContent-Length: 5000\r\n\r\n";
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("the server accepts");
    stream
        .write_all(refused.as_bytes())
        .await
        .expect("the head is read");
    // Most clients send head and body apart.
    tokio::task::yield_now().await;
    stream
        .write_all(body.as_bytes())
        .await
        .expect("the body is read");
    let next = "GET /_matrix/client/versions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream
        .write_all(next.as_bytes())
        .await
        .expect("the next head is read");
    let mut answer = String::new();
    let read = timeout(TIME_LIMIT, stream.read_to_string(&mut answer)).await;
    read.expect("the server answers in time")
        .expect("the answer is whole");
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.contains("HTTP/1.1 200"),
        "{answer}"
    );
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_a_row() {
    let server = TestServer::start().await;
    let paths = ["/_matrix/client/versions", "/nothing"];
    let sent: String = paths
        .iter()
        .cycle()
        .take(100)
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    let answer = exchange(&server, sent.as_bytes()).await;
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| status(&answer[at..]))
        .collect();
    let expected: Vec<_> = ["HTTP/1.1 200", "HTTP/1.1 404"]
        .into_iter()
        .cycle()
        .take(100)
        .collect();
    assert_eq!(statuses, expected);
}

#[tokio::test]
async fn a_body_may_come_byte_by_byte() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    let body = r#"{"msgtype":"m.text","body":"slowly"}"#;
    let request = format!(
        "PUT /_matrix/client/v3/rooms/{room}/send/m.room.message/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
         Authorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
        alice.token,
        body.len()
    );
    let mut stream = TcpStream::connect(server.address)
        .await
        .expect("the server accepts");
    stream.set_nodelay(true).expect("bytes are not gathered");
    for byte in request.bytes() {
        stream.write_all(&[byte]).await.expect("the server reads");
        // The server runs on the same thread and takes what is there.
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    let read = timeout(TIME_LIMIT, stream.read_to_string(&mut answer)).await;
    read.expect("the server answers in time")
        .expect("the answer is whole");
    assert!(answer.contains("event_id"), "{answer}");
}

/// How long such clients are waited for is for `listen` to test.
#[tokio::test]
async fn clients_that_never_read_keep_nobody_waiting() {
    let server = TestServer::start().await;
    let alice = server.register("alice").await;
    let room = alice.create_room(json!({})).await;
    // More than what the system keeps for both ends of a connection, so that the server cannot send it all.
    let long = "x".repeat(60_000);
    for _ in 0..200 {
        alice.say(&room, &long).await;
    }
    let filter = "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:1000%7D%7D%7D";
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1000");
    let mut deaf = Vec::new();
    for target in [path, format!("/_matrix/client/v3/sync?filter={filter}")]
        .iter()
        .cycle()
        // More first syncs than these are not begun for one user.
        .take(4)
    {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n",
            alice.token
        );
        let mut stream = TcpStream::connect(server.address)
            .await
            .expect("the server accepts");
        stream
            .write_all(request.as_bytes())
            .await
            .expect("the server reads");
        // The answer has begun.
        let mut start = [0; "HTTP/1.1 200".len()];
        let read = timeout(TIME_LIMIT, stream.read_exact(&mut start)).await;
        read.expect("the server answers in time")
            .expect("the answer begins");
        assert_eq!(&start, b"HTTP/1.1 200");
        deaf.push(stream);
    }
    timeout(TIME_LIMIT, alice.say(&room, "hello"))
        .await
        .expect("others are answered in time");
    drop(deaf);
}

#[tokio::test]
async fn a_thousand_idle_connections_are_no_trouble() {
    // Both ends of each connection are in this process.
    rlimit::increase_nofile_limit(4096).expect("the limit of open files can be read");
    let server = TestServer::start().await;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(
            TcpStream::connect(server.address)
                .await
                .expect("the server accepts"),
        );
    }
    let asked = server.request(Method::GET, "/_matrix/client/versions", None, None);
    timeout(TIME_LIMIT, asked)
        .await
        .expect("the server answers in time")
        .ok();
    drop(idle);
}

#[tokio::test]
async fn what_is_left_of_a_body_does_not_cost_the_connection() {
    let server = TestServer::start().await;
    for (first, code) in [
        ("POST /_matrix/client/v3/no/such/thing", "404"),
        ("DELETE /_matrix/client/versions", "405"),
        ("POST /_matrix/media/v3/upload", "401"),
        ("GET /_matrix/client/v3/sync", "401"),
        (
            "PUT /_matrix/client/v3/profile/@a:localhost/displayname",
            "401",
        ),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The body comes after the head, when the answer may be known already.
        let head = format!("{first} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&vec![b' '; 20_000]).await.unwrap();
        let next =
            "GET /_matrix/client/versions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(next.as_bytes()).await.unwrap();
        let mut answers = String::new();
        timeout(TIME_LIMIT, stream.read_to_string(&mut answers))
            .await
            .expect("the server closes in time")
            .unwrap();
        assert!(
            answers.contains(&format!("HTTP/1.1 {code} ")),
            "{first}: {answers}"
        );
        assert!(answers.contains("HTTP/1.1 200 OK"), "{first}: {answers}");
    }
    let large = "POST /_matrix/client/v3/no/such HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n";
    let answer = exchange(&server, large.as_bytes()).await;
    assert_eq!(status(&answer), "HTTP/1.1 404");
    assert!(
        answer.to_ascii_lowercase().contains("connection: close"),
        "{answer}"
    );
}
