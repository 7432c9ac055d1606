//! A transaction: what a destination is sent at once ("Transactions").

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use homing_federation::client::{Error, Limits};
use http::Method;
use ruma::{OwnedEventId, ServerName};
use serde::Deserialize;

use super::durable::Durable;
use crate::{app::App, storage::Pos};

/// How long the other server may take to answer: some work through a transaction before they do.
const TIME: Duration = Duration::from_mins(1);

/// An event on its way to other servers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pdu {
    /// Its position.
    pub(super) pos: Pos,
    /// The event as it was signed; all destinations share it.
    pub(super) json: Box<str>,
}

/// Whether an event of `sender` was made by a server, so that it need not be told. An invite in place of an invitation by
/// address is made by another server in the name of the sender; what has the word for one is sent, even if in vain.
pub(super) fn is_made_by(server: &ServerName, sender: &str, json: &str) -> bool {
    let is_theirs = sender
        .split_once(':')
        .is_some_and(|(_, name)| server == name);
    is_theirs && !json.contains("\"third_party_invite\"")
}

/// What a destination is sent at once. Once it was sent it stays the same with the same id, until its EDUs are dropped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    /// The events.
    pub(super) pdus: Vec<Arc<Pdu>>,
    /// What else, each as canonical JSON.
    edus: Vec<String>,
    /// EDUs that must not be lost.
    pub(super) durable: Durable,
    /// When the destination has taken it, it has come to here; 0 if it is where it was.
    pub(super) upto: Pos,
    /// Whether nothing was left out before that.
    pub(super) is_whole: bool,
    /// Its id and body, once it was sent.
    sent: Option<(String, Bytes)>,
}

impl Transaction {
    pub(super) fn new(
        pdus: Vec<Arc<Pdu>>,
        (durable, edus): (Durable, Vec<String>),
        upto: Pos,
        is_whole: bool,
    ) -> Self {
        Self {
            pdus,
            edus,
            durable,
            upto,
            is_whole,
            sent: None,
        }
    }

    #[cfg(test)]
    pub(super) fn has_edus(&self) -> bool {
        !self.edus.is_empty()
    }

    /// Leaves out what is worth nothing later.
    pub(super) fn drop_edus(&mut self) {
        if !self.edus.is_empty() {
            self.edus.clear();
            self.sent = None;
        }
    }

    /// Sends it. `new_id` is called if it was not sent before.
    ///
    /// # Errors
    /// If the destination has not taken it.
    pub(super) async fn send(
        &mut self,
        app: &App,
        to: &ServerName,
        new_id: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        let (id, body) = match &self.sent {
            Some(sent) => sent.clone(),
            None => self
                .sent
                .insert((new_id(), self.body(app.name(), app.clock.now())))
                .clone(),
        };
        let path = format!("/_matrix/federation/v1/send/{id}");
        let limits = Limits::default().time(TIME);
        let answer = app
            .federation
            .send_canonical(limits, to, Method::PUT, &path, body)
            .await?;
        self.read_answer(&answer, to);
        Ok(())
    }

    /// The body, as canonical JSON.
    fn body(&self, origin: &ServerName, now: i64) -> Bytes {
        let pdus = self.pdus.iter().map(|pdu| pdu.json.len() + 1);
        let edus = || self.durable.edus.iter().chain(&self.edus);
        let edus_bytes = edus().map(|edu| edu.len() + 1);
        let mut body = String::with_capacity(pdus.chain(edus_bytes).sum::<usize>() + 256);
        body.push('{');
        if edus().next().is_some() {
            body.push_str("\"edus\":[");
            push_list(&mut body, edus().map(String::as_str));
            body.push_str("],");
        }
        // A server name needs no escapes.
        let rest = format!("\"origin\":\"{origin}\",\"origin_server_ts\":{now},\"pdus\":[");
        body.push_str(&rest);
        push_list(&mut body, self.pdus.iter().map(|pdu| &*pdu.json));
        body.push_str("]}");
        body.into()
    }

    /// What the destination did not like is its own affair, but worth knowing for who looks into it.
    fn read_answer(&self, answer: &[u8], from: &ServerName) {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            pdus: BTreeMap<OwnedEventId, Processed>,
        }
        #[derive(Deserialize)]
        struct Processed {
            error: Option<String>,
        }
        if self.pdus.is_empty() || !tracing::enabled!(tracing::Level::DEBUG) {
            return;
        }
        let Ok(answer) = serde_json::from_slice::<Answer>(answer) else {
            tracing::debug!(server = %from, "the answer to a transaction cannot be read");
            return;
        };
        for (event, processed) in answer.pdus {
            if let Some(error) = processed.error {
                tracing::debug!(server = %from, %event, error, "an event was not taken");
            }
        }
    }
}

fn push_list<'a>(body: &mut String, items: impl Iterator<Item = &'a str>) {
    for (index, item) in items.enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(item);
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    fn pdu(json: &str) -> Arc<Pdu> {
        Arc::new(Pdu {
            pos: 1,
            json: json.into(),
        })
    }

    #[test]
    fn a_body_is_canonical() {
        let table = [
            (
                vec![],
                vec![r#"{"c":1}"#],
                r#"{"edus":[{"c":1}],"origin":"a.b:1","origin_server_ts":7,"pdus":[]}"#,
            ),
            (
                vec![r#"{"a":1}"#, r#"{"b":2}"#],
                vec![],
                r#"{"origin":"a.b:1","origin_server_ts":7,"pdus":[{"a":1},{"b":2}]}"#,
            ),
        ];
        for (pdus, edus, expected) in table {
            let pdus = pdus.into_iter().map(pdu).collect();
            let edus = edus.into_iter().map(ToOwned::to_owned).collect();
            let transaction = Transaction::new(pdus, (Durable::default(), edus), 1, true);
            let body = transaction.body(server_name!("a.b:1"), 7);
            assert_eq!(&*body, expected.as_bytes());
            let canonical: ruma::CanonicalJsonValue = serde_json::from_slice(&body).unwrap();
            assert_eq!(canonical.to_string(), expected);
        }
    }
}
