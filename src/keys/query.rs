//! What is known of the keys of people and their devices, for those who want to encrypt to them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use futures_util::FutureExt as _;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedDeviceId, OwnedServerName, OwnedUserId, UserId,
    api::federation::keys::get_keys,
    encryption::{CrossSigningKey, DeviceKeys, UnsignedDeviceInfo},
    serde::Raw,
};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{check, expect_few, others, remote};
use crate::{
    app::App,
    error::{Error, Result},
    storage::{
        UserNid,
        cross_signing::{self, Signature},
        keys, remote_devices,
    },
};

/// Of how many users the keys are read at once.
const USERS: usize = 500;
/// How many lists of devices are asked for, for one request.
const LISTS: usize = 64;

/// Of which devices the keys are wanted; of all that a user has where none is named.
pub type Queried = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

/// The keys of users, as clients are told them: clients expect also what is empty.
#[derive(Debug, Default, Serialize)]
pub struct Keys {
    /// Those of their devices.
    #[serde(rename = "device_keys")]
    pub devices: BTreeMap<OwnedUserId, BTreeMap<OwnedDeviceId, Raw<DeviceKeys>>>,
    /// Those that they are known by.
    #[serde(rename = "master_keys")]
    pub master: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// Those with which they sign their devices.
    #[serde(rename = "self_signing_keys")]
    pub self_signing: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// Those with which they sign other users; each is for its user only.
    #[serde(rename = "user_signing_keys")]
    pub user_signing: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>,
    /// The servers that could not be asked, and why.
    pub failures: BTreeMap<String, Value>,
}

/// Who looks at keys.
#[derive(Clone, Copy, Debug)]
pub enum Eyes {
    /// A local user.
    User(UserNid),
    /// Another server. It learns what people call their devices if the settings say so.
    Server,
}

impl Eyes {
    fn user(self) -> Option<UserNid> {
        match self {
            Self::User(user) => Some(user),
            Self::Server => None,
        }
    }
}

/// The keys of users here and on other servers, which have so much time to answer, as a local user sees them.
///
/// # Errors
/// `M_TOO_LARGE` if those are too many; if the database fails.
pub async fn query(
    app: &App,
    viewer: UserNid,
    queried: Queried,
    timeout: Duration,
) -> Result<Keys> {
    expect_few(&queried, Vec::len)?;
    let (here, elsewhere) = queried.into_iter().partition(|(id, _)| app.is_local(id));
    let mut keys = query_here(app, &here, Eyes::User(viewer)).await?;
    let until = others::deadline(timeout);
    let unknown = add_known(app, &mut keys, elsewhere, viewer).await?;
    if unknown.is_empty() {
        return Ok(keys);
    }
    let _turn = others::turn(app, viewer, until).await;
    let questions = questions(app, &unknown).await?;
    let asked = questions.into_iter().map(|question| {
        let server = question.server.clone();
        let answer = async move {
            let answer = question.ask(app).await?;
            Ok((question.queried, answer))
        };
        (server, answer.boxed())
    });
    let (answers, failures) = others::all(asked.collect(), until).await;
    keys.failures = failures;
    add_known(app, &mut keys, unknown, viewer).await?;
    for (_, (asked, answer)) in answers {
        if let Some(answer) = answer {
            add_answer(app, &mut keys, &asked, answer, viewer).await?;
        }
    }
    Ok(keys)
}

/// What another server is asked.
struct Question {
    server: OwnedServerName,
    queried: Queried,
    /// The one user whose list is asked for, to be kept.
    list: Option<UserNid>,
}

impl Question {
    /// Asks for the list, if it is a question for one; for the keys, if it is none or there is no good answer.
    async fn ask(&self, app: &App) -> Result<Option<get_keys::v1::Response>> {
        if let (Some(user), Some((id, _))) = (self.list, self.queried.first_key_value()) {
            match remote::fetch(app, id, user).await {
                Ok(()) => return Ok(None),
                Err(error) => tracing::debug!(user = %id, %error, "a list of devices is not known"),
            }
        }
        let request = get_keys::v1::Request::new(self.queried.clone());
        let answer = others::ask_one(app, &self.server, request).await?;
        Ok(Some(answer))
    }
}

/// What to ask, to learn the keys of users of other servers: of so many with whom somebody here shares a room each list, of
/// the rest their keys.
async fn questions(app: &App, unknown: &Queried) -> Result<Vec<Question>> {
    let ids = unknown.keys().map(|id| &**id);
    let users = app.names.find_users(&app.db, ids).await?;
    let nids: Vec<UserNid> = users.values().copied().collect();
    let near: HashSet<UserNid> = remote_devices::near(&app.db, &nids)
        .await?
        .into_iter()
        .take(LISTS)
        .collect();
    let mut questions = Vec::new();
    let mut rest: BTreeMap<OwnedServerName, Queried> = BTreeMap::new();
    for (id, devices) in unknown {
        let (id, devices) = (id.clone(), devices.clone());
        let server = id.server_name().to_owned();
        match users.get(&id).filter(|user| near.contains(user)) {
            Some(user) => questions.push(Question {
                server,
                queried: Queried::from([(id, devices)]),
                list: Some(*user),
            }),
            None => drop(rest.entry(server).or_default().insert(id, devices)),
        }
    }
    let rest = rest.into_iter().map(|(server, queried)| Question {
        server,
        queried,
        list: None,
    });
    questions.extend(rest);
    Ok(questions)
}

/// The keys of local users.
///
/// # Errors
/// `M_TOO_LARGE` if those are too many; if the database fails.
pub async fn query_here(app: &App, queried: &Queried, eyes: Eyes) -> Result<Keys> {
    expect_few(queried, Vec::len)?;
    let ids = queried.keys().filter(|id| app.is_local(id));
    let ids: Vec<&UserId> = ids.map(|id| &**id).collect();
    let mut found = Keys::default();
    for ids in ids.chunks(USERS) {
        let nids = app.names.find_users(&app.db, ids.iter().copied()).await?;
        // That somebody has no devices is told too.
        let none = |id: &&UserId| ((*id).to_owned(), BTreeMap::new());
        found.devices.extend(ids.iter().map(none));
        let users: Vec<UserNid> = nids.values().copied().collect();
        let devices = keys::of_users(&app.db, &users).await?;
        add_stored(app, &mut found, queried, (nids, devices), eyes).await?;
    }
    Ok(found)
}

/// Adds what is known of users of other servers; answers those of whom it is not, or not any more.
async fn add_known(
    app: &App,
    found: &mut Keys,
    mut queried: Queried,
    viewer: UserNid,
) -> Result<Queried> {
    let ids: Vec<OwnedUserId> = queried.keys().cloned().collect();
    for ids in ids.chunks(USERS) {
        let ids = ids.iter().map(|id| &**id);
        let mut nids = app.names.find_users(&app.db, ids).await?;
        let users: Vec<UserNid> = nids.values().copied().collect();
        let known: HashSet<UserNid> = remote_devices::known(&app.db, &users)
            .await?
            .into_iter()
            .collect();
        if known.is_empty() {
            continue;
        }
        nids.retain(|_, nid| known.contains(nid));
        let users: Vec<UserNid> = known.into_iter().collect();
        let devices = keys::of_others(&app.db, &users).await?;
        let of_these: Vec<OwnedUserId> = nids.keys().cloned().collect();
        for id in &of_these {
            found.devices.insert(id.clone(), BTreeMap::new());
        }
        add_stored(app, found, &queried, (nids, devices), Eyes::User(viewer)).await?;
        for id in of_these {
            queried.remove(&id);
        }
    }
    Ok(queried)
}

/// Adds what the database has of some users.
async fn add_stored(
    app: &App,
    found: &mut Keys,
    queried: &Queried,
    (nids, devices): (HashMap<OwnedUserId, UserNid>, Vec<keys::DeviceKeys>),
    eyes: Eyes,
) -> Result<()> {
    let users: Vec<UserNid> = nids.values().copied().collect();
    let ids: HashMap<UserNid, OwnedUserId> = nids.into_iter().map(|(id, nid)| (nid, id)).collect();
    let signatures = Signatures::read(app, &users, eyes.user()).await?;
    let has_names = eyes.user().is_some() || app.config.federation.device_names;
    for device in devices {
        let Some(user) = ids.get(&device.user) else {
            continue;
        };
        let device_id = OwnedDeviceId::from(device.device_id.as_str());
        let wanted = queried.get(user);
        if !wanted.is_some_and(|wanted| wanted.is_empty() || wanted.contains(&device_id)) {
            continue;
        }
        let mut object = parse(&device.json)?;
        signatures.add(&mut object, device.user, &device.device_id);
        if let Some(name) = device.display_name.filter(|_| has_names) {
            let name = CanonicalJsonValue::String(name);
            let unsigned = CanonicalJsonObject::from([("device_display_name".into(), name)]);
            object.insert("unsigned".into(), CanonicalJsonValue::Object(unsigned));
        }
        let of_user = found.devices.entry(user.clone()).or_default();
        of_user.insert(device_id, raw(object)?);
    }
    for key in cross_signing::of_users(&app.db, &users).await? {
        let Some(user) = ids.get(&key.user) else {
            continue;
        };
        let keys = match key.usage.as_str() {
            "master" => &mut found.master,
            "self_signing" => &mut found.self_signing,
            "user_signing" if eyes.user() == Some(key.user) => &mut found.user_signing,
            _ => continue,
        };
        let mut object = parse(&key.json)?;
        if let Some(public) = public_key(&object) {
            signatures.add(&mut object, key.user, &public);
        }
        keys.insert(user.clone(), raw(object)?);
    }
    Ok(())
}

/// Adds what another server says of its users, as far as it was asked, with the signatures that the viewer has made.
async fn add_answer(
    app: &App,
    found: &mut Keys,
    asked: &Queried,
    answer: get_keys::v1::Response,
    viewer: UserNid,
) -> Result<()> {
    for (user, devices) in answer.device_keys {
        let Some(wanted) = asked.get(&user) else {
            continue;
        };
        let devices = devices.into_iter().filter(|(device, keys)| {
            let is_wanted = wanted.is_empty() || wanted.contains(device);
            is_wanted && are_of(keys.json(), &user, Some(device.as_str()))
        });
        let devices = devices.collect();
        found.devices.insert(user, devices);
    }
    let ids = asked.keys().map(|id| &**id);
    let nids = app.names.find_users(&app.db, ids).await?;
    let users: Vec<UserNid> = nids.values().copied().collect();
    let signatures = Signatures::read(app, &users, Some(viewer)).await?;
    for (user, key) in answer.master_keys {
        if !asked.contains_key(&user) || !are_of(key.json(), &user, None) {
            continue;
        }
        let Ok(mut object) = check::object(key.json()) else {
            continue;
        };
        if let (Some(nid), Some(public)) = (nids.get(&user), public_key(&object)) {
            signatures.add(&mut object, *nid, &public);
        }
        found.master.insert(user, raw(object)?);
    }
    for (user, key) in answer.self_signing_keys {
        if asked.contains_key(&user) && are_of(key.json(), &user, None) {
            found.self_signing.insert(user, key);
        }
    }
    Ok(())
}

/// What a device is called, as its keys are shown to somebody.
#[must_use]
pub fn display_name(keys: &Raw<DeviceKeys>) -> Option<String> {
    let unsigned = keys.get_field::<UnsignedDeviceInfo>("unsigned");
    unsigned.ok().flatten()?.device_display_name
}

/// Whether keys are said to be those of a user, and of a device.
fn are_of(json: &RawValue, user: &UserId, device: Option<&str>) -> bool {
    let Ok(object) = check::object(json) else {
        return false;
    };
    check::text(&object, "user_id") == Some(user.as_str())
        && device.is_none_or(|device| check::text(&object, "device_id") == Some(device))
}

/// The public half of a key that users sign with, which names it.
pub(super) fn public_key(object: &CanonicalJsonObject) -> Option<String> {
    let keys = object.get("keys")?.as_object()?;
    let key = keys.values().next()?.as_str()?;
    Some(key.to_owned())
}

/// Reads keys that are stored.
pub(super) fn parse(json: &str) -> Result<CanonicalJsonObject> {
    serde_json::from_str(json).map_err(Error::internal)
}

fn raw<T>(object: CanonicalJsonObject) -> Result<Raw<T>> {
    let json = CanonicalJsonValue::Object(object).to_string();
    let json = RawValue::from_string(json).map_err(Error::internal)?;
    Ok(Raw::from_json(json))
}

/// The signatures that were added to what is some users', as far as somebody sees them: those that the users made
/// themselves, and those that the viewer made.
struct Signatures {
    of_keys: HashMap<(UserNid, String), Vec<Signature>>,
    signers: HashMap<UserNid, OwnedUserId>,
}

impl Signatures {
    async fn read(app: &App, users: &[UserNid], viewer: Option<UserNid>) -> Result<Self> {
        let mut of_keys: HashMap<_, Vec<_>> = HashMap::new();
        let mut signers = Vec::new();
        if !users.is_empty() {
            for signature in cross_signing::signatures(&app.db, users, viewer).await? {
                signers.push(signature.signer);
                let place = (signature.user, signature.key_id.clone());
                of_keys.entry(place).or_default().push(signature);
            }
        }
        let signers = app.names.user_ids(&app.db, &signers).await?;
        Ok(Self { of_keys, signers })
    }

    /// Adds those of one key.
    fn add(&self, object: &mut CanonicalJsonObject, user: UserNid, key_id: &str) {
        let added = self.of_keys.get(&(user, key_id.to_owned()));
        for signature in added.into_iter().flatten() {
            if let Some(signer) = self.signers.get(&signature.signer) {
                let Signature {
                    signer_key,
                    signature,
                    ..
                } = signature;
                check::add_signature(object, signer, signer_key, signature);
            }
        }
    }
}
