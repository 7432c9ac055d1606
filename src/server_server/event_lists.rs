//! Answers with more events than fit into memory: they are read while they are sent, and never parsed.

use std::sync::Arc;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::header;

use crate::{
    app::App,
    error::{Error, Result},
    storage::{self, EventNid, graph},
};

/// How many events, and how many ids, are in memory at once.
const EVENTS: usize = 500;
const IDS: usize = 5000;

/// A JSON object that is written piece by piece.
#[derive(Debug, Default)]
pub(super) struct Object {
    pieces: Vec<Piece>,
}

/// A part of an answer.
#[derive(Debug)]
enum Piece {
    Text(String),
    Events(Vec<EventNid>),
    Ids(Vec<EventNid>),
}

impl Object {
    /// Adds a field that is JSON already.
    pub(super) fn field(mut self, name: &'static str, json: &str) -> Self {
        let text = format!("{}\"{name}\":{json}", self.mark());
        self.pieces.push(Piece::Text(text));
        self
    }

    /// Adds a list of events, without those of them that were rejected.
    pub(super) fn events(self, name: &'static str, events: Vec<EventNid>) -> Self {
        self.list(name, Piece::Events(events))
    }

    /// Adds a list of the ids of events, without those that were rejected.
    pub(super) fn ids(self, name: &'static str, events: Vec<EventNid>) -> Self {
        self.list(name, Piece::Ids(events))
    }

    fn list(mut self, name: &'static str, list: Piece) -> Self {
        let open = format!("{}\"{name}\":[", self.mark());
        self.pieces
            .extend([Piece::Text(open), list, Piece::Text("]".to_owned())]);
        self
    }

    fn mark(&self) -> char {
        if self.pieces.is_empty() { '{' } else { ',' }
    }

    /// The answer.
    pub(super) fn answer(self, app: Arc<App>) -> Response {
        self.within("", "", app)
    }

    /// The answer with something around the object.
    pub(super) fn within(
        self,
        before: &'static str,
        after: &'static str,
        app: Arc<App>,
    ) -> Response {
        let start = Piece::Text(before.to_owned());
        let end = Piece::Text(format!("}}{after}"));
        let pieces = std::iter::once(start).chain(self.pieces).chain([end]);
        let body = stream::iter(pieces).flat_map(move |piece| {
            let app = Arc::clone(&app);
            match piece {
                Piece::Text(text) => stream::iter([Ok(Bytes::from(text))]).boxed(),
                Piece::Events(nids) => items(app, nids, Read::Events).boxed(),
                Piece::Ids(nids) => items(app, nids, Read::Ids).boxed(),
            }
        });
        let headers = [(header::CONTENT_TYPE, "application/json")];
        (headers, Body::from_stream(body)).into_response()
    }
}

/// What is read of events.
#[derive(Clone, Copy, Debug)]
enum Read {
    Events,
    Ids,
}

impl Read {
    async fn some(self, app: &App, nids: &[EventNid]) -> Result<Vec<String>, storage::Error> {
        match self {
            Self::Events => graph::texts(&app.db, nids).await,
            Self::Ids => {
                let mut ids = graph::ids(&app.db, nids).await?;
                // An id that was ever let in has nothing that would have to be escaped.
                for id in &mut ids {
                    *id = format!("\"{id}\"");
                }
                Ok(ids)
            }
        }
    }

    fn at_once(self) -> usize {
        match self {
            Self::Events => EVENTS,
            Self::Ids => IDS,
        }
    }
}

/// The items of a list with commas between, as they are read. What breaks off does so in the middle of the answer, and the
/// connection with it.
fn items(
    app: Arc<App>,
    nids: Vec<EventNid>,
    read: Read,
) -> impl Stream<Item = Result<Bytes, Error>> {
    stream::unfold(
        (app, nids, true),
        move |(app, mut rest, is_first)| async move {
            if rest.is_empty() {
                return None;
            }
            let chunk = rest.split_off(rest.len().saturating_sub(read.at_once()));
            let items = match read.some(&app, &chunk).await {
                Ok(items) => items,
                Err(error) => {
                    tracing::error!(%error, "the state of a room cannot be read to its end");
                    return Some((Err(error.into()), (app, Vec::new(), is_first)));
                }
            };
            let mut text = items.join(",");
            if !is_first && !text.is_empty() {
                text.insert(0, ',');
            }
            let is_first = is_first && text.is_empty();
            Some((Ok(Bytes::from(text)), (app, rest, is_first)))
        },
    )
}
