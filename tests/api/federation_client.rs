//! How other servers are found and asked, and what they cannot do to the one who asks.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::response::{IntoResponse as _, Redirect, Response};
use homing_federation::{
    SigningKey,
    address_policy::AddressPolicy,
    client::{Client, Error, Limits, Names, Settings},
    name::ServiceRecord,
    request::{Authorization, Target},
};
use reqwest::{Method, StatusCode, header};
use ruma::{
    OwnedServerName, ServerName,
    api::federation::{
        discovery::get_server_version::v1 as version, query::get_profile_information::v1 as profile,
    },
    owned_server_name, server_name, user_id,
};
use serde_json::json;

use crate::{
    fake_server::{FakeServer, Recorded, endless},
    server::TestServer,
    tls,
};

/// What a web server answers.
type Page = Box<dyn Fn(&Recorded) -> Response + Send + Sync>;

const VERSION: &str = "/_matrix/federation/v1/version";
const WELL_KNOWN: &str = "/.well-known/matrix/server";

/// Settings for a client that may reach this machine.
fn settings() -> Settings {
    Settings {
        enabled: true,
        server_name: owned_server_name!("own.example"),
        key: Arc::new(SigningKey::generate(&mut rand::rng())),
        policy: AddressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]),
        names: Names::System,
        authorities: tls::authorities(),
        user_agent: header::HeaderValue::from_static("test"),
    }
}

/// Names at which these addresses are.
fn names(given: &[(&str, u16, &str)]) -> Names {
    let mut addresses: HashMap<_, Vec<SocketAddr>> = HashMap::new();
    for (host, port, address) in given {
        let key = ((*host).to_owned(), *port);
        let found = addresses.entry(key).or_default();
        found.push(address.parse().unwrap());
    }
    Names::Given {
        addresses,
        services: HashMap::new(),
    }
}

/// The address of a fake server.
fn address(fake: &FakeServer) -> String {
    format!("127.0.0.1:{}", fake.name.port().unwrap())
}

/// Asks a server for its version; answers the name of its software.
async fn ask(client: &Client, server: &ServerName) -> Result<String, Error> {
    let limits = Limits::default().time(Duration::from_secs(20));
    let request = version::Request::new();
    let answer = client.send_unsigned(limits, server, request).await?;
    let name = answer.server.and_then(|server| server.name);
    Ok(name.unwrap_or_default())
}

/// A fake server that says its version.
async fn fake(software: &str) -> FakeServer {
    let fake = FakeServer::start().await;
    let json = json!({ "server": { "name": software, "version": "1" } });
    fake.answers(Method::GET, VERSION, json);
    fake
}

fn host(request: &Recorded) -> &str {
    request.headers["host"].to_str().unwrap()
}

#[tokio::test]
async fn requests_are_signed_for_their_destination() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let path = "/_matrix/federation/v1/query/profile";
    fake.answers(Method::GET, path, json!({ "displayname": "Somebody" }));
    let request = profile::Request::new(user_id!("@a:b.example").to_owned());
    let client = &server.app.federation;
    let answer = client.send(&fake.name, request).await.unwrap();
    assert_eq!(answer.get("displayname").unwrap(), &json!("Somebody"));

    let came = fake.recorded().remove(0);
    assert_eq!(host(&came), fake.name.as_str());
    let said = came.headers["authorization"].to_str().unwrap();
    let said = Authorization::parse(said).unwrap();
    assert_eq!(said.origin, server.name());
    assert_eq!(said.destination.as_deref(), Some(&*fake.name));
    let target = Target {
        method: &came.method,
        uri: &came.path,
        origin: server.name(),
        destination: &fake.name,
    };
    let key = server.app.signing_key.verify_key();
    assert!(target.is_signed_by(&came.raw, &key, &said.signature));
}

#[tokio::test]
async fn errors_of_other_servers_are_kept() {
    let (server, fake) = tokio::join!(TestServer::federated(), FakeServer::start());
    let client = &server.app.federation;
    fake.refuses(Method::GET, VERSION, 403, "M_FORBIDDEN");
    let error = ask(client, &fake.name).await.unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(refusal.status, StatusCode::FORBIDDEN);
    assert_eq!(refusal.kind().unwrap().errcode().as_str(), "M_FORBIDDEN");
    assert_eq!(
        refusal.error.as_ref().unwrap().message,
        "said by the fake server"
    );

    fake.on(Method::GET, VERSION, |_| {
        (StatusCode::BAD_GATEWAY, "<html>").into_response()
    });
    let error = ask(client, &fake.name).await.unwrap_err();
    let refusal = error.refusal().expect("a refusal");
    assert_eq!(
        (refusal.status, refusal.kind()),
        (StatusCode::BAD_GATEWAY, None)
    );
    assert_eq!(&refusal.body[..], b"<html>");

    fake.on(Method::GET, VERSION, |_| "nothing".into_response());
    let error = ask(client, &fake.name).await.unwrap_err();
    assert!(matches!(error, Error::Nonsense(_)), "{error:?}");

    let error = ask(client, server.name()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    let nobody: OwnedServerName = format!("localhost:{}", tls::free_port())
        .try_into()
        .unwrap();
    let error = ask(client, &nobody).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn a_server_without_federation_asks_nobody() {
    let (server, fake) = tokio::join!(
        TestServer::federated_with(|config| config.federation.enabled = false),
        fake("it"),
    );
    let error = ask(&server.app.federation, &fake.name).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    assert!(fake.recorded().is_empty());
}

#[tokio::test]
async fn private_addresses_are_not_connected_to() {
    let fake = fake("it").await;
    let port = fake.name.port().unwrap();
    let mut guarded = settings();
    guarded.policy = AddressPolicy::default();
    let client = Client::new(guarded).unwrap();
    let literals = [
        "127.0.0.1",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "localhost",
        "169.254.169.254",
    ];
    for literal in literals {
        let name: OwnedServerName = format!("{literal}:{port}").try_into().unwrap();
        let error = ask(&client, &name).await.unwrap_err();
        assert!(matches!(error, Error::Blocked(_)), "{literal}: {error:?}");
    }
    // What the DNS answers is looked at, not only what stands in a name.
    let mut guarded = settings();
    guarded.policy = AddressPolicy::default();
    guarded.names = names(&[
        ("a.example", 1, &address(&fake)),
        ("b.example", 1, "10.0.0.1:1"),
        ("b.example", 1, "[::ffff:10.0.0.1]:1"),
    ]);
    let client = Client::new(guarded).unwrap();
    for name in [server_name!("a.example:1"), server_name!("b.example:1")] {
        let error = ask(&client, name).await.unwrap_err();
        assert!(matches!(error, Error::Blocked(_)), "{name}: {error:?}");
    }
    assert!(fake.recorded().is_empty());
}

#[tokio::test]
async fn certificates_are_for_the_name_that_was_asked() {
    let fake = fake("it").await;
    let mut known = settings();
    known.names = names(&[
        ("a.example", 1, &address(&fake)),
        ("z.example", 1, &address(&fake)),
    ]);
    let client = Client::new(known).unwrap();
    assert_eq!(
        ask(&client, server_name!("a.example:1")).await.unwrap(),
        "it"
    );
    let error = ask(&client, server_name!("z.example:1")).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    let literal: OwnedServerName = address(&fake).try_into().unwrap();
    assert_eq!(ask(&client, &literal).await.unwrap(), "it");

    let mut stranger = settings();
    stranger.authorities = Vec::new();
    let client = Client::new(stranger).unwrap();
    let error = ask(&client, &fake.name).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn delegations_are_followed() {
    let (web, target) = tokio::join!(fake("the web server"), fake("the target"));
    let mut known = settings();
    known.names = names(&[
        ("a.example", 443, &address(&web)),
        ("b.example", 8448, &address(&target)),
        ("b.example", 443, "10.0.0.1:443"),
    ]);
    web.answers(Method::GET, WELL_KNOWN, json!({ "m.server": "b.example" }));
    let client = Client::new(known).unwrap();
    let name = server_name!("a.example");
    let all = futures_util::future::join_all((0..5).map(|_| ask(&client, name))).await;
    assert!(
        all.iter()
            .all(|it| it.as_deref().ok() == Some("the target")),
        "{all:?}"
    );
    assert_eq!(host(&target.recorded()[0]), "b.example");
    // It was asked once, and not for the name that it delegated to.
    assert_eq!(web.recorded().len(), 1);
}

#[tokio::test]
async fn service_records_say_where_but_not_who() {
    let (first, second) = tokio::join!(fake("first"), fake("second"));
    let mut known = settings();
    let record = |priority, host: &str| ServiceRecord {
        priority,
        weight: 0,
        host: host.to_owned(),
        port: 7,
    };
    let gone = format!("127.0.0.1:{}", tls::free_port());
    let Names::Given { addresses, .. } = names(&[
        ("gone.example", 7, &gone),
        ("z.example", 7, &address(&first)),
        ("a.example", 8448, &address(&second)),
    ]) else {
        unreachable!()
    };
    let records = vec![record(2, "z.example"), record(1, "gone.example")];
    known.names = Names::Given {
        addresses: addresses.clone(),
        services: HashMap::from([("a.example".to_owned(), records)]),
    };
    let client = Client::new(known).unwrap();
    let name = server_name!("a.example");
    assert_eq!(ask(&client, name).await.unwrap(), "first");
    assert_eq!(host(&first.recorded()[0]), "a.example");

    let mut known = settings();
    known.names = Names::Given {
        addresses,
        services: HashMap::new(),
    };
    let client = Client::new(known).unwrap();
    assert_eq!(ask(&client, name).await.unwrap(), "second");
}

#[tokio::test]
async fn service_records_lead_to_no_private_address() {
    let fake = fake("it").await;
    let port = fake.name.port().unwrap();
    let record = |priority, host: &str, port| ServiceRecord {
        priority,
        weight: 0,
        host: host.to_owned(),
        port,
    };
    let policy = AddressPolicy::new(vec!["127.0.0.1/32".parse().unwrap()]);
    // What may not be reached is passed over, and what may be reached beside it is not.
    for (policy, is_reached) in [(AddressPolicy::default(), false), (policy, true)] {
        let addresses = [
            ("z.example", 7, &*address(&fake)),
            ("b.example", 7, "10.0.0.1:7"),
            ("b.example", 7, "[::ffff:10.0.0.1]:7"),
        ];
        let Names::Given { addresses, .. } = names(&addresses) else {
            unreachable!()
        };
        let near = [
            record(1, "b.example", 7),
            record(2, "169.254.169.254", 80),
            record(3, "z.example", 7),
            record(4, "127.0.0.1", port),
            record(5, "::ffff:127.0.0.1", port),
        ];
        let services = near.iter().map(|one| vec![one.clone()]);
        let services = services.chain([near.to_vec()]);
        for (number, services) in services.enumerate() {
            let mut guarded = settings();
            guarded.policy = policy.clone();
            guarded.names = Names::Given {
                addresses: addresses.clone(),
                services: HashMap::from([("a.example".to_owned(), services)]),
            };
            let client = Client::new(guarded).unwrap();
            let answer = ask(&client, server_name!("a.example")).await;
            if is_reached && number > 1 {
                assert_eq!(answer.ok().as_deref(), Some("it"), "{number}");
            } else {
                assert!(
                    matches!(answer, Err(Error::Blocked(_))),
                    "{number} {answer:?}"
                );
            }
        }
        assert_eq!(fake.recorded().is_empty(), !is_reached);
    }
}

#[tokio::test]
async fn hostile_delegations_lead_nowhere() {
    let big = format!(
        "{{\"m.server\":\"b.example:1\",\"x\":\"{}\"}}",
        "x".repeat(300 << 10)
    );
    let delegates = |to: &'static str| -> Page {
        Box::new(move |_| axum::Json(json!({ "m.server": to })).into_response())
    };
    let redirects =
        |to: &'static str| -> Page { Box::new(move |_| Redirect::temporary(to).into_response()) };
    // The web server itself has to be reached to be hostile, but nothing beside it.
    let policy = AddressPolicy::new(vec!["127.0.0.1/32".parse().unwrap()]);
    for to in [
        "127.0.0.2:1",
        "10.0.0.1",
        "[::ffff:10.0.0.1]:1",
        "169.254.169.254",
        "c.example:1",
        "c.example",
    ] {
        let web = fake("web").await;
        let mut guarded = settings();
        guarded.policy = policy.clone();
        guarded.names = names(&[
            ("a.example", 443, &address(&web)),
            ("c.example", 1, "192.168.0.1:1"),
            ("c.example", 8448, "[fd00::1]:8448"),
        ]);
        web.answers(Method::GET, WELL_KNOWN, json!({ "m.server": to }));
        let client = Client::new(guarded).unwrap();
        let answer = ask(&client, server_name!("a.example")).await;
        assert_eq!(web.recorded().len(), 1);
        assert!(matches!(answer, Err(Error::Blocked(_))), "{to}: {answer:?}");
    }
    // What makes no sense is no delegation; the name itself is asked. The last of these makes sense.
    let pages: Vec<Page> = vec![
        Box::new(move |_| big.clone().into_response()),
        Box::new(|_| endless(&[b' '; 10_000], Duration::ZERO)),
        Box::new(|_| "[]".into_response()),
        Box::new(|_| (StatusCode::NOT_FOUND, "{\"m.server\":\"b.example:1\"}").into_response()),
        delegates("not a name"),
        redirects("https://169.254.169.254/latest"),
        redirects("https://[::ffff:10.0.0.1]/"),
        redirects("https://c.example/"),
        redirects("http://a.example/moved"),
        redirects("http://a.example:443/moved"),
        redirects("https://a.example/.well-known/matrix/server"),
        redirects("https://a.example/moved"),
    ];
    let last = pages.len() - 1;
    for (number, page) in pages.into_iter().enumerate() {
        let (web, itself, other) = tokio::join!(fake("web"), fake("itself"), fake("other"));
        let mut guarded = settings();
        guarded.names = names(&[
            ("a.example", 443, &address(&web)),
            ("a.example", 8448, &address(&itself)),
            ("b.example", 1, &address(&other)),
            ("c.example", 443, "10.0.0.1:443"),
        ]);
        web.on(Method::GET, WELL_KNOWN, page);
        web.answers(Method::GET, "/moved", json!({ "m.server": "b.example:1" }));
        let client = Client::new(guarded).unwrap();
        let answer = ask(&client, server_name!("a.example")).await;
        if number == last {
            assert_eq!(answer.ok().as_deref(), Some("other"));
            break;
        }
        assert_eq!(answer.ok().as_deref(), Some("itself"), "page {number}");
        assert!(other.recorded().is_empty(), "page {number}");
        assert!(web.recorded().len() < 10, "page {number}");
    }
}

#[tokio::test]
async fn answers_have_to_end() {
    let fake = FakeServer::start().await;
    let client = Client::new(settings()).unwrap();
    let ask = async |limits| {
        let request = version::Request::new();
        client.send_unsigned(limits, &fake.name, request).await
    };
    let limits = Limits::default()
        .time(Duration::from_secs(1))
        .bytes(1 << 20);
    fake.on(Method::GET, VERSION, |_| {
        endless(b"x", Duration::from_millis(50))
    });
    let slow = ask(limits).await;
    assert!(matches!(slow, Err(Error::TimedOut)), "{slow:?}");
    fake.on(Method::GET, VERSION, |_| {
        endless(&[b' '; 10_000], Duration::ZERO)
    });
    let endless = ask(limits.time(Duration::from_secs(20))).await;
    assert!(matches!(endless, Err(Error::TooLarge(_))), "{endless:?}");
    fake.on(Method::GET, VERSION, |_| {
        crate::fake_server::endless(b"", Duration::from_mins(1))
    });
    let silent = ask(limits).await;
    assert!(matches!(silent, Err(Error::TimedOut)), "{silent:?}");
}

#[tokio::test]
async fn connections_are_used_again() {
    let fake = fake("it").await;
    let target = address(&fake);
    let between = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut known = settings();
    let place = between.local_addr().unwrap().to_string();
    known.names = names(&[("a.example", 1, &place)]);
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = between.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let mut far = tokio::net::TcpStream::connect(&target).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let client = Client::new(known).unwrap();
    for _ in 0..10 {
        ask(&client, server_name!("a.example:1")).await.unwrap();
    }
    assert_eq!(accepted.load(Ordering::Relaxed), 1);
}
