//! Bodies that are read as a whole, within what memory there is for them.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use ruma::api::error::ErrorKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::check_json;
use crate::error::{Error, Result};

/// How long a body may take to arrive. Uploads are read in pieces and have a limit of their own.
const BODY_TIME: Duration = Duration::from_mins(1);
/// What each body may take without a share of the memory for bodies, in bytes: as much as strangers may send, so that
/// they take nothing away from those who have an account.
pub(super) const FREE: usize = 32 << 10;
/// What all larger bodies together may take, in KiB. Who comes later waits.
const MEMORY: usize = 64 << 10;

/// The memory for the bodies of requests.
#[derive(Debug)]
pub struct Bodies {
    /// What larger bodies take from, in KiB.
    memory: Arc<Semaphore>,
    /// One body may take more when there is none left: else several of which each has a part would wait for one another.
    last: Arc<Semaphore>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            memory: Arc::new(Semaphore::new(MEMORY)),
            last: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The share of the memory that a body takes while it is needed.
#[derive(Debug, Default)]
pub struct Share {
    memory: Option<OwnedSemaphorePermit>,
    last: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Whether it is enough for so many bytes.
    fn suffices(&self, bytes: usize) -> bool {
        let kib = self
            .memory
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        bytes <= FREE || self.last.is_some() || bytes <= kib << 10
    }
}

impl Bodies {
    /// Reads a whole JSON body of at most `limit` bytes: an object, or nothing.
    ///
    /// # Errors
    /// `M_TOO_LARGE`, 408 if the body takes too long or there is no memory for it, `M_NOT_JSON` if it breaks off or is not
    /// JSON, and `M_BAD_JSON` if it is no object.
    pub async fn read(&self, body: Body, limit: usize) -> Result<(Bytes, Share)> {
        let (body, share) = tokio::time::timeout(BODY_TIME, self.collect(body, limit))
            .await
            .map_err(|_| {
                Error::new(
                    StatusCode::REQUEST_TIMEOUT,
                    ErrorKind::Unknown,
                    "the body took too long to arrive",
                )
            })??;
        check_json(&body)?;
        Ok((body, share))
    }

    async fn collect(&self, body: Body, limit: usize) -> Result<(Bytes, Share)> {
        let hint = body.size_hint();
        let announced = usize::try_from(hint.upper().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let too_large = || Error::too_large(format!("the body is larger than {limit} bytes"));
        if usize::try_from(hint.lower()).map_or(true, |least| least > limit) {
            return Err(too_large());
        }
        let mut body = Limited::new(body, limit);
        let mut read = BytesMut::new();
        let mut share = Share::default();
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
                Err(_) => return Err(Error::not_json("the body could not be read to its end")),
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            // The share grows with what has come: nobody takes memory from others by announcing much.
            let needed = read.len() + data.len();
            if !share.suffices(needed) {
                let most = (2 * needed).min(announced.min(limit)).max(needed);
                self.grow(&mut share, ((most >> 10) + 1).min(MEMORY))
                    .await?;
            }
            read.extend_from_slice(&data);
        }
        Ok((read.freeze(), share))
    }

    /// Makes a share one of so many KiB. Only who has none yet waits for memory; who has some and cannot get more at once waits
    /// for the turn to go on without.
    async fn grow(&self, share: &mut Share, kib: usize) -> Result<()> {
        let Some(memory) = &mut share.memory else {
            let kib = u32::try_from(kib).unwrap_or(u32::MAX);
            let memory = Arc::clone(&self.memory).acquire_many_owned(kib).await;
            share.memory = Some(memory.map_err(Error::internal)?);
            return Ok(());
        };
        let more = u32::try_from(kib - memory.num_permits()).unwrap_or(u32::MAX);
        match Arc::clone(&self.memory).try_acquire_many_owned(more) {
            Ok(more) => memory.merge(more),
            Err(_) => {
                let last = Arc::clone(&self.last).acquire_owned().await;
                share.last = Some(last.map_err(Error::internal)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{StreamExt as _, stream};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_has_to_arrive_in_time() {
        // A byte now and then is progress, but not enough of it.
        let drops = stream::unfold((), |()| async {
            tokio::time::sleep(BODY_TIME / 50).await;
            Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), ()))
        });
        let error = Bodies::default()
            .read(Body::from_stream(drops.boxed()), 1 << 20)
            .await;
        assert!(error.is_err_and(|error| error.has_status(StatusCode::REQUEST_TIMEOUT)));
    }

    #[tokio::test]
    async fn bodies_are_objects() {
        let read =
            async |body: &'static [u8]| match Bodies::default().read(Body::from(body), 100).await {
                Ok(_) => "",
                Err(Error::Matrix { kind, .. }) => match *kind {
                    ErrorKind::NotJson => "M_NOT_JSON",
                    ErrorKind::BadJson => "M_BAD_JSON",
                    ErrorKind::TooLarge => "M_TOO_LARGE",
                    _ => "another",
                },
                Err(_) => "another",
            };
        let cases: &[(&[u8], &str)] = &[
            (b"", ""),
            (b"null", ""),
            (b" {\"a\": 1.5} ", ""),
            (b"[]", "M_BAD_JSON"),
            (b"\"{}\"", "M_BAD_JSON"),
            (b"{} {}", "M_NOT_JSON"),
            (b"{\"a\":\"\xff\"}", "M_NOT_JSON"),
            (b" ", "M_NOT_JSON"),
            (&[b' '; 101], "M_TOO_LARGE"),
        ];
        for (body, expected) in cases {
            assert_eq!(read(body).await, *expected, "{body:?}");
        }
    }

    /// A body that announces more than comes, and then stands still.
    struct Stalled(Option<Bytes>);

    impl http_body::Body for Stalled {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
            match self.0.take() {
                Some(data) => std::task::Poll::Ready(Some(Ok(http_body::Frame::data(data)))),
                None => std::task::Poll::Pending,
            }
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(10 << 20)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_only_announced_takes_no_memory() {
        let bodies = Arc::new(Bodies::default());
        for _ in 0..100 {
            let bodies = Arc::clone(&bodies);
            let body = Body::new(Stalled(Some(Bytes::from(vec![b' '; FREE + 1]))));
            tokio::spawn(async move { bodies.read(body, 10 << 20).await.map(drop) });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let body = format!("{{\"a\":\"{}\"}}", "a".repeat(10 << 20));
        let read = bodies.read(Body::from(body), 11 << 20);
        let read = tokio::time::timeout(Duration::from_secs(1), read).await;
        assert!(read.is_ok_and(|read| read.is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_wait_for_memory() {
        let bodies = Bodies::default();
        let read = async || {
            let body = format!("{{\"a\":\"{}\"}}", "a".repeat(1 << 20));
            bodies.read(Body::from(body), 2 << 20).await
        };
        let mut held = Vec::new();
        for _ in 0..63 {
            held.push(read().await.unwrap());
        }
        assert!(read().await.is_err());
        bodies.read(Body::from("{}"), 2 << 20).await.unwrap();
        held.pop();
        read().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn large_bodies_do_not_wait_for_one_another() {
        let bodies = Bodies::default();
        let piece = Bytes::from(vec![b'a'; 1 << 20]);
        let read = || {
            let pieces = [Bytes::from_static(b"{\"a\":\"")].into_iter();
            let pieces = pieces.chain(std::iter::repeat_n(piece.clone(), 10));
            let pieces = pieces.chain([Bytes::from_static(b"\"}")]);
            let pieces = stream::iter(pieces).then(|piece| async {
                // The others are read meanwhile.
                tokio::task::yield_now().await;
                Ok::<_, Infallible>(piece)
            });
            let body = Body::from_stream(pieces);
            async { bodies.read(body, 11 << 20).await.map(drop) }
        };
        for read in futures_util::future::join_all((0..16).map(|_| read())).await {
            read.unwrap();
        }
        assert_eq!(bodies.memory.available_permits(), MEMORY);
        assert_eq!(bodies.last.available_permits(), 1);
    }
}
