//! The rules of the house, as tests. `ARCHITECTURE.md` says why.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The floors, lowest first. A module may use those of its own floor and of the floors below.
const FLOORS: &[&[&str]] = &[
    &["config", "clock", "telemetry"],
    &["storage"],
    &[
        "accounts",
        "app",
        "application_services",
        "auth",
        "bus",
        "error",
        "federation",
        "device_lists",
        "early_receipts",
        "files",
        "filter",
        "flights",
        "http",
        "key_backup",
        "keys",
        "lazy_members",
        "listen",
        "log",
        "names",
        "outgoing",
        "password",
        "preferences",
        "presence",
        "pushes",
        "to_device",
        "rate_limit",
        "remote",
        "rooms",
        "server_keys",
        "sessions",
        "staging",
        "token",
        "turns",
        "typing",
        "uiaa",
        "web",
    ],
    &["media", "room"],
    &["sync"],
    &["admin", "client_server", "outbound", "server_server"],
    &[
        "announcement",
        "lib",
        "main",
        "operations",
        "server",
        "upkeep",
    ],
];

/// Floors whose modules do not use each other.
const STRANGERS: &[&str] = &["admin", "client_server", "outbound", "server_server"];

/// Where axum may be named.
const EDGES: &[&str] = &[
    "admin",
    "client_server",
    "http",
    "listen",
    "main",
    "operations",
    "server",
    "server_server",
];

/// The longest file, in lines.
const MAX_LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != "node_modules" {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// The code of a file, without comments.
fn code(path: &Path) -> String {
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text(path)
        .lines()
        .filter(is_code)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The first part of a source file's path below `src`: its module.
fn module(path: &Path) -> String {
    let below = path.strip_prefix(root().join("src")).unwrap();
    let first = below
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[track_caller]
fn none(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn sql_is_in_storage_alone() {
    let broken: Vec<_> = files("src", ".rs")
        .into_iter()
        .filter(|path| module(path) != "storage" && code(path).contains("sqlx"))
        .map(|path| format!("{} names sqlx", path.display()))
        .collect();
    none(&broken);
}

#[test]
fn axum_is_at_the_edges_alone() {
    let broken: Vec<_> = files("src", ".rs")
        .into_iter()
        .filter(|path| !EDGES.contains(&&*module(path)) && code(path).contains("axum"))
        .map(|path| format!("{} names axum", path.display()))
        .collect();
    none(&broken);
}

#[test]
fn the_protocol_knows_neither_database_nor_http_server_and_only_its_client_a_runtime() {
    let mut broken = Vec::new();
    for path in files("federation", ".rs") {
        let is_client = path.starts_with(root().join("federation/src/client"))
            || path.ends_with("federation/src/client.rs");
        for stranger in ["sqlx", "axum", "tokio::"] {
            if is_client && stranger == "tokio::" {
                continue;
            }
            if code(&path).contains(stranger) {
                broken.push(format!("{} names {stranger}", path.display()));
            }
        }
    }
    none(&broken);
}

#[test]
fn imports_go_down() {
    let mut broken = Vec::new();
    for path in files("src", ".rs") {
        let from = module(&path);
        let Some(floor_from) = floor(&from) else {
            broken.push(format!(
                "{} is on no floor: name it in tests/tidy.rs",
                path.display()
            ));
            continue;
        };
        for to in imports(&code(&path)) {
            match floor(&to) {
                Some(floor_to) if floor_to > floor_from => {
                    broken.push(format!("{} looks up to {to}", path.display()));
                }
                Some(_)
                    if to != from && STRANGERS.contains(&&*to) && STRANGERS.contains(&&*from) =>
                {
                    broken.push(format!("{} looks at its neighbour {to}", path.display()));
                }
                _ => {}
            }
        }
    }
    none(&broken);
}

/// The modules that code names behind `crate::`, alone or in braces.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut name = String::new();
            for letter in list.chars() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut name)),
                    _ if depth > 0 => {}
                    letter => name.push(letter),
                }
            }
            found.push(name);
        } else {
            found.push(rest.to_owned());
        }
    }
    let is_name = |letter: &char| letter.is_alphanumeric() || *letter == '_';
    found
        .iter()
        .map(|path| path.trim_start().chars().take_while(is_name).collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

#[test]
fn imports_are_seen() {
    let code = "use crate::{\n    app::App, room,\n    http::{a, b}, typing,\n};\ncrate::bus::x(crate::log)";
    let expected = ["app", "room", "http", "typing", "bus", "log"];
    assert_eq!(imports(code), expected);
}

#[test]
fn migrations_are_twins() {
    let names = |folder: &str| -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        files(folder, ".sql").iter().map(name).collect()
    };
    assert_eq!(names("migrations/sqlite"), names("migrations/postgres"));
    for name in names("migrations/sqlite") {
        let sqlite = text(&root().join("migrations/sqlite").join(&name));
        let postgres = text(&root().join("migrations/postgres").join(&name));
        if sqlite.contains("-- differs on PostgreSQL") {
            continue;
        }
        let expected = sqlite
            .replace("INTEGER PRIMARY KEY", "BIGINT PRIMARY KEY")
            .replace(" BLOB", " BYTEA")
            .replace(") WITHOUT ROWID;", ");");
        assert_eq!(
            postgres, expected,
            "{name} is not the twin of the one for SQLite"
        );
    }
}

#[test]
fn files_are_short_and_named_for_what_they_hold() {
    let mut broken = Vec::new();
    for path in ["src", "federation", "tests"]
        .into_iter()
        .flat_map(|folder| files(folder, ".rs"))
    {
        let lines = text(&path).lines().count();
        if lines > MAX_LINES {
            broken.push(format!("{} has {lines} lines", path.display()));
        }
        let name = path.file_stem().unwrap().to_string_lossy().to_lowercase();
        for vague in ["util", "helper", "common", "misc", "manager"] {
            if name.contains(vague) {
                broken.push(format!("{} has a vague name", path.display()));
            }
        }
    }
    none(&broken);
}

#[test]
fn types_are_named_for_what_they_are() {
    let mut broken = Vec::new();
    for path in ["src", "federation"]
        .into_iter()
        .flat_map(|folder| files(folder, ".rs"))
    {
        for line in code(&path).lines() {
            let Some((_, rest)) = line
                .split_once("struct ")
                .or_else(|| line.split_once("enum "))
            else {
                continue;
            };
            let name: String = rest
                .chars()
                .take_while(|letter| letter.is_alphanumeric())
                .collect();
            for vague in ["Util", "Helper", "Common", "Misc", "Manager"] {
                if name.contains(vague) {
                    broken.push(format!("{}: {name}", path.display()));
                }
            }
        }
    }
    none(&broken);
}
