//! Local accounts: their names, how they are made, and who may make one.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use http::StatusCode;
use rand::seq::IndexedRandom as _;
use ruma::{
    OwnedUserId, UserId,
    api::{client::uiaa::UserIdentifier, error::ErrorKind},
};

use crate::{
    app::App,
    config::RegistrationMode,
    error::{Error, Result},
    log::{AppendError, Change},
    storage::{
        UserNid,
        accounts::{self, Account},
        profiles, tokens,
    },
};

/// The longest user id, in bytes ("User Identifiers").
const LONGEST_ID: usize = 255;

/// What lets somebody make an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ticket {
    /// Nothing is needed, or it was checked already.
    Free,
    /// A registration token from the settings, which can be used for ever.
    Configured,
    /// A stored registration token.
    Token(String),
    /// The token of the first administrator.
    First(String),
}

/// An account to be made.
#[derive(Debug)]
pub struct NewAccount<'a> {
    /// Its name, from [`new_user_id`].
    pub user_id: &'a UserId,
    /// The hash of its password, if it has one.
    pub password_hash: Option<String>,
    /// Whether it is an administrator's.
    pub is_admin: bool,
    /// Whether it is a guest's.
    pub is_guest: bool,
    /// What lets it be made.
    pub ticket: Ticket,
    /// What the user is called; their name if nothing else is said.
    pub display_name: Option<String>,
    /// `bot` or `support`, as Synapse's administrators know them.
    pub user_type: Option<String>,
}

impl<'a> NewAccount<'a> {
    /// An account of which nothing is known but the name.
    #[must_use]
    pub fn new(user_id: &'a UserId) -> Self {
        Self {
            user_id,
            password_hash: None,
            is_admin: false,
            is_guest: false,
            ticket: Ticket::Free,
            display_name: None,
            user_type: None,
        }
    }
}

fn invalid_username(message: &str) -> Error {
    Error::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidUsername, message)
}

fn user_in_use() -> Error {
    Error::new(
        StatusCode::BAD_REQUEST,
        ErrorKind::UserInUse,
        "this name is taken",
    )
}

/// The user id that an account with this name would have. Capitals become small.
///
/// # Errors
/// `M_INVALID_USERNAME` if the name has other characters than "User Identifiers" allows, is too long, or is kept for
/// others: those of digits only are for guests, those that begin with `_` for application services.
pub fn new_user_id(app: &App, name: &str) -> Result<OwnedUserId> {
    let name = plain(name)?;
    let id = user_id(app, &name)?;
    app.services.expect_free(&id)?;
    if name.starts_with('_') || name.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid_username("such names are reserved"));
    }
    Ok(id)
}

/// A name in small letters, if it has nothing else in it than names may have.
fn plain(name: &str) -> Result<String> {
    let name = name.to_ascii_lowercase();
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=-/+".contains(&b);
    if name.is_empty() || !name.bytes().all(allowed) {
        return Err(invalid_username(
            "a name has the characters a-z, 0-9, \".\", \"_\", \"=\", \"-\", \"/\" and \"+\"",
        ));
    }
    Ok(name)
}

fn user_id(app: &App, localpart: &str) -> Result<OwnedUserId> {
    let id = format!("@{localpart}:{}", app.name());
    if id.len() > LONGEST_ID {
        return Err(invalid_username("the name is too long"));
    }
    OwnedUserId::try_from(id).map_err(|_| invalid_username("this cannot be a name"))
}

/// The user id that a user of an application service with this name would have.
///
/// # Errors
/// `M_INVALID_USERNAME` as [`new_user_id`], but for the names that begin with `_`.
pub fn service_user_id(app: &App, name: &str) -> Result<OwnedUserId> {
    user_id(app, &plain(name)?)
}

/// Whether an account with this user id can be made.
///
/// # Errors
/// `M_USER_IN_USE` if there is one already, or was: names are never used again.
pub async fn expect_free(app: &App, id: &UserId) -> Result<()> {
    match accounts::by_localpart(&app.db, id.localpart()).await? {
        Some(_) => Err(user_in_use()),
        None => Ok(()),
    }
}

/// A name for somebody who has asked for none. Guests have digits only.
///
/// # Errors
/// `M_INVALID_USERNAME` if the name of the server leaves no room for one.
pub fn any_user_id(app: &App, is_guest: bool) -> Result<OwnedUserId> {
    let alphabet: &[u8] = if is_guest {
        b"0123456789"
    } else {
        b"abcdefghijkmnpqrstuvwxyz"
    };
    let mut rng = rand::rng();
    let name: String = (0..16)
        .filter_map(|_| alphabet.choose(&mut rng).copied().map(char::from))
        .collect();
    user_id(app, &name)
}

/// Makes an account.
///
/// # Errors
/// `M_USER_IN_USE` if the name is taken, `M_FORBIDDEN` if the ticket has been used up meanwhile.
pub async fn create(app: &App, new: NewAccount<'_>) -> Result<UserNid> {
    let user = app.user(new.user_id).await?;
    let mut change = Change::new();
    punch(app, &mut change, &new.ticket);
    let display_name = new.display_name.as_deref();
    let display_name = display_name.unwrap_or(new.user_id.localpart());
    let json = serde_json::to_string(display_name).map_err(Error::internal)?;
    let folded = display_name.to_lowercase();
    change.write(profiles::set(user, "displayname", &json, Some(&folded)));
    let account = Account {
        user,
        password_hash: new.password_hash,
        created_ts: app.clock.now(),
        is_admin: new.is_admin || matches!(new.ticket, Ticket::First(_)),
        is_guest: new.is_guest,
        deactivated: false,
        user_type: new.user_type,
    };
    if account.is_admin {
        change.write(tokens::drop_first());
    }
    change.write(accounts::add(new.user_id.localpart(), account));
    match app.log.append(change).await {
        Ok(_) => {
            tracing::info!(user = %new.user_id, "an account was made");
            Ok(user)
        }
        Err(AppendError::Duplicate) => Err(user_in_use()),
        Err(AppendError::Unexpected) => Err(used_up()),
        Err(error) => Err(error.into()),
    }
}

/// Uses a ticket up.
fn punch(app: &App, change: &mut Change, ticket: &Ticket) {
    match ticket {
        Ticket::Free | Ticket::Configured => {}
        Ticket::Token(token) => {
            change.write(tokens::use_registration(token, app.clock.now()));
        }
        Ticket::First(token) => {
            change.write(tokens::use_first(token));
        }
    }
}

fn used_up() -> Error {
    Error::forbidden("the registration token has been used up meanwhile")
}

/// Makes a guest a user like all others, under the same id.
///
/// # Errors
/// `M_FORBIDDEN` if the guest is none any more or the ticket has been used up meanwhile.
pub async fn upgrade_guest(
    app: &App,
    guest: UserNid,
    password_hash: &str,
    ticket: &Ticket,
) -> Result<()> {
    let mut change = Change::new();
    punch(app, &mut change, ticket);
    change.write(accounts::upgrade_guest(
        guest,
        password_hash,
        matches!(ticket, Ticket::First(_)),
    ));
    match app.log.append(change).await {
        Ok(_) => {}
        Err(AppendError::Unexpected) => return Err(used_up()),
        Err(error) => return Err(error.into()),
    }
    app.sessions.forget(|requester| requester.user == guest);
    Ok(())
}

/// What a registration token is good for now, if anything.
///
/// # Errors
/// If the database fails.
pub async fn ticket(app: &App, token: &str) -> Result<Option<Ticket>> {
    let stored = tokens::registration(&app.db, token, app.clock.now()).await?;
    if stored.is_some_and(|stored| stored.is_first) {
        return Ok(Some(Ticket::First(token.to_owned())));
    }
    let registration = &app.config.registration;
    if registration.mode == RegistrationMode::Closed {
        return Ok(None);
    }
    if registration.tokens.iter().any(|t| t.reveal() == token) {
        return Ok(Some(Ticket::Configured));
    }
    Ok(stored.map(|_| Ticket::Token(token.to_owned())))
}

/// The token with which an administrator is registered, made now if there is none; nothing while there is an
/// administrator.
///
/// # Errors
/// If the database fails.
pub async fn first_token(app: &App) -> Result<Option<String>> {
    if accounts::any_admin(&app.db).await? {
        return Ok(None);
    }
    if let Some(token) = tokens::first(&app.db).await? {
        return Ok(Some(token));
    }
    let token = crate::auth::new_token("first");
    let mut change = Change::new();
    change.write(tokens::add_first(&token));
    app.log.append(change).await?;
    Ok(Some(token))
}

/// The local account that a client means by an identifier: a user id or its local part.
///
/// # Errors
/// If the database fails.
pub async fn identified(app: &App, identifier: &UserIdentifier) -> Result<Option<Account>> {
    match identifier {
        UserIdentifier::Matrix(matrix) => named(app, &matrix.user).await,
        // No account here has an address or a telephone number.
        _ => Ok(None),
    }
}

/// The local account with this user id or local part.
///
/// # Errors
/// If the database fails.
pub async fn named(app: &App, name: &str) -> Result<Option<Account>> {
    let localpart = if name.starts_with('@') {
        match UserId::parse(name) {
            Ok(id) if app.is_local(&id) => id.localpart().to_owned(),
            _ => return Ok(None),
        }
    } else {
        name.to_owned()
    };
    if let Some(account) = accounts::by_localpart(&app.db, &localpart).await? {
        return Ok(Some(account));
    }
    // Telephones like to begin with a capital.
    let small = localpart.to_ascii_lowercase();
    if small == localpart {
        return Ok(None);
    }
    Ok(accounts::by_localpart(&app.db, &small).await?)
}

/// The nonces that `/_synapse/admin/v1/register` gave out, with their ends in milliseconds since 1970.
#[derive(Debug, Default)]
pub struct Nonces(Mutex<VecDeque<(String, i64)>>);

/// How many nonces are kept; then the oldest end.
const NONCES: usize = 1000;
/// How long a nonce is good, in milliseconds.
const NONCE_LIFETIME: i64 = 60_000;

impl Nonces {
    /// A new nonce.
    pub fn give(&self, now: i64) -> String {
        let nonce = crate::auth::new_token("nonce");
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.push_back((nonce.clone(), now + NONCE_LIFETIME));
        if nonces.len() > NONCES {
            nonces.pop_front();
        }
        nonce
    }

    /// Whether this nonce was given out lately. It is used up with that.
    pub fn take(&self, nonce: &str, now: i64) -> bool {
        let mut nonces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nonces.retain(|(_, ends)| *ends > now);
        match nonces.iter().position(|(given, _)| given == nonce) {
            Some(index) => nonces.remove(index).is_some(),
            None => false,
        }
    }
}

/// The users who had themselves erased when their accounts were closed.
#[derive(Debug, Default)]
pub struct Erased(RwLock<HashSet<UserNid>>);

impl Erased {
    /// These users.
    #[must_use]
    pub fn new(users: Vec<UserNid>) -> Self {
        Self(RwLock::new(users.into_iter().collect()))
    }

    fn read(&self) -> RwLockReadGuard<'_, HashSet<UserNid>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }

    /// Whether a user is one of them.
    #[must_use]
    pub fn contains(&self, user: UserNid) -> bool {
        self.read().contains(&user)
    }

    /// One more. To be called once the database knows it.
    pub fn add(&self, user: UserNid) {
        let mut users = self.0.write().unwrap_or_else(PoisonError::into_inner);
        users.insert(user);
    }
}
