//! Bad requests, made of good ones.

use bytes::Bytes;
use homing::http::Endpoint;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Case, Expected, Person,
    examples::{self, Example},
};

/// Instead of an argument in a path. What a URL cannot have is encoded.
const BAD_ARGUMENTS: &[&str] = &[
    "",
    "%20",
    "a%00b",
    "%ff",
    "%F0%9F%90%88",
    "a%2Fb",
    "%25",
    "%7B%7D",
    "..",
    "%2e%2e%2fetc%2fpasswd",
    "'%20OR%20''='",
    "x');DROP%20TABLE%20event;--",
    "-1",
    "*",
    "99999999999999999999999",
    "!",
    "@:",
    "!x:localhost",
    "@x:localhost",
    "$x:localhost",
    "%23x:localhost",
    "@bob:elsewhere.example",
    "!x:elsewhere.example",
    "@bob:localhost:99999999",
    "@bob:[::1",
    "@BOB:localhost",
    "@%F0%9F%90%88:localhost",
    "null",
    "m.room.create",
    "m.push_rules",
];

/// Instead of a value in a query.
const BAD_VALUES: &[&str] = &[
    "",
    "%00",
    "%ff",
    "%",
    "-1",
    "1.5",
    "NaN",
    "0",
    "9007199254740993",
    "18446744073709551616",
    "'%20OR%20''='",
    "{",
    "[]",
    "%7B%22limit%22:-1%7D",
    "%7B%22types%22:%7B%7D%7D",
    "s9223372036854775807_0_0",
    "s-1_0_0",
    "t9223372036854775807_9223372036854775807",
    "t-9223372036854775808_-9223372036854775808",
    "true",
    "@bob:localhost",
    "%F0%9F%90%88",
];

/// Whole queries.
const BAD_QUERIES: &[&str] = &[
    "&&&",
    "=",
    "%ff=%ff",
    "unknown=1",
    "%00",
    "a[]=1&a[]=2",
    "?",
    "+",
    "access_token",
];

/// What is not JSON.
const NOT_JSON: &[&[u8]] = &[
    b"{",
    b"nonsense",
    b"{\"a\":\"\xff\"}",
    b"{} {}",
    b"{'a':1}",
    b"{\"a\":01}",
    b"\0",
];

/// What is JSON, but not an object.
const NO_OBJECT: &[&str] = &["[]", "[[]]", "1", "-1.5e3", "\"text\"", "true", " [{}]"];

/// How many lists or objects in each other are a deep body: whoever reads them by recursion runs out of stack.
const DEEP: usize = 20_000;

/// Instead of a field of a body, one of each type.
fn bad_nodes() -> Vec<Value> {
    let long = "x".repeat(70_000);
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(""),
        json!("\0"),
        json!(long),
        json!([]),
        json!([null]),
        json!({}),
    ]
}

/// Further values that are tried where a field is not inside another one.
fn worse_nodes() -> Vec<Value> {
    let mut deep = json!({});
    for _ in 0..120 {
        deep = json!({ "a": [deep] });
    }
    vec![
        json!(1.5),
        json!(9_007_199_254_740_993_u64),
        json!(u64::MAX),
        json!(i64::MIN),
        json!("\u{202e}🐈"),
        json!("x".repeat(300)),
        json!("@bob:elsewhere.example"),
        json!("@bob:localhost"),
        json!("m.room.create"),
        json!({ "\0": "\0" }),
        json!({ "a": 1.5 }),
        json!(vec!["@bob:localhost"; 2000]),
        deep,
    ]
}

/// Authorizations that are not valid, and how they are refused.
fn bad_tokens() -> Vec<(Option<String>, &'static str)> {
    vec![
        (None, "M_MISSING_TOKEN"),
        (Some("Bearer".to_owned()), "M_MISSING_TOKEN"),
        (Some("Basic YWxpY2U6eA==".to_owned()), "M_MISSING_TOKEN"),
        (Some("Bearer wrong".to_owned()), "M_UNKNOWN_TOKEN"),
        (Some("Bearer ' OR ''='".to_owned()), "M_UNKNOWN_TOKEN"),
        (
            Some(format!("Bearer {}", "x".repeat(10_000))),
            "M_UNKNOWN_TOKEN",
        ),
    ]
}

/// A good request to an endpoint, of which bad ones are made.
pub struct Good<'a> {
    endpoint: &'a Endpoint,
    person: &'a Person<'a>,
    example: &'a Example,
    method: Method,
}

impl<'a> Good<'a> {
    /// One for each method of the endpoint.
    pub fn all(endpoint: &'a Endpoint, person: &'a Person<'a>) -> Vec<Self> {
        let methods = match &endpoint.method {
            Some(method) => vec![method.clone()],
            None => vec![Method::GET, Method::POST, Method::PUT],
        };
        let good = |method| Self {
            endpoint,
            person,
            example: examples::find(&method, endpoint),
            method,
        };
        methods.into_iter().map(good).collect()
    }

    /// The newest path.
    pub fn path(&self) -> &str {
        self.endpoint.paths.last().expect("an endpoint has a path")
    }

    /// A path with good arguments, but for the `n`-th if that is given.
    fn target(&self, path: &str, bad: Option<(usize, &str)>) -> String {
        let mut filled = String::new();
        let mut parts = path.split('{');
        filled += parts.next().unwrap_or_default();
        for (n, part) in parts.enumerate() {
            let (name, rest) = part.split_once('}').expect("an argument ends");
            match bad {
                Some((place, value)) if place == n => filled += value,
                _ => filled += &examples::argument(name, self.person),
            }
            filled += rest;
        }
        filled
    }

    /// The example's query with the good values of this person.
    fn query(&self) -> String {
        examples::fill(self.example.query, self.person)
    }

    /// The example's body with the good values of this person.
    pub fn body(&self) -> Option<Value> {
        let body = examples::fill(self.example.body?, self.person);
        Some(serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }

    /// A request with this body and everything else good.
    pub fn with_body(&self, body: impl Into<Bytes>, expected: Expected) -> Case {
        let query = self.query();
        let target = self.target(self.path(), None);
        let target = if query.is_empty() {
            target
        } else {
            format!("{target}?{query}")
        };
        self.case(target, body, expected)
    }

    pub fn case(&self, target: String, body: impl Into<Bytes>, expected: Expected) -> Case {
        Case {
            method: self.method.clone(),
            target,
            token: Some(format!("Bearer {}", self.person.user.token)),
            body: body.into(),
            expected,
        }
    }

    fn good_body(&self) -> Bytes {
        self.body()
            .map(|body| body.to_string().into())
            .unwrap_or_default()
    }
}

/// Requests that must be refused, whatever they are about.
pub fn refused(endpoint: &Endpoint, person: &Person<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    for good in Good::all(endpoint, person) {
        for path in &endpoint.paths {
            let mut case = good.case(
                good.target(path, None),
                "",
                Expected::Refusal(405, Some("M_UNRECOGNIZED")),
            );
            case.method = Method::PATCH;
            cases.push(case);
            if !good.example.open {
                for (token, code) in bad_tokens() {
                    let expected = Expected::Refusal(401, Some(code));
                    let case = good.case(good.target(path, None), good.good_body(), expected);
                    cases.push(Case { token, ..case });
                }
                let target = format!("{}?access_token=wrong", good.target(path, None));
                let case = good.case(
                    target,
                    good.good_body(),
                    Expected::Refusal(401, Some("M_UNKNOWN_TOKEN")),
                );
                cases.push(Case {
                    token: None,
                    ..case
                });
            }
        }
        if let Some(limit) = endpoint.body_limit {
            cases.push(good.with_body(
                vec![b' '; limit + 1],
                Expected::Refusal(413, Some("M_TOO_LARGE")),
            ));
        }
        if good.example.body.is_some() {
            let not_json = Expected::Refusal(400, Some("M_NOT_JSON"));
            cases.extend(NOT_JSON.iter().map(|body| good.with_body(*body, not_json)));
            cases.push(good.with_body("{\"a\":".repeat(5_000), not_json));
            let bad_json = Expected::Refusal(400, Some("M_BAD_JSON"));
            cases.extend(NO_OBJECT.iter().map(|body| good.with_body(*body, bad_json)));
        }
    }
    cases
}

/// Requests with one bad value each. Some of the values are fine in some places.
pub fn doubtful(endpoint: &Endpoint, person: &Person<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    for good in Good::all(endpoint, person) {
        cases.extend(bad_paths(&good));
        cases.extend(bad_queries(&good));
        if endpoint.body_limit.is_some() {
            cases.push(good.with_body("null", Expected::Answer));
            cases.push(good.with_body("", Expected::Answer));
            cases.push(good.with_body("[".repeat(DEEP), Expected::Answer));
            let deep = "{\"a\":".repeat(DEEP) + "1" + &"}".repeat(DEEP);
            cases.push(good.with_body(deep, Expected::Answer));
        }
        if let Some(body) = good.body() {
            cases.extend(bad_bodies(&good, &body));
        }
    }
    cases
}

fn bad_paths(good: &Good<'_>) -> Vec<Case> {
    let long = [
        "x".repeat(300),
        "@".to_owned() + &"x".repeat(5000) + ":localhost",
        "x".repeat(60_000),
    ];
    let values = BAD_ARGUMENTS
        .iter()
        .copied()
        .chain(long.iter().map(String::as_str));
    let mut cases = Vec::new();
    for place in 0..good.path().matches('{').count() {
        for value in values.clone() {
            let target = good.target(good.path(), Some((place, value)));
            cases.push(good.case(target, good.good_body(), Expected::Answer));
        }
    }
    cases
}

fn bad_queries(good: &Good<'_>) -> Vec<Case> {
    let path = good.target(good.path(), None);
    let query = good.query();
    let mut queries: Vec<String> = BAD_QUERIES
        .iter()
        .map(|query| (*query).to_owned())
        .collect();
    queries.push("x=".to_owned() + &"x".repeat(30_000));
    queries.push("x&".repeat(10_000));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let key = pair.split('=').next().unwrap_or_default();
        queries.push(query.replace(pair, ""));
        queries.push(format!("{query}&{pair}"));
        queries.push(query.replace(pair, &format!("{key}={}", "x".repeat(30_000))));
        queries.push(query.replace(pair, &format!("{key}={}", "%7B%22a%22:".repeat(2000))));
        // A sync that may sleep for long does.
        let sleeps =
            |value: &str| key == "timeout" && value.parse::<u64>().is_ok_and(|time| time > 1000);
        let bad = BAD_VALUES.iter().filter(|value| !sleeps(value));
        queries.extend(bad.map(|value| query.replace(pair, &format!("{key}={value}"))));
    }
    let case = |query: String| {
        good.case(
            format!("{path}?{query}"),
            good.good_body(),
            Expected::Answer,
        )
    };
    queries.into_iter().map(case).collect()
}

fn bad_bodies(good: &Good<'_>, body: &Value) -> Vec<Case> {
    let mut bodies = Vec::new();
    for pointer in pointers(body) {
        let is_outer = pointer.matches('/').count() == 1;
        let worse = if is_outer { worse_nodes() } else { Vec::new() };
        for bad in bad_nodes().into_iter().chain(worse) {
            let mut body = body.clone();
            *body
                .pointer_mut(&pointer)
                .expect("a pointer into this body") = bad;
            bodies.push(body.to_string());
        }
        // What is required may be missing, and no key may occur twice.
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer to a field");
        let mut less = body.clone();
        if let Some(object) = less.pointer_mut(parent).and_then(Value::as_object_mut) {
            object.remove(key);
            bodies.push(less.to_string());
            let twice = format!("{{{}:1,", json!(key));
            bodies.push(body.to_string().replacen('{', &twice, 1));
        }
    }
    let text = body.to_string();
    bodies.push(format!(
        "{},\"unknown\":[1.5]}}",
        text.trim_end_matches('}')
    ));
    bodies
        .into_iter()
        .map(|body| good.with_body(body, Expected::Answer))
        .collect()
}

/// Where the fields and entries of a value are, as JSON pointers.
pub fn pointers(value: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(object) => object
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(n, value)| (n.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    let mut found = Vec::new();
    for (key, child) in children {
        let key = key.replace('~', "~0").replace('/', "~1");
        found.extend(
            pointers(child)
                .into_iter()
                .map(|below| format!("/{key}{below}")),
        );
        found.push(format!("/{key}"));
    }
    found
}
