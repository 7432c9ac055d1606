//! Filters: what a client wants to see (Client-Server API, "Filtering"). Stored ones and those that come with a request
//! are read and checked here.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use quick_cache::sync::Cache;
use ruma::api::client::{
    filter::{EventFormat, FilterDefinition, RoomEventFilter},
    sync::sync_events::v3,
};
use sha2::{Digest as _, Sha256};

use crate::{
    app::App,
    error::{Error, Result},
    log::Change,
    storage::{self, UserNid},
};

/// A filter that was read and checked.
pub type Filter = FilterDefinition;

/// The largest filter, in bytes of JSON.
const FILTER_BYTES: usize = 64 * 1024;
/// The most entries in one list of a filter.
const LIST_ENTRIES: usize = 1000;
/// How many filters of one user are kept; the oldest go.
const STORED_FILTERS: i64 = 1000;
/// How many filters stay in memory.
const CACHED_FILTERS: usize = 10_000;
/// Bytes of the hash that make a filter's id.
const ID_BYTES: usize = 12;

/// Stored filters in memory, by user and id.
#[derive(Debug)]
pub struct Filters(Cache<(UserNid, String), Arc<Filter>>);

impl Default for Filters {
    fn default() -> Self {
        Self(Cache::new(CACHED_FILTERS))
    }
}

/// Reads and checks a filter.
///
/// # Errors
/// `M_BAD_JSON` if it is not a filter, `M_TOO_LARGE`.
pub fn parse(json: &str) -> Result<Filter> {
    if json.len() > FILTER_BYTES {
        return Err(Error::too_large("the filter is too large"));
    }
    let filter = serde_json::from_str(json).map_err(|error| Error::bad_json(error.to_string()))?;
    check(&filter)?;
    Ok(filter)
}

/// Checks a filter that ruma has read.
///
/// # Errors
/// `M_BAD_JSON` if it has an unknown event format, too long a list, or a nonsensical limit.
pub fn check(filter: &Filter) -> Result<()> {
    if !matches!(
        filter.event_format,
        EventFormat::Client | EventFormat::Federation
    ) {
        return Err(Error::bad_json(format!(
            "there is no event format {}",
            filter.event_format.as_str()
        )));
    }
    let room = &filter.room;
    check_list(filter.event_fields.as_ref())?;
    check_list(room.rooms.as_ref())?;
    check_list(Some(&room.not_rooms))?;
    for events in [&filter.presence, &filter.account_data] {
        check_list(events.types.as_ref())?;
        check_list(Some(&events.not_types))?;
        check_list(events.senders.as_ref())?;
        check_list(Some(&events.not_senders))?;
    }
    for events in [
        &room.account_data,
        &room.timeline,
        &room.ephemeral,
        &room.state,
    ] {
        check_events(events)?;
    }
    Ok(())
}

/// Checks the part of a filter that is about events in rooms, which `/messages` and others take alone.
///
/// # Errors
/// `M_BAD_JSON` if a list is too long.
pub fn check_events(filter: &RoomEventFilter) -> Result<()> {
    check_list(filter.types.as_ref())?;
    check_list(Some(&filter.not_types))?;
    check_list(filter.rooms.as_ref())?;
    check_list(Some(&filter.not_rooms))?;
    check_list(filter.senders.as_ref())?;
    check_list(Some(&filter.not_senders))
}

fn check_list<T>(list: Option<&Vec<T>>) -> Result<()> {
    if list.is_some_and(|list| list.len() > LIST_ENTRIES) {
        return Err(Error::bad_json(format!(
            "a list in a filter has more than {LIST_ENTRIES} entries"
        )));
    }
    Ok(())
}

/// The filter that a sync asks for, inline or by id.
///
/// # Errors
/// `M_BAD_JSON` for one that is not valid, `M_INVALID_PARAM` for the id of none.
pub async fn of_sync(app: &App, user: UserNid, filter: Option<&v3::Filter>) -> Result<Arc<Filter>> {
    match filter {
        None => Ok(Arc::default()),
        Some(v3::Filter::FilterDefinition(filter)) => {
            check(filter)?;
            Ok(Arc::new(filter.clone()))
        }
        // What looks like JSON and is not a filter ends up here too; to say what is wrong with it, read it again.
        Some(v3::Filter::FilterId(text)) if text.starts_with('{') => parse(text).map(Arc::new),
        Some(v3::Filter::FilterId(id)) => stored(app, user, id)
            .await?
            .ok_or_else(|| Error::invalid_param("there is no filter with this id")),
        Some(_) => Err(Error::bad_json("the filter cannot be read")),
    }
}

/// The stored filter with this id.
///
/// # Errors
/// If the database fails.
pub async fn stored(app: &App, user: UserNid, id: &str) -> Result<Option<Arc<Filter>>> {
    let key = (user, id.to_owned());
    if let Some(filter) = app.filters.0.get(&key) {
        return Ok(Some(filter));
    }
    // Ids that were never given need no look.
    if id.len() > 2 * ID_BYTES || !id.is_ascii() || id.contains('\0') {
        return Ok(None);
    }
    let Some(json) = storage::filters::get(&app.db, user, id).await? else {
        return Ok(None);
    };
    let filter = Arc::new(parse(&json)?);
    app.filters.0.insert(key, Arc::clone(&filter));
    Ok(Some(filter))
}

/// Stores a filter; answers its id. The same filter has the same id.
///
/// # Errors
/// As [`check`]; `M_TOO_LARGE`.
pub async fn store(app: &App, user: UserNid, filter: Filter) -> Result<String> {
    check(&filter)?;
    let json = serde_json::to_string(&filter).map_err(Error::internal)?;
    if json.len() > FILTER_BYTES {
        return Err(Error::too_large("the filter is too large"));
    }
    let id = URL_SAFE_NO_PAD.encode(&Sha256::digest(&json)[..ID_BYTES]);
    if stored(app, user, &id).await?.is_none() {
        let mut change = Change::new();
        change.write(storage::filters::add(user, &id, &json, app.clock.now()));
        app.log.append(change).await?;
        let mut change = Change::new();
        change.write(storage::filters::keep_newest(user, STORED_FILTERS));
        app.log.append(change).await?;
        app.filters.0.insert((user, id.clone()), Arc::new(filter));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_filter_is_refused() {
        let long = format!(
            r#"{{"room":{{"rooms":[{}]}}}}"#,
            vec![r#""!a:b""#; LIST_ENTRIES + 1].join(",")
        );
        for bad in [
            "",
            "[]",
            "1",
            r#"{"event_format":"other"}"#,
            r#"{"event_fields":1}"#,
            r#"{"room":{"timeline":{"limit":-1}}}"#,
            r#"{"room":{"timeline":{"limit":1.5}}}"#,
            r#"{"room":{"timeline":{"senders":["alice"]}}}"#,
            r#"{"room":{"rooms":"all"}}"#,
            r#"{"presence":{"not_types":null}}"#,
            &long,
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn filters_are_read() {
        for good in [
            "{}",
            r#"{"event_format":"federation","unknown":[1]}"#,
            r#"{"room":{"timeline":{"limit":20,"types":["m.room.*"],"lazy_load_members":true}}}"#,
            r#"{"room":{"state":{"senders":["@a:b"],"contains_url":false}}}"#,
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
    }
}
