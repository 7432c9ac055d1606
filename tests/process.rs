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
    assert!(text(&made.stdout).contains("@alice:localhost"));
    let again = create_user(&folder, &["alice"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        text(&again.stderr).contains("taken"),
        "{}",
        text(&again.stderr)
    );
    let wrong = create_user(&folder, &["a b"]);
    assert_eq!(wrong.status.code(), Some(1));

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
    assert!(create_user(&folder, &["alice"]).status.success());
    assert_eq!(token(&mut Server::start(&mut homing(&folder))), None);
}
