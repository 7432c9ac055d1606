//! Rooms in which a server of their choice looks at each event first ("Policy Servers").
//!
//! Its signature is asked for while nobody holds the room. What it has signed is let in like any other event; an event of
//! this server that it does not sign is refused, one of another server is soft-failed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use homing_federation::{
    Pdu, VerifyKey,
    client::{self, Limits},
    received::{POLICY_KEY, add_signature, is_signed_by},
};
use ruma::{OwnedServerName, ServerName, api::federation::policy::sign_event};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    append::step::Step,
    head,
    receive::{Opinion, Received},
    remote,
};
use crate::{
    app::App,
    error::{Error, Result},
    names::Key,
    rooms::Room,
    storage::Event,
};

/// The type of the state event that names the policy server of a room.
const POLICY: &str = "m.room.policy";
/// What an answer may cost. People wait for it.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(5),
    bytes: 64 << 10,
};
/// How long a policy server that does not answer is not asked again. Nobody waits in vain for each event of a room.
const SILENCE: Duration = Duration::from_secs(10);

/// The policy server of a room.
#[derive(Clone, Debug)]
pub struct Policy {
    via: OwnedServerName,
    /// The key that the room trusts; `None` if what the room has for it is no key, so that nothing is well signed.
    key: Option<VerifyKey>,
}

#[derive(Deserialize)]
struct Content {
    via: String,
    public_keys: Keys,
}

#[derive(Deserialize)]
struct Keys {
    ed25519: String,
}

/// The key of the state event that names a room's policy server.
fn key() -> Key {
    (POLICY.into(), "".into())
}

impl Policy {
    /// What the state event of a room says, if it is a valid one and `is_joined` says that the server that it names has
    /// joined.
    pub(super) fn read(event: &Event, is_joined: impl FnOnce(&ServerName) -> bool) -> Option<Self> {
        let content: Content = event.pdu.content_as().ok()?;
        let via = OwnedServerName::try_from(content.via).ok()?;
        if !is_joined(&via) {
            return None;
        }
        let key = VerifyKey::from_any_base64(&content.public_keys.ed25519).ok();
        Some(Self { via, key })
    }

    /// Whether an event has what it needs to be let in: nothing for the event that names the policy server, so that a room
    /// can do without it again.
    pub(super) fn recommends(&self, room: &Room, pdu: &Pdu) -> bool {
        is_exempt(&pdu.event_type, pdu.state_key.as_deref()) || self.has_signed(room, pdu)
    }

    fn has_signed(&self, room: &Room, pdu: &Pdu) -> bool {
        let key = self.key.as_ref();
        key.is_some_and(|key| is_signed_by(pdu, room.rules, &self.via, POLICY_KEY, key))
    }

    /// Gets the policy server's signature for an event.
    ///
    /// # Errors
    /// What it answers if it refuses, 403 `M_FORBIDDEN` if it answers no good signature, 502 `M_UNKNOWN` if it does not
    /// answer.
    async fn ask(&self, app: &App, room: &Room, pdu: &Pdu) -> Result<Arc<Pdu>> {
        let silent = &app.remote.silent;
        if silent
            .get(&self.via)
            .is_some_and(|since| since.elapsed() < SILENCE)
        {
            return Err(Error::unanswered(
                "the room's policy server does not answer",
            ));
        }
        let text = RawValue::from_string(pdu.json.to_string()).map_err(Error::internal)?;
        let request = sign_event::v1::Request::new(text);
        let answer = app.federation.send_within(LIMITS, &self.via, request).await;
        let answer = answer.map_err(|error| {
            tracing::debug!(event = %pdu.event_id, server = %self.via, %error, "a policy server does not sign");
            if matches!(error, client::Error::Unreachable(_) | client::Error::TimedOut) {
                silent.insert(self.via.clone(), Instant::now());
            }
            remote::failure(&error)
        })?;
        let refused = || Error::forbidden("the room's policy server does not want this event");
        let signature = answer.ed25519_signature(&self.via).ok_or_else(refused)?;
        // Others that the policy server's name has made, as the sender's server, stay.
        let signed = add_signature(pdu, room.rules, &self.via, POLICY_KEY, signature)?;
        if self.has_signed(room, &signed) {
            Ok(Arc::new(signed))
        } else {
            Err(refused())
        }
    }
}

/// Whether an event is one that no policy server is asked about.
pub(super) fn is_exempt(event_type: &str, state_key: Option<&str>) -> bool {
    event_type == POLICY && state_key == Some("")
}

/// The policy server that a room uses, if it does. In a room in memory this reads nothing from the database.
///
/// # Errors
/// If the database fails.
pub(super) async fn of(app: &App, room: &Room) -> Result<Option<Policy>> {
    if room.seen().max_depth == 0 {
        return Ok(None);
    }
    let key = key();
    let mut state = head::current_state(app, room, std::slice::from_ref(&key)).await?;
    let Some(event) = state.remove(&key).flatten() else {
        return Ok(None);
    };
    Ok(Policy::read(&event, |via| {
        let seen = room.seen();
        if via == app.name() {
            !seen.local.is_empty()
        } else {
            let there = seen.servers.get(via);
            there.is_some_and(|there| there.joined > 0)
        }
    }))
}

impl Step<'_> {
    /// The policy server that the room uses at the end of this change so far.
    pub(super) async fn policy(&self) -> Result<Option<Policy>> {
        let key = key();
        let mut state = self.state_at(std::slice::from_ref(&key)).await?;
        let Some(event) = state.remove(&key).flatten() else {
            return Ok(None);
        };
        Ok(Policy::read(&event, |via| {
            if via == self.app.name() {
                !self.room.seen().local.is_empty()
            } else {
                self.server_count(via).joined > 0
            }
        }))
    }
}

/// An event that this server brings into a room, with the signature of the room's policy server where that is needed.
///
/// # Errors
/// Why there is none: what the policy server answers, or 502 `M_UNKNOWN`.
pub(super) async fn signed(app: &App, room: &Room, pdu: Arc<Pdu>) -> Result<Arc<Pdu>> {
    match of(app, room).await? {
        Some(policy) if !policy.recommends(room, &pdu) => {
            Box::pin(policy.ask(app, room, &pdu)).await
        }
        _ => Ok(pdu),
    }
}

/// Finds out what the policy server of a room has to say of an event of another server that lacks its signature.
///
/// # Errors
/// If the database fails.
pub(super) async fn settle(app: &App, room: &Room, received: &mut Received) -> Result<()> {
    match signed(app, room, Arc::clone(&received.pdu)).await {
        Ok(pdu) => received.pdu = pdu,
        Err(Error::Matrix { .. }) => received.opinion = Opinion::Unwanted,
        Err(error) => return Err(error),
    }
    Ok(())
}
