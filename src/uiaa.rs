//! The User-Interactive Authentication API: sessions in memory, and what each stage asks for.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ruma::api::{
    client::uiaa::{
        AuthData, AuthFlow, AuthType, Dummy, MatrixUserIdentifier, Password, RegistrationToken,
        UiaaInfo, UserIdentifier,
    },
    error::{ErrorKind, StandardErrorBody},
};
use serde_json::{Map, Value, json};

use crate::{
    accounts::{self, Ticket},
    app::App,
    auth::{Requester, new_token},
    error::{Error, Result},
    rate_limit::{self, Class},
    sessions,
    storage::UserNid,
};

/// How long a session lasts, in milliseconds.
const LIFETIME: i64 = 60 * 60 * 1000;
/// How many sessions there are at most; then the oldest end.
const SESSIONS: usize = 10_000;
/// How many bytes of requests are kept in all, and of one.
const KEPT_BYTES: usize = 16 << 20;
const KEPT_BYTES_EACH: usize = 64 << 10;

/// All sessions.
#[derive(Debug, Default)]
pub struct Uiaa(Mutex<Sessions>);

#[derive(Debug, Default)]
struct Sessions {
    by_id: HashMap<String, Session>,
    /// Oldest first; some may have ended.
    order: VecDeque<String>,
    kept_bytes: usize,
}

/// One authentication on its way. It is good for one endpoint and one user.
#[derive(Clone, Debug)]
struct Session {
    path: String,
    user: Option<UserNid>,
    flows: Vec<Vec<AuthType>>,
    started: i64,
    /// The body of the first request.
    kept: Bytes,
    passed: Passed,
}

/// The stages that somebody has passed.
#[derive(Clone, Debug, Default)]
pub struct Passed {
    stages: Vec<AuthType>,
    /// What a registration token has opened.
    pub ticket: Option<Ticket>,
}

impl Passed {
    fn add(&mut self, stage: AuthType, ticket: Option<Ticket>) {
        if ticket.is_some() {
            self.ticket = ticket;
        }
        if !self.stages.contains(&stage) {
            self.stages.push(stage);
        }
    }
}

/// A request that needs more authentication.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Its path: a session is good for one.
    pub path: &'a str,
    /// Its body, kept for the time when the client comes back.
    pub body: &'a Bytes,
    /// Who asks, if anybody is signed in.
    pub requester: Option<&'a Requester>,
    /// What the client says to prove itself.
    pub auth: Option<&'a AuthData>,
}

impl Sessions {
    fn remove(&mut self, id: &str) {
        if let Some(session) = self.by_id.remove(id) {
            self.kept_bytes -= session.kept.len();
        }
    }

    /// Adds a session, and ends old ones where there are too many.
    fn add(&mut self, id: String, session: Session) {
        let now = session.started;
        self.kept_bytes += session.kept.len();
        self.by_id.insert(id.clone(), session);
        self.order.push_back(id);
        while let Some(oldest) = self.order.front() {
            let over = self.order.len() > SESSIONS || self.kept_bytes > KEPT_BYTES;
            let ended = self
                .by_id
                .get(oldest)
                .is_none_or(|session| session.started + LIFETIME <= now);
            if !over && !ended {
                break;
            }
            if let Some(oldest) = self.order.pop_front() {
                self.remove(&oldest);
            }
        }
    }

    fn get(&self, id: &str, path: &str, now: i64) -> Option<&Session> {
        self.by_id
            .get(id)
            .filter(|session| session.path == path && session.started + LIFETIME > now)
    }
}

impl Uiaa {
    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a session waits for somebody to pass this stage.
    #[must_use]
    pub fn waits_for(&self, id: &str, stage: &AuthType, now: i64) -> bool {
        self.waiting(id, stage, now).is_some()
    }

    fn waiting(&self, id: &str, stage: &AuthType, now: i64) -> Option<Session> {
        let sessions = self.lock();
        let session = sessions.by_id.get(id);
        session
            .filter(|session| session.started + LIFETIME > now)
            .filter(|session| session.flows.iter().any(|flow| flow.contains(stage)))
            .cloned()
    }

    /// The body of a request, with what the client has sent before in the same session and leaves out now. An old way
    /// to name the user is put into the words that ruma reads.
    #[must_use]
    pub fn complete(&self, path: &str, body: Bytes, now: i64) -> Bytes {
        let Ok(mut sent) = serde_json::from_slice::<Map<String, Value>>(&body) else {
            return body;
        };
        let body = if name_user(&mut sent) {
            serde_json::to_vec(&sent).map_or(body, Bytes::from)
        } else {
            body
        };
        let auth = sent.get("auth").and_then(Value::as_object);
        let Some(session) = auth.and_then(|auth| auth.get("session")?.as_str()) else {
            if auth.is_some_and(|auth| !auth.contains_key("type")) {
                // An empty object says as much as none.
                sent.remove("auth");
                return serde_json::to_vec(&sent).map_or(body, Bytes::from);
            }
            return body;
        };
        let kept = self.lock().get(session, path, now).map(|s| s.kept.clone());
        let Some(kept) = kept else { return body };
        let Ok(kept) = serde_json::from_slice::<Map<String, Value>>(&kept) else {
            return body;
        };
        for (key, value) in kept {
            sent.entry(key).or_insert(value);
        }
        serde_json::to_vec(&sent).map_or(body, Bytes::from)
    }

    fn find(&self, task: Task<'_>, now: i64) -> Option<(String, Passed)> {
        let id = task.auth?.session()?;
        let sessions = self.lock();
        let session = sessions.get(id, task.path, now)?;
        let same_user = session.user == task.requester.map(|requester| requester.user);
        same_user.then(|| (id.to_owned(), session.passed.clone()))
    }

    fn begin(&self, task: Task<'_>, flows: &[Vec<AuthType>], now: i64) -> String {
        let id = new_token("uiaa");
        let kept = if task.body.len() <= KEPT_BYTES_EACH {
            // A copy: what came over the wire may be part of a larger buffer.
            Bytes::copy_from_slice(task.body)
        } else {
            Bytes::new()
        };
        let session = Session {
            path: task.path.to_owned(),
            user: task.requester.map(|requester| requester.user),
            flows: flows.to_vec(),
            started: now,
            kept,
            passed: Passed::default(),
        };
        self.lock().add(id.clone(), session);
        id
    }
}

/// Clients from before `identifier` say `user` beside the password.
fn name_user(sent: &mut Map<String, Value>) -> bool {
    let Some(Value::Object(auth)) = sent.get_mut("auth") else {
        return false;
    };
    let is_password = auth.get("type").and_then(Value::as_str) == Some("m.login.password");
    if !is_password || auth.contains_key("identifier") {
        return false;
    }
    let Some(user @ Value::String(_)) = auth.get("user").cloned() else {
        return false;
    };
    let identifier = json!({ "type": "m.id.user", "user": user });
    auth.insert("identifier".to_owned(), identifier);
    true
}

/// Passes a stage of a session in a browser ("Fallback"). `secret` is what the stage asks for, if anything.
///
/// # Errors
/// `M_FORBIDDEN` if that is wrong or no session waits for it, `M_LIMIT_EXCEEDED`.
pub async fn pass_in_browser(app: &App, id: &str, stage: &AuthType, secret: String) -> Result<()> {
    let lost = || Error::forbidden("this session has ended");
    let session = app.uiaa.waiting(id, stage, app.clock.now());
    let session = session.ok_or_else(lost)?;
    let auth = match (stage, session.user) {
        (AuthType::Dummy, _) => AuthData::Dummy(Dummy::new()),
        (AuthType::RegistrationToken, _) => {
            AuthData::RegistrationToken(RegistrationToken::new(secret))
        }
        (AuthType::Password, Some(user)) => {
            let user = app.names.user_id(&app.db, user).await?;
            let user = MatrixUserIdentifier::new(user.into());
            AuthData::Password(Password::new(UserIdentifier::Matrix(user), secret))
        }
        _ => return Err(Error::unrecognized("this stage is not known here")),
    };
    let ticket = pass(app, session.user, &auth, stage, &session.flows).await?;
    let mut sessions = app.uiaa.lock();
    let session = sessions.by_id.get_mut(id).ok_or_else(lost)?;
    session.passed.add(stage.clone(), ticket);
    Ok(())
}

/// Checks what a client says to prove itself against `flows`: lists of stages, any one of which is enough.
///
/// # Errors
/// [`Error::Uiaa`] as long as no flow is complete; the client then comes back with its session.
pub async fn authenticate(app: &App, task: Task<'_>, flows: &[Vec<AuthType>]) -> Result<Passed> {
    let now = app.clock.now();
    let found = app.uiaa.find(task, now);
    let lost = found.is_none() && task.auth.is_some_and(|auth| auth.session().is_some());
    let mut failure = lost.then(|| {
        let message = "this session has ended or was for something else";
        Error::refused(message)
    });
    let (id, mut passed) = match found {
        Some((id, passed)) => (Some(id), passed),
        None => (None, Passed::default()),
    };
    if let Some((auth, stage)) = task.auth.and_then(|auth| Some((auth, auth.auth_type()?)))
        && !lost
    {
        refuse_others(app, task.requester, auth).await?;
        let user = task.requester.map(|requester| requester.user);
        match pass(app, user, auth, &stage, flows).await {
            Ok(ticket) => passed.add(stage, ticket),
            Err(error) => failure = Some(error),
        }
    }
    let complete = |flow: &Vec<AuthType>| flow.iter().all(|stage| passed.stages.contains(stage));
    if failure.is_none() && flows.iter().any(complete) {
        if let Some(id) = id {
            app.uiaa.lock().remove(&id);
        }
        return Ok(passed);
    }
    let id = id.unwrap_or_else(|| app.uiaa.begin(task, flows, now));
    if let Some(session) = app.uiaa.lock().by_id.get_mut(&id) {
        session.passed = passed.clone();
    }
    let mut info = UiaaInfo::new(flows.iter().cloned().map(AuthFlow::new).collect());
    info.completed = passed.stages;
    info.params = Some(serde_json::value::to_raw_value(&Map::new()).map_err(Error::internal)?);
    info.session = Some(id);
    info.auth_error = failure.map(stage_error).transpose()?.map(Box::new);
    Err(Error::Uiaa(Box::new(info)))
}

/// Refuses a proof that somebody else gives. Trying again in the same session would be of no use.
async fn refuse_others(app: &App, requester: Option<&Requester>, auth: &AuthData) -> Result<()> {
    let (Some(requester), AuthData::Password(data)) = (requester, auth) else {
        return Ok(());
    };
    match accounts::identified(app, &data.identifier).await? {
        Some(account) if account.user != requester.user => {
            rate_limit::check(app, Class::LoginPerAccount, requester.user)?;
            Err(Error::forbidden(
                "you are signed in as somebody else than this password is for",
            ))
        }
        _ => Ok(()),
    }
}

/// What is said of a stage that failed. What has nothing to do with the proof itself ends the request.
fn stage_error(error: Error) -> Result<StandardErrorBody> {
    match error {
        Error::Matrix { kind, message, .. } if !matches!(*kind, ErrorKind::LimitExceeded(_)) => {
            Ok(StandardErrorBody::new(*kind, message))
        }
        error => Err(error),
    }
}

/// Checks one stage, for whoever is signed in.
async fn pass(
    app: &App,
    user: Option<UserNid>,
    auth: &AuthData,
    stage: &AuthType,
    flows: &[Vec<AuthType>],
) -> Result<Option<Ticket>> {
    if !flows.iter().any(|flow| flow.contains(stage)) {
        return Err(Error::unrecognized("this is not a stage of any flow"));
    }
    match auth {
        AuthData::Dummy(_) => Ok(None),
        AuthData::RegistrationToken(data) => match accounts::ticket(app, &data.token).await? {
            Some(ticket) => Ok(Some(ticket)),
            None => Err(Error::forbidden("this registration token is not valid")),
        },
        AuthData::Password(data) => {
            let wrong = || Error::forbidden("the name or the password is wrong");
            let user = user.ok_or_else(wrong)?;
            rate_limit::check(app, Class::LoginPerAccount, user)?;
            let account = accounts::identified(app, &data.identifier).await?;
            // Somebody else's password would prove nothing, so it is not looked at: that takes time.
            let own = account.filter(|account| account.user == user);
            let own = own.ok_or_else(wrong)?;
            sessions::check_password(app, Some(own), data.password.clone()).await?;
            Ok(None)
        }
        _ => Err(Error::unrecognized("this stage is not known here")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(body: &Bytes) -> Task<'_> {
        Task {
            path: "/here",
            body,
            requester: None,
            auth: None,
        }
    }

    #[test]
    fn sessions_are_bounded_in_number_and_size() {
        let uiaa = Uiaa::default();
        let big = Bytes::from(vec![b' '; KEPT_BYTES_EACH]);
        for _ in 0..2 * KEPT_BYTES / KEPT_BYTES_EACH {
            uiaa.begin(task(&big), &[], 0);
        }
        assert!(uiaa.lock().kept_bytes <= KEPT_BYTES);
        for _ in 0..SESSIONS + 10 {
            uiaa.begin(task(&Bytes::new()), &[], 0);
        }
        assert!(uiaa.lock().by_id.len() <= SESSIONS);
        assert_eq!(uiaa.lock().kept_bytes, 0);
        uiaa.begin(task(&Bytes::new()), &[], LIFETIME);
        assert_eq!(uiaa.lock().by_id.len(), 1);
    }

    #[test]
    fn body_is_completed_from_its_session_only() {
        let uiaa = Uiaa::default();
        let first = Bytes::from(r#"{"a":1,"b":2}"#);
        let id = uiaa.begin(task(&first), &[], 0);
        let sent = Bytes::from(format!(r#"{{"auth":{{"session":"{id}"}},"b":3}}"#));
        let read = |bytes: Bytes| -> Value { serde_json::from_slice(&bytes).unwrap() };
        let completed = read(uiaa.complete("/here", sent.clone(), 1));
        assert_eq!((&completed["a"], &completed["b"]), (&1.into(), &3.into()));
        assert_eq!(uiaa.complete("/elsewhere", sent.clone(), 1), sent);
        assert_eq!(uiaa.complete("/here", sent.clone(), LIFETIME), sent);
        let empty = Bytes::from(r#"{"auth":{},"b":3}"#);
        assert!(read(uiaa.complete("/here", empty, 1)).get("auth").is_none());
    }
}
