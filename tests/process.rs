//! The program as a process: its commands, its signals, its exit codes.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

fn homing(folder: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_homing"));
    let inherited = env::vars_os().map(|(name, _)| name);
    for name in inherited.filter(|name| name.to_string_lossy().starts_with("HOMING_")) {
        command.env_remove(name);
    }
    command.current_dir(folder);
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    command
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn text(output: &[u8]) -> &str {
    std::str::from_utf8(output).unwrap()
}

/// A running server, which is killed when the test ends early.
struct Server {
    process: Child,
    address: SocketAddr,
    output: BufReader<std::process::ChildStdout>,
}

impl Server {
    /// Starts `command` as a server on a free port, and reads from its first
    /// line which one that is.
    fn start(command: &mut Command) -> Self {
        let mut process = command
            .env("HOMING_LISTENERS__0__BIND", "127.0.0.1:0")
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let (_, address) = line.trim().trim_end_matches('.').rsplit_once('/').unwrap();
        Self {
            address: address.parse().unwrap(),
            process,
            output,
        }
    }

    fn get(&self, path: &str) -> String {
        self.send("GET", path, "")
    }

    fn send(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Sends a request with a JSON body; answers the JSON of the answer.
    fn exchange(&self, head: &str, body: &serde_json::Value) -> serde_json::Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, json) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(json).unwrap()
    }

    fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the end of the process: its exit code, and its log.
    fn end(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            thread::sleep(Duration::from_millis(5));
        };
        let mut log = String::new();
        if let Some(mut errors) = self.process.stderr.take() {
            errors.read_to_string(&mut log).unwrap();
        }
        (status.code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn signals_end_the_server_in_good_order() {
    for signal in ["-TERM", "-INT"] {
        let folder = folder();
        let mut server = Server::start(&mut homing(&folder));
        assert!(server.get("/health").starts_with("HTTP/1.0 200"));
        let idle = TcpStream::connect(server.address).unwrap();
        server.signal(signal);
        let (code, log) = server.end();
        assert_eq!(code, Some(0), "{signal}: {log}");
        assert!(log.contains("stopped"), "{signal}: {log}");
        assert!(TcpStream::connect(server.address).is_err());
        drop(idle);
    }
}

#[test]
fn start_without_settings_says_where_it_listens() {
    let folder = folder();
    let mut server = Server::start(&mut homing(&folder));
    server.signal("-TERM");
    server.end();
    let mut rest = String::new();
    server.output.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains(&format!("http://{}", server.address)),
        "{rest}"
    );
}

#[test]
fn metrics_have_a_listener_of_their_own() {
    // A port that was free a moment ago is the best that can be had here.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = free.local_addr().unwrap();
    drop(free);
    let folder = folder();
    let mut command = homing(&folder);
    command.env("HOMING_METRICS__BIND", bind.to_string());
    let mut server = Server::start(&mut command);
    server.get("/health");
    assert!(server.get("/metrics").starts_with("HTTP/1.0 404"));

    let public = std::mem::replace(&mut server.address, bind);
    let measured = server.get("/metrics");
    assert!(
        measured.contains(r#"path="/health",status="200"} 1"#),
        "{measured}"
    );
    server.address = public;
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn nobody_needs_to_read_what_it_says() {
    let folder = folder();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut process = homing(&folder)
        .env("HOMING_LISTENERS__0__BIND", "127.0.0.1:0")
        .stdout(full.unwrap())
        .spawn()
        .unwrap();
    let log = BufReader::new(process.stderr.take().unwrap());
    let mut lines = log.lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("serving")));
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn processes_that_start_at_once_have_one_key() {
    let folder = folder();
    let mut made: Vec<_> = (0..6)
        .map(|number| {
            let mut command = homing(&folder);
            let name = format!("user{number}");
            command.args(["create-user", &name]).stdin(Stdio::piped());
            let mut process = command.spawn().unwrap();
            process
                .stdin
                .take()
                .unwrap()
                .write_all(b"correct horse\n")
                .unwrap();
            process
        })
        .collect();
    for process in made.drain(..) {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let files = std::fs::read_dir(folder.path().join("homing-data")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let keys: Vec<_> = names.filter(|name| name.contains("key")).collect();
    assert_eq!(keys, ["signing.key"]);
}

#[test]
#[cfg(unix)]
fn what_is_kept_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    let mut server = Server::start(&mut homing(&folder));
    server.signal("-TERM");
    server.end();
    let data = folder.path().join("homing-data");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&data) & 0o777, 0o700);
    assert_eq!(mode(&data.join("signing.key")) & 0o777, 0o600);
}

#[test]
fn the_log_tells_what_operators_ask_for() {
    let folder = folder();
    let mut command = homing(&folder);
    command.env("HOMING_LOGGING__FILTER", "info,homing::operations=debug");
    command.env("HOMING_REGISTRATION__MODE", "open");
    let mut server = Server::start(&mut command);
    let register = r#"{"username":"alice","password":"p","auth":{"type":"m.login.dummy"}}"#;
    server.send("POST", "/_matrix/client/v3/register", register);
    let login = r#"{"type":"m.login.password","user":"alice","password":"wrong"}"#;
    server.send("POST", "/_matrix/client/v3/login", login);
    server.signal("-TERM");
    let (_, log) = server.end();
    let address = format!("http://{}", server.address);
    for parts in [
        ["serving", "localhost", &address],
        ["an account was made", "@alice:localhost", ""],
        ["a login failed", "127.0.0.1", "M_FORBIDDEN"],
        ["answered", "/_matrix/client/v3/login", "status=403"],
    ] {
        let told = |line: &str| parts.iter().all(|part| line.contains(part));
        assert!(log.lines().any(told), "{parts:?} is not in\n{log}");
    }
}

#[test]
fn a_database_that_cannot_write_is_not_healthy() {
    let folder = folder();
    let mut command = homing(&folder);
    command.env("HOMING_REGISTRATION__MODE", "open");
    let mut server = Server::start(&mut command);
    let url = format!("sqlite:{}/homing-data/homing.db", folder.path().display());
    let execute = |sql: &'static str| {
        use sqlx::{Connection as _, Executor as _};
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
            connection.execute(sql).await.unwrap();
            connection.close().await.unwrap();
        });
    };
    let register = |name: &str| {
        let auth = json!({ "type": "m.login.dummy" });
        let body = json!({ "username": name, "password": "p", "auth": auth }).to_string();
        server.send("POST", "/_matrix/client/v3/register", &body)
    };
    execute(
        "CREATE TRIGGER full BEFORE INSERT ON account BEGIN SELECT RAISE(ABORT, 'disk full'); END",
    );
    assert!(register("alice").starts_with("HTTP/1.0 500"));
    assert!(server.get("/health").starts_with("HTTP/1.0 503"));
    execute("DROP TRIGGER full");
    assert!(register("alice").starts_with("HTTP/1.0 200"));
    assert!(server.get("/health").starts_with("HTTP/1.0 200"));
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn log_can_be_json() {
    let folder = folder();
    let mut command = homing(&folder);
    command.arg("serve").env("HOMING_LOGGING__FORMAT", "json");
    let mut server = Server::start(&mut command);
    server.signal("-TERM");
    let (_, log) = server.end();
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["message"].is_string(), "{line}");
    }
    assert!(log.contains("stopped"), "{log}");

    let mut command = homing(&folder);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    command.env("HOMING_LOGGING__FORMAT", "json");
    command.env(
        "HOMING_LISTENERS__0__BIND",
        taken.local_addr().unwrap().to_string(),
    );
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(line["error"].as_str().unwrap().contains("in use"), "{line}");
}

#[test]
fn secrets_stay_out_of_the_log() {
    let folder = folder();
    let log = folder.path().join("log");
    let mut command = homing(&folder);
    command.stderr(std::fs::File::create(&log).unwrap());
    command.env("HOMING_LOGGING__FILTER", "trace");
    command.env("HOMING_REGISTRATION__MODE", "open");
    let mut server = Server::start(&mut command);
    let post = |path: &str| format!("POST /_matrix/client/v3{path} HTTP/1.0");
    let (password, wrong) = ("horse-battery-staple", "another-password");
    let registered = server.exchange(
        &post("/register"),
        &json!({ "username": "alice", "password": password, "refresh_token": true, "auth": { "type": "m.login.dummy" } }),
    );
    let secret = |answer: &serde_json::Value, key: &str| answer[key].as_str().unwrap().to_owned();
    let (token, refresh) = (
        secret(&registered, "access_token"),
        secret(&registered, "refresh_token"),
    );
    for password in [password, wrong] {
        let user = json!({ "type": "m.id.user", "user": "alice" });
        let login = json!({ "type": "m.login.password", "identifier": user, "password": password });
        server.exchange(&post("/login"), &login);
    }
    let whoami = server.get(&format!(
        "/_matrix/client/v3/account/whoami?access_token={token}"
    ));
    assert!(whoami.contains("@alice:localhost"), "{whoami}");
    let authorized = format!("{}\r\nAuthorization: Bearer {token}", post("/createRoom"));
    let topic = "what nobody else should read";
    assert!(server.exchange(&authorized, &json!({ "topic": topic }))["room_id"].is_string());
    // A body that cannot be read is not quoted in the log either.
    server.exchange(
        &post("/login"),
        &json!({ "type": "m.login.password", "password": [wrong] }),
    );
    let refreshed = server.exchange(&post("/refresh"), &json!({ "refresh_token": refresh }));
    let renewed = secret(&refreshed, "access_token");
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));

    let log = std::fs::read_to_string(log).unwrap();
    assert!(
        log.contains("TRACE") || log.contains("DEBUG"),
        "the log says little:\n{log}"
    );
    let key = std::fs::read_to_string(folder.path().join("homing-data/signing.key")).unwrap();
    let key = key.split_whitespace().nth(2).unwrap();
    for secret in [
        password,
        wrong,
        &token,
        &refresh,
        &renewed,
        topic,
        key,
        "access_token=",
    ] {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

#[test]
fn generated_configuration_can_be_used() {
    let folder = folder();
    let generated = run(homing(&folder).arg("generate-config"));
    assert!(generated.status.success());
    std::fs::write(folder.path().join("homing.toml"), generated.stdout).unwrap();
    let checked = run(homing(&folder).args(["check-config", "--config", "homing.toml"]));
    assert!(checked.status.success(), "{}", text(&checked.stderr));
}

#[test]
fn bad_settings_stop_every_command_that_needs_them() {
    let folder = folder();
    std::fs::write(folder.path().join("bad.toml"), "sever_name = \"x\"\n").unwrap();
    for command in ["serve", "check-config"] {
        let output = run(homing(&folder).args(["--config", "bad.toml", command]));
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(
            error.contains("bad.toml") && error.contains("sever_name"),
            "{error}"
        );

        let output = run(homing(&folder).arg(command).env("HOMING_MEDIA__X", "1"));
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("HOMING_MEDIA__X"));
    }

    let output = run(homing(&folder)
        .arg("check-config")
        .env("HOMING_DATABASE__URL", "postgres://u:hush@h:port/d"));
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains("`database.url`") && !error.contains("hush"),
        "{error}"
    );

    std::fs::write(folder.path().join("ca.pem"), "nothing").unwrap();
    for file in ["ca.pem", "missing.pem"] {
        let output = run(homing(&folder)
            .arg("check-config")
            .env("HOMING_FEDERATION__CA_FILE", file));
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(
            error.contains("federation.ca_file") && error.contains(file),
            "{error}"
        );
    }

    let tls = "[[listeners]]\ntls = true\ncert = \"none.pem\"\nkey = \"none.pem\"\n";
    std::fs::write(folder.path().join("tls.toml"), tls).unwrap();
    let output = run(homing(&folder)
        .arg("check-config")
        .env("HOMING_CONFIG", "tls.toml"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none.pem"));
}

#[test]
fn account_needs_a_password() {
    let folder = folder();
    let output = run(homing(&folder).args(["create-user", "alice"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("password"));
}

#[test]
fn a_database_that_cannot_be_used_is_named() {
    let folder = folder();
    std::fs::write(folder.path().join("broken.db"), "nonsense".repeat(1000)).unwrap();
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    for (url, place, cause) in [
        (
            "sqlite:broken.db".to_owned(),
            "sqlite:broken.db",
            "not a database",
        ),
        (
            format!("postgres://u:hush@{address}/d"),
            &format!("postgres://{address}/d"),
            "refused",
        ),
    ] {
        let started = Instant::now();
        let output = run(homing(&folder)
            .arg("serve")
            .env("HOMING_LISTENERS__0__BIND", "127.0.0.1:0")
            .env("HOMING_DATABASE__URL", url));
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        for part in [place, cause] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(!error.contains("hush"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(15));
    }
}

#[test]
fn a_database_belongs_to_one_server_name() {
    let folder = folder();
    assert!(create_user(&folder, &["alice"]).status.success());
    for arguments in [&["serve"][..], &["create-user", "bob"]] {
        let output = run(homing(&folder)
            .args(arguments)
            .env("HOMING_LISTENERS__0__BIND", "127.0.0.1:0")
            .env("HOMING_SERVER_NAME", "example.com"));
        assert_eq!(output.status.code(), Some(1));
        let error = text(&output.stderr);
        assert!(
            error.contains("@alice:localhost") && error.contains("example.com"),
            "{error}"
        );
    }
}

/// Runs `homing create-user` with a password on its standard input.
fn create_user(folder: &tempfile::TempDir, arguments: &[&str]) -> Output {
    let mut command = homing(folder);
    command.arg("create-user").args(arguments);
    let mut process = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = process.stdin.take().unwrap();
    input.write_all(b"correct horse\n").unwrap();
    drop(input);
    process.wait_with_output().unwrap()
}

#[test]
fn accounts_are_made_beside_a_running_server() {
    let folder = folder();
    let mut server = Server::start(&mut homing(&folder));
    let made = create_user(&folder, &["Alice", "--admin"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let told = text(&made.stdout);
    for part in ["@alice:localhost", "homing-data/homing.db"] {
        assert!(told.contains(part), "{told}");
    }
    let again = create_user(&folder, &["alice"]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(text(&again.stderr), "homing: this name is taken\n");
    // Nobody is asked for the password of a name that cannot be used.
    let wrong = run(homing(&folder).args(["create-user", "a b"]));
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong.stderr).contains("characters"));
    let whole = create_user(&folder, &["@carl:localhost"]);
    assert!(text(&whole.stdout).contains("@carl:localhost"));

    let body = r#"{"type":"m.login.password","user":"alice","password":"correct horse"}"#;
    let answer = server.send("POST", "/_matrix/client/v3/login", body);
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

#[test]
fn first_start_prints_the_token_of_the_first_account() {
    let folder = folder();
    let token = |server: &mut Server| {
        server.signal("-TERM");
        server.end();
        let mut rest = String::new();
        server.output.read_to_string(&mut rest).unwrap();
        let mut lines = rest.lines().map(str::trim);
        lines
            .find(|line| line.starts_with("homing_first_"))
            .map(str::to_owned)
    };
    let first = token(&mut Server::start(&mut homing(&folder)));
    assert!(first.is_some());
    assert_eq!(token(&mut Server::start(&mut homing(&folder))), first);
    assert!(create_user(&folder, &["alice", "--admin"]).status.success());
    assert_eq!(token(&mut Server::start(&mut homing(&folder))), None);
}
