//! An answer's body, which has to come to an end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, combinators::UnsyncBoxBody};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::Error;

/// How long a body may be slower than [`LEAST_SPEED`].
const GRACE: Duration = Duration::from_secs(10);
/// The speed below which a body is given up, in bytes per second.
const LEAST_SPEED: f64 = 1024.0;

/// What an answer may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long everything may take: to find the server, to connect, and to read the answer to its end.
    pub time: Duration,
    /// How many bytes the body of the answer may have.
    pub bytes: u64,
}

impl Default for Limits {
    /// One minute and 10 MiB.
    fn default() -> Self {
        Self {
            time: Duration::from_mins(1),
            bytes: 10 << 20,
        }
    }
}

impl Limits {
    /// The same with another time.
    #[must_use]
    pub fn time(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    /// The same with another size.
    #[must_use]
    pub fn bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }
}

type Inner = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// A body that is read piece by piece: within a size, until a point in time, and never for long below a least speed.
#[derive(Debug)]
pub struct Body {
    inner: Inner,
    limit: u64,
    received: u64,
    started: Instant,
    deadline: Instant,
    _place: Option<OwnedSemaphorePermit>,
}

impl Body {
    pub(super) fn new<B>(
        body: B,
        limit: u64,
        deadline: Instant,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, Error>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        if body.size_hint().lower() > limit {
            return Err(Error::TooLarge(limit));
        }
        Ok(Self {
            inner: body.map_err(Into::into).boxed_unsync(),
            limit,
            received: 0,
            started: Instant::now(),
            deadline,
            _place: place,
        })
    }

    /// The next piece, or `None` at the end.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::TimedOut`], or [`Error::Unreachable`] if the body breaks off.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            #[expect(clippy::cast_precision_loss, reason = "a speed need not be exact")]
            let earned = Duration::from_secs_f64(self.received as f64 / LEAST_SPEED);
            let until = self.deadline.min(self.started + GRACE + earned);
            let frame = tokio::time::timeout_at(until, self.inner.frame())
                .await
                .map_err(|_| Error::TimedOut)?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|error| Error::unreachable(&*error))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            self.received += data.len() as u64;
            if self.received > self.limit {
                return Err(Error::TooLarge(self.limit));
            }
            return Ok(Some(data));
        }
    }

    /// Reads all of it into memory.
    ///
    /// # Errors
    /// Those of [`Body::chunk`].
    pub async fn collect(mut self) -> Result<Bytes, Error> {
        let Some(first) = self.chunk().await? else {
            return Ok(Bytes::new());
        };
        let Some(second) = self.chunk().await? else {
            return Ok(first);
        };
        let mut whole = BytesMut::from(first);
        whole.extend_from_slice(&second);
        while let Some(chunk) = self.chunk().await? {
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{Stream, StreamExt as _, stream};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    fn body(chunks: impl Stream<Item = &'static [u8]> + Send + 'static, limits: Limits) -> Body {
        let frames =
            chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from_static(chunk))));
        let deadline = Instant::now() + limits.time;
        Body::new(StreamBody::new(frames), limits.bytes, deadline, None).unwrap()
    }

    /// Never ends; a piece every `pause`.
    fn drops(chunk: &'static [u8], pause: Duration) -> impl Stream<Item = &'static [u8]> + Send {
        Box::pin(stream::unfold((), move |()| async move {
            tokio::time::sleep(pause).await;
            Some((chunk, ()))
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_to_its_end() {
        for chunks in [&[][..], &[&b"abc"[..]], &[b"a", b"", b"b", b"c"]] {
            let whole = chunks.concat();
            let body = body(stream::iter(chunks.to_vec()), Limits::default().bytes(3));
            assert_eq!(body.collect().await.unwrap(), whole);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_end_is_cut_off() {
        let limits = Limits::default().bytes(1 << 20);
        let endless = body(stream::repeat(&[0; 1000][..]), limits);
        assert!(matches!(endless.collect().await, Err(Error::TooLarge(_))));
        let slow = body(drops(&[0; 100], Duration::from_secs(1)), limits);
        let began = Instant::now();
        assert!(matches!(slow.collect().await, Err(Error::TimedOut)));
        assert!(
            began.elapsed() < Duration::from_secs(13),
            "{:?}",
            began.elapsed()
        );
        let silent = body(stream::pending(), limits);
        assert!(matches!(silent.collect().await, Err(Error::TimedOut)));
        // Fast enough, but not for ever.
        let steady = body(drops(&[0; 5000], Duration::from_secs(1)), limits);
        let began = Instant::now();
        assert!(matches!(steady.collect().await, Err(Error::TimedOut)));
        assert_eq!(began.elapsed(), limits.time);
    }

    #[tokio::test]
    async fn what_is_announced_too_large_is_not_begun() {
        let announced = http_body_util::Full::new(Bytes::from_static(b"abcd"));
        let refused = Body::new(announced, 3, Instant::now(), None);
        assert!(matches!(refused, Err(Error::TooLarge(3))));
    }
}
