//! `cross_signing_key`, `key_signature`: with which keys users sign, and what they have signed.

use super::{Db, Insert, Result, UserNid, Write};
use crate::{args, sql};

/// A key with which a user signs.
#[derive(Clone, Debug)]
pub struct CrossSigningKey {
    /// Whose it is.
    pub user: UserNid,
    /// `master`, `self_signing` or `user_signing`.
    pub usage: String,
    /// The key with the signatures that it was uploaded with, as canonical JSON.
    pub json: String,
}

/// A signature that was added to a key later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Signature {
    /// Whose key was signed.
    pub user: UserNid,
    /// What was signed: a device's id, or a public key of the user.
    pub key_id: String,
    /// Who has signed it.
    pub signer: UserNid,
    /// With what, as in `ed25519:ID`.
    pub signer_key: String,
    /// The signature.
    pub signature: String,
}

/// The keys of some users.
pub async fn of_users(db: &Db, users: &[UserNid]) -> Result<Vec<CrossSigningKey>> {
    let query = sql!(
        "SELECT user_nid, usage, json FROM cross_signing_key WHERE user_nid ",
        list(1)
    );
    db.rows(query, args![users])
        .await?
        .iter()
        .map(|row| {
            Ok(CrossSigningKey {
                user: UserNid(row.get(0)?),
                usage: row.get(1)?,
                json: row.get(2)?,
            })
        })
        .collect()
}

static KEY: Insert = Insert {
    table: "cross_signing_key",
    columns: &["user_nid", "usage", "json"],
    key: 2,
    conflict: "ON CONFLICT (user_nid, usage) DO UPDATE SET json = excluded.json",
};

/// Sets a key of a user.
#[must_use]
pub fn set(user: UserNid, usage: &str, json: &str) -> Write {
    Write::Insert(&KEY, args![user, usage, json])
}

/// Sets the first master key of a user; the change is refused if there is one.
#[must_use]
pub fn add_master(user: UserNid, json: &str) -> Write {
    let statement = sql!(
        "INSERT INTO cross_signing_key (user_nid, usage, json) VALUES ($1, 'master', $2) ",
        "ON CONFLICT (user_nid, usage) DO NOTHING"
    );
    Write::Expect(statement, args![user, json], 1)
}

/// The signatures of what is some users' that they made themselves, and those that `viewer` made.
pub async fn signatures(
    db: &Db,
    users: &[UserNid],
    viewer: Option<UserNid>,
) -> Result<Vec<Signature>> {
    let query = sql!(
        "SELECT user_nid, key_id, signer_nid, signer_key, signature FROM key_signature ",
        "WHERE (signer_nid = user_nid OR signer_nid = $2) AND user_nid ",
        list(1)
    );
    // Nobody has this one.
    let viewer = viewer.unwrap_or(UserNid(-1));
    db.rows(query, args![users, viewer])
        .await?
        .iter()
        .map(|row| {
            Ok(Signature {
                user: UserNid(row.get(0)?),
                key_id: row.get(1)?,
                signer: UserNid(row.get(2)?),
                signer_key: row.get(3)?,
                signature: row.get(4)?,
            })
        })
        .collect()
}

static SIGNATURE: Insert = Insert {
    table: "key_signature",
    columns: &[
        "user_nid",
        "key_id",
        "signer_nid",
        "signer_key",
        "signature",
    ],
    key: 4,
    conflict: "ON CONFLICT (user_nid, key_id, signer_nid, signer_key) DO UPDATE SET signature = excluded.signature",
};

/// Adds a signature.
#[must_use]
pub fn sign(signature: &Signature) -> Write {
    let Signature {
        user,
        key_id,
        signer,
        signer_key,
        signature,
    } = signature;
    Write::Insert(
        &SIGNATURE,
        args![
            *user,
            key_id.as_str(),
            *signer,
            signer_key.as_str(),
            signature.as_str()
        ],
    )
}

/// Drops the signatures of something that is a user's: it has become something else.
#[must_use]
pub fn unsign(user: UserNid, key_id: &str) -> Write {
    let statement = sql!("DELETE FROM key_signature WHERE user_nid = $1 AND key_id = $2");
    Write::Run(statement, args![user, key_id])
}

/// Drops the signatures that a user has made with a key.
#[must_use]
pub fn unsign_with(signer: UserNid, signer_key: &str) -> Write {
    let statement = sql!("DELETE FROM key_signature WHERE signer_nid = $1 AND signer_key = $2");
    Write::Run(statement, args![signer, signer_key])
}

/// Forgets a key of a user.
#[must_use]
pub fn delete(user: UserNid, usage: &str) -> Write {
    let statement = sql!("DELETE FROM cross_signing_key WHERE user_nid = $1 AND usage = $2");
    Write::Run(statement, args![user, usage])
}

/// Forgets the keys of a user.
#[must_use]
pub fn delete_keys(user: UserNid) -> Write {
    let statement = sql!("DELETE FROM cross_signing_key WHERE user_nid = $1");
    Write::Run(statement, args![user])
}

/// Deletes all keys of a user, with the signatures of what is theirs and those that they have made.
#[must_use]
pub fn delete_all(user: UserNid) -> [Write; 3] {
    [
        sql!("DELETE FROM cross_signing_key WHERE user_nid = $1"),
        sql!("DELETE FROM key_signature WHERE user_nid = $1"),
        sql!("DELETE FROM key_signature WHERE signer_nid = $1"),
    ]
    .map(|statement| Write::Run(statement, args![user]))
}
