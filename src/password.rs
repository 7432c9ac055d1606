//! Passwords: Argon2id, off the threads that answer requests, and only so many at once.

use std::{sync::Arc, time::Duration};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::SaltString,
};
use http::StatusCode;
use ruma::api::error::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Result};

/// The longest password, in bytes. Longer ones only cost time.
const LONGEST: usize = 1024;
/// How many may wait for a hash; whoever comes then is told to try again.
const QUEUE: usize = 128;
/// What they are told to wait.
const FULL_WAIT: Duration = Duration::from_secs(2);
/// 19 MiB, two passes, one lane: what OWASP recommends.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);

/// Hashes passwords, as many at once as there are processors.
#[derive(Debug)]
pub struct Passwords {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Arc::new(Semaphore::new(processors)),
            waiting: Arc::new(Semaphore::new(QUEUE)),
        }
    }
}

impl Passwords {
    /// Hashes a new password for the database.
    ///
    /// # Errors
    /// `M_WEAK_PASSWORD` if it is empty, `M_INVALID_PARAM` if it has more than 1024 bytes, `M_LIMIT_EXCEEDED` if too
    /// many wait.
    pub async fn hash(&self, password: String) -> Result<String> {
        if password.is_empty() {
            return Err(Error::new(
                StatusCode::BAD_REQUEST,
                ErrorKind::WeakPassword,
                "the password is empty",
            ));
        }
        if password.len() > LONGEST {
            return Err(Error::invalid_param(format!(
                "the password has more than {LONGEST} bytes"
            )));
        }
        self.run(move || {
            let salt =
                SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(Error::internal)?;
            let hash = argon2()?.hash_password(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(Error::internal)
        })
        .await
    }

    /// Whether `password` is the one that `hash` was made of. Without a hash it takes as long and answers no, so that
    /// nobody learns from the time which accounts there are.
    ///
    /// # Errors
    /// `M_LIMIT_EXCEEDED` if too many wait.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool> {
        if password.len() > LONGEST {
            return Ok(false);
        }
        self.run(move || {
            let argon2 = argon2()?;
            match hash {
                Some(hash) => {
                    let hash = PasswordHash::new(&hash).map_err(Error::internal)?;
                    Ok(argon2.verify_password(password.as_bytes(), &hash).is_ok())
                }
                None => argon2
                    .hash_password_into(password.as_bytes(), &[0; 16], &mut [0; 32])
                    .map(|()| false)
                    .map_err(Error::internal),
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Ok(_waiting) = self.waiting.try_acquire() else {
            return Err(Error::limit_exceeded(FULL_WAIT));
        };
        let slot: OwnedSemaphorePermit = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(Error::internal)?;
        // The slot goes along: who gives up waiting does not free the processor.
        tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work()
        })
        .await
        .map_err(Error::internal)?
    }
}

fn argon2() -> Result<Argon2<'static>> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).map_err(Error::internal)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_same_password_is_right() {
        let passwords = Passwords::default();
        let hash = passwords.hash("correct horse".to_owned()).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        let verify = async |password: &str, hash: Option<&String>| {
            let answer = passwords.verify(password.to_owned(), hash.cloned()).await;
            answer.unwrap()
        };
        assert!(verify("correct horse", Some(&hash)).await);
        assert!(!verify("correct horse ", Some(&hash)).await);
        assert!(!verify("correct horse", None).await);
        assert!(!verify(&"x".repeat(2000), Some(&hash)).await);
    }

    #[tokio::test]
    async fn bad_passwords_are_refused() {
        let passwords = Passwords::default();
        for (password, code) in [
            ("", "M_WEAK_PASSWORD"),
            (&"x".repeat(1025), "M_INVALID_PARAM"),
        ] {
            let error = passwords.hash(password.to_owned()).await.unwrap_err();
            assert!(error.to_string().contains(code), "{error}");
        }
    }
}
