//! "User Directory" and "Mutual Rooms": finding people.

use std::{collections::HashSet, sync::Arc};

use ruma::{
    OwnedRoomId, OwnedUserId, UInt,
    api::client::{
        membership::get_mutual_rooms,
        user_directory::search_users::{self, v3::User},
    },
};

use crate::{
    app::App,
    error::{Error, Result},
    http::{Call, Routes},
    storage::{
        RoomNid,
        directory::{self, Found},
    },
};

/// The most people that a search answers.
const RESULTS: usize = 50;
/// The most people that are ranked.
const CANDIDATES: i64 = 1000;
/// The longest term, in bytes.
const TERM_BYTES: usize = 255;
/// How many mutual rooms are told at once.
const MUTUAL_ROOMS: usize = 100;

pub(super) fn routes() -> Routes {
    Routes::new()
        .add::<search_users::v3::Request, _, _>(search_users)
        .add::<get_mutual_rooms::v1::Request, _, _>(get_mutual_rooms)
}

/// `POST /_matrix/client/v3/user_directory/search`
///
/// Each word of the term must be in the user id or the display name.
async fn search_users(
    app: Arc<App>,
    call: Call<search_users::v3::Request>,
) -> Result<search_users::v3::Response> {
    let term = call.body.search_term.trim().to_lowercase();
    if term.len() > TERM_BYTES || term.contains('\0') {
        return Err(Error::invalid_param("the search term is too long"));
    }
    let limit = usize::try_from(call.body.limit)
        .unwrap_or(RESULTS)
        .min(RESULTS);
    let words: Vec<&str> = term.split_whitespace().collect();
    let Some(longest) = words.iter().max_by_key(|word| word.len()) else {
        return Ok(search_users::v3::Response::new(Vec::new(), false));
    };
    let user = call.requester.user;
    let pattern = like(longest);
    let mut found = directory::local(&app.db, user, &pattern, CANDIDATES).await?;
    let remote = directory::remote(&app.db, user, &pattern, CANDIDATES).await?;
    let mut known: HashSet<_> = found.iter().map(|one| one.user).collect();
    found.extend(remote.into_iter().filter(|one| known.insert(one.user)));
    let mut ranked: Vec<(Rank, User)> = found
        .into_iter()
        .filter_map(|one| {
            let near = one.is_near;
            let person = person(one)?;
            Some((rank(&person, &term, &words, near)?, person))
        })
        .collect();
    ranked.sort_by(|(one, _), (other, _)| one.cmp(other));
    let limited = ranked.len() > limit;
    ranked.truncate(limit);
    let people = ranked.into_iter().map(|(_, person)| person).collect();
    Ok(search_users::v3::Response::new(people, limited))
}

/// A pattern for SQL's LIKE that finds `word` anywhere.
fn like(word: &str) -> String {
    let mut pattern = "%".to_owned();
    for character in word.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

fn person(found: Found) -> Option<User> {
    let text = |value: Option<String>| {
        let value = value?;
        if found.is_local {
            serde_json::from_str(&value).ok()
        } else {
            Some(value)
        }
    };
    let mut person = User::new(OwnedUserId::try_from(found.user_id).ok()?);
    person.display_name = text(found.display_name);
    person.avatar_url = text(found.avatar_url).map(Into::into);
    Some(person)
}

/// How well somebody fits: the smallest is the best.
type Rank = (u8, bool, String);

/// `None` if a word is in neither the user id nor the display name.
fn rank(person: &User, term: &str, words: &[&str], is_near: bool) -> Option<Rank> {
    let id = person.user_id.as_str().to_lowercase();
    let localpart = person.user_id.localpart().to_lowercase();
    let name = person
        .display_name
        .as_deref()
        .unwrap_or_default()
        .to_lowercase();
    if words
        .iter()
        .any(|word| !id.contains(word) && !name.contains(word))
    {
        return None;
    }
    let bare = term.strip_prefix('@').unwrap_or(term);
    let class = if id == term || localpart == bare || name == term {
        0
    } else if localpart.starts_with(bare) || name.starts_with(term) {
        1
    } else if name.split_whitespace().any(|word| word.starts_with(term)) {
        2
    } else {
        3
    };
    Some((class, !is_near, id))
}

/// `GET /_matrix/client/v1/mutual_rooms`
async fn get_mutual_rooms(
    app: Arc<App>,
    call: Call<get_mutual_rooms::v1::Request>,
) -> Result<get_mutual_rooms::v1::Response> {
    let (body, user) = (&call.body, call.requester.user);
    if body.user_id == call.requester.user_id {
        return Err(Error::invalid_param("all your rooms are your own"));
    }
    let after: i64 = match body.from.as_deref() {
        None => 0,
        Some(token) => token
            .parse()
            .map_err(|_| Error::invalid_param("`from` is no token of this endpoint"))?,
    };
    let Some(other) = app.names.find_user(&app.db, &body.user_id).await? else {
        return Ok(get_mutual_rooms::v1::Response::new(UInt::MIN, Vec::new()));
    };
    let limit = i64::try_from(MUTUAL_ROOMS + 1).map_err(Error::internal)?;
    let mut rooms = directory::mutual_rooms(&app.db, user, other, RoomNid(after), limit).await?;
    let count = directory::count_mutual_rooms(&app.db, user, other).await?;
    let more = rooms.len() > MUTUAL_ROOMS;
    rooms.truncate(MUTUAL_ROOMS);
    let next = rooms.last().filter(|_| more).map(|(nid, _)| nid.0);
    let joined: Result<Vec<OwnedRoomId>, _> =
        rooms.into_iter().map(|(_, id)| id.try_into()).collect();
    let mut response = get_mutual_rooms::v1::Response::new(
        UInt::try_from(count).unwrap_or_default(),
        joined.map_err(Error::internal)?,
    );
    response.next_batch = next.map(|next| next.to_string());
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_better_comes_first() {
        let person = |id: &str, name: Option<&str>| {
            let mut person = User::new(id.try_into().unwrap());
            person.display_name = name.map(Into::into);
            person
        };
        let people = [
            person("@ann:s", Some("Boss")),
            person("@x1:s", Some("ann")),
            person("@annette:s", None),
            person("@x2:s", Some("Annika Berg")),
            person("@x3:s", Some("Berg Annika")),
            person("@x4:s", Some("Joanna")),
        ];
        let ranks: Vec<_> = people
            .iter()
            .map(|person| rank(person, "ann", &["ann"], true).unwrap().0)
            .collect();
        assert_eq!(ranks, [0, 0, 1, 1, 2, 3]);
        assert!(rank(&people[0], "ann berg", &["ann", "berg"], true).is_none());
        assert!(rank(&people[3], "berg ann", &["berg", "ann"], true).is_some());
    }

    #[test]
    fn signs_of_like_are_meant_literally() {
        assert_eq!(like(r"a_b%\"), r"%a\_b\%\\%");
    }
}
