//! Answers with the keys of a backup, which may be more than fit into memory: they are read while they are sent.

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::stream;
use http::header;
use ruma::RoomId;
use serde_json::Value;

use crate::{
    app::App,
    error::Result,
    storage::{
        self, BackupNid,
        key_backup::{self, Session, Walked},
    },
};

/// How many keys are in memory at once.
const PAGE: i64 = 250;

/// All keys of a backup, by room.
pub(super) fn whole(app: Arc<App>, nid: BackupNid) -> Response {
    Walk::new(app, nid, None).answer()
}

/// The keys of a room.
pub(super) fn room(app: Arc<App>, nid: BackupNid, room: &RoomId) -> Response {
    Walk::new(app, nid, Some(room.as_str())).answer()
}

/// A walk through the keys of a backup or of one room.
struct Walk {
    app: Arc<App>,
    nid: BackupNid,
    is_whole: bool,
    /// Room and session of the last key that was read.
    last: (String, String),
    is_first: bool,
    is_done: bool,
}

impl Walk {
    fn new(app: Arc<App>, nid: BackupNid, room: Option<&str>) -> Self {
        Self {
            app,
            nid,
            is_whole: room.is_none(),
            // Neither ids of rooms nor of sessions are empty.
            last: (room.unwrap_or_default().to_owned(), String::new()),
            is_first: true,
            is_done: false,
        }
    }

    /// What breaks off does so in the middle of the answer, and the connection with it.
    fn answer(self) -> Response {
        let pages = stream::unfold(self, |mut walk| async move {
            if walk.is_done {
                return None;
            }
            let page = walk.page().await;
            if let Err(error) = &page {
                tracing::error!(%error, "a key backup cannot be read to its end");
                walk.is_done = true;
            }
            Some((page, walk))
        });
        let headers = [(header::CONTENT_TYPE, "application/json")];
        (headers, Body::from_stream(pages)).into_response()
    }

    async fn page(&mut self) -> Result<Bytes, storage::Error> {
        let (db, after) = (&self.app.db, (&*self.last.0, &*self.last.1));
        let part = if self.is_whole {
            Walked::All
        } else {
            Walked::Room
        };
        let page = key_backup::page(db, self.nid, part, after, PAGE).await?;
        let mut text = String::new();
        if self.is_first {
            text.push_str(if self.is_whole {
                "{\"rooms\":{"
            } else {
                "{\"sessions\":{"
            });
        }
        let is_last = (page.len() as u64) < PAGE.unsigned_abs();
        for session in page {
            self.add(&mut text, session);
        }
        if is_last {
            self.is_done = true;
            // The last room is still open.
            let is_open = self.is_whole && !self.is_first;
            text.push_str(if is_open { "}}}}" } else { "}}" });
        }
        Ok(Bytes::from(text))
    }

    fn add(&mut self, text: &mut String, session: Session) {
        if self.is_whole && session.room_id != self.last.0 {
            let end = if self.is_first { "" } else { "}}," };
            let room = Value::from(&*session.room_id).to_string();
            text.extend([end, &room, ":{\"sessions\":{"]);
        } else if !self.is_first {
            text.push(',');
        }
        let id = Value::from(&*session.session_id).to_string();
        text.extend([&id, ":", &key(&session)]);
        self.is_first = false;
        self.last = (session.room_id, session.session_id);
    }
}

/// The key of a session, as JSON.
pub(super) fn key(session: &Session) -> String {
    let worth = session.worth;
    format!(
        r#"{{"first_message_index":{},"forwarded_count":{},"is_verified":{},"session_data":{}}}"#,
        worth.first_message_index, worth.forwarded_count, !worth.is_unverified, session.json
    )
}
