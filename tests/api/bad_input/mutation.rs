//! Requests with random damage. The damage is the same in every run.

use homing::http::Endpoint;
use rand::{
    Rng as _, RngExt as _, SeedableRng as _,
    rngs::StdRng,
    seq::{IndexedRandom as _, SliceRandom as _},
};
use serde_json::{Value, json};

use super::{
    Case, Expected, Person,
    cases::{Good, pointers},
};

/// The ends of the paths of the requests that are damaged.
const VICTIMS: &[&str] = &[
    "/createRoom",
    "/send/{event_type}/{txn_id}",
    "/state/{event_type}/{state_key}",
    "/filter",
    "/pushrules/global/{kind}/{rule_id}",
    "/sync",
    "/search",
    "/register",
];
/// How many damaged requests there are in all.
const COUNT: usize = 2000;
/// Bits of text that may mean something somewhere.
const WORDS: &[&str] = &[
    "null",
    "true",
    "-1",
    "1e999",
    "9007199254740993",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "m.room.create",
    "m.room.member",
    "m.room.power_levels",
    "@bob:localhost",
    "100",
    "\"users\"",
    "\u{0}",
    "🐈",
    " ",
];

/// Whether requests to this endpoint are damaged.
pub fn is_victim(endpoint: &Endpoint) -> bool {
    let path = endpoint.paths.last().map_or("", String::as_str);
    VICTIMS.iter().any(|victim| path.ends_with(victim))
}

/// Damaged requests to the victims.
pub fn cases(endpoints: &[(Endpoint, Person<'_>)]) -> Vec<Case> {
    let mut random = StdRng::seed_from_u64(2);
    let victims: Vec<Good<'_>> = endpoints
        .iter()
        .flat_map(|(endpoint, person)| Good::all(endpoint, person))
        .collect();
    assert!(!victims.is_empty());
    (0..COUNT)
        .map(|n| damaged(&victims[n % victims.len()], &mut random))
        .collect()
}

fn damaged(good: &Good<'_>, random: &mut StdRng) -> Case {
    let Some(body) = good.body() else {
        // Without a body, the query is what there is to damage.
        let mut case = good.with_body("", Expected::Answer);
        let (path, query) = case.target.split_once('?').unwrap_or((&case.target, ""));
        let query = damage_text(query.as_bytes(), random);
        case.target = format!("{path}?{}", encode(&query));
        return case;
    };
    let mut body = body;
    for _ in 0..random.random_range(0..3) {
        damage_value(&mut body, random);
    }
    let mut bytes = body.to_string().into_bytes();
    if random.random_bool(0.5) {
        bytes = damage_text(&bytes, random);
    }
    good.with_body(bytes, Expected::Answer)
}

/// Replaces a part of a value with another part of it, or with something small.
fn damage_value(value: &mut Value, random: &mut StdRng) {
    let pointers = pointers(value);
    let (Some(to), Some(from)) = (pointers.choose(random), pointers.choose(random)) else {
        return;
    };
    let small = [
        json!(null),
        json!(-1),
        json!(1.5),
        json!(100),
        json!(""),
        json!([]),
        json!({}),
        json!("@bob:localhost"),
    ];
    let part = if random.random_bool(0.5) {
        value.pointer(from).cloned()
    } else {
        small.choose(random).cloned()
    };
    if let (Some(place), Some(part)) = (value.pointer_mut(to), part) {
        *place = part;
    }
}

/// Flips, drops, doubles and inserts bytes.
fn damage_text(text: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = text.to_vec();
    for _ in 0..random.random_range(1..5) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..16)).min(bytes.len());
        match random.random_range(0..4) {
            0 => drop(bytes.drain(at..end)),
            1 => bytes[at..end].shuffle(random),
            2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            _ => {
                let word = WORDS.choose(random).copied().unwrap_or_default();
                drop(bytes.splice(at..end, word.bytes()));
            }
        }
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << random.next_u32().trailing_zeros().min(7);
        }
    }
    bytes
}

/// Encodes what a URL cannot have.
fn encode(query: &[u8]) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"&=%+-_.~!*'():@$,[]".contains(&byte);
    query
        .iter()
        .map(|byte| {
            if keep(*byte) {
                char::from(*byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
