//! A file as an answer: what a browser may do with it, how long it may keep it, and parts of it.

use std::io::SeekFrom;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use ruma::{
    api::error::ErrorKind,
    http_headers::{CROSS_ORIGIN_RESOURCE_POLICY, ContentDisposition},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};
use tokio_util::io::ReaderStream;

use crate::error::{Error, Result};

/// How much is read from the disk at once, in bytes.
const CHUNK: usize = 64 << 10;

/// The policy that "Content repository" recommends.
const CONTENT_SECURITY_POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                                       style-src 'unsafe-inline'; object-src 'self';";

/// Who may keep an answer for others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cache {
    /// Only the client itself: it had to show a token.
    Private,
    /// Anybody on the way.
    Public,
}

/// A file to be sent.
#[derive(Debug)]
pub(super) struct Served {
    pub file: File,
    pub content_type: String,
    pub disposition: ContentDisposition,
    /// What names exactly these bytes.
    pub tag: String,
    pub cache: Cache,
}

/// Sends a file, or the part of it that the request asks for, or nothing if the client has it.
///
/// # Errors
/// If the disk fails.
pub(super) async fn serve(request: &HeaderMap, served: Served) -> Result<Response> {
    let mut file = served.file;
    let length = file.metadata().await.map_err(Error::internal)?.len();
    let tag = format!("\"{}\"", served.tag);
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    let cache = match served.cache {
        Cache::Private => "private, max-age=86400, immutable",
        Cache::Public => "public, max-age=86400, immutable",
    };
    let mut set = |name: HeaderName, text: &str| -> Result<()> {
        headers.insert(name, HeaderValue::from_str(text).map_err(Error::internal)?);
        Ok(())
    };
    set(header::ETAG, &tag)?;
    set(header::CACHE_CONTROL, cache)?;
    set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY)?;
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    set(CROSS_ORIGIN_RESOURCE_POLICY, "cross-origin")?;
    if has_tag(request, &tag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    set(header::ACCEPT_RANGES, "bytes")?;
    set(header::CONTENT_TYPE, &served.content_type)?;
    set(header::CONTENT_DISPOSITION, &served.disposition.to_string())?;
    let (start, end) = match range(request, &tag, length) {
        Wanted::All => (0, length),
        Wanted::Part { start, end } => {
            let last = end - 1;
            set(
                header::CONTENT_RANGE,
                &format!("bytes {start}-{last}/{length}"),
            )?;
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            (start, end)
        }
        Wanted::Beyond => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let error = Error::new(status, ErrorKind::Unknown, "the file has no such part");
            let mut response = error.into_response();
            let size = HeaderValue::try_from(format!("bytes */{length}"));
            let size = size.map_err(Error::internal)?;
            response.headers_mut().insert(header::CONTENT_RANGE, size);
            return Ok(response);
        }
    };
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from(end - start));
    if start > 0 {
        file.seek(SeekFrom::Start(start))
            .await
            .map_err(Error::internal)?;
    }
    let stream = ReaderStream::with_capacity(file.take(end - start), CHUNK);
    *response.body_mut() = Body::from_stream(stream);
    Ok(response)
}

/// Whether the client says that it has exactly this.
fn has_tag(request: &HeaderMap, tag: &str) -> bool {
    request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().trim_start_matches("W/"))
        .any(|value| value == tag || value == "*")
}

/// Which part of a file a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    /// From the byte `start` up to and without the byte `end`.
    Part {
        start: u64,
        end: u64,
    },
    Beyond,
}

/// RFC 9110, section 14. Several ranges at once, and what is no range, are answered with all, as it allows.
fn range(request: &HeaderMap, tag: &str, length: u64) -> Wanted {
    let text = |name| request.get(name).and_then(|value| value.to_str().ok());
    if text(header::IF_RANGE).is_some_and(|value| value.trim() != tag) {
        return Wanted::All;
    }
    let Some((first, last)) = text(header::RANGE)
        .and_then(|value| value.trim().strip_prefix("bytes="))
        .and_then(|value| value.split_once('-'))
    else {
        return Wanted::All;
    };
    let (start, end) = match (first.trim().parse(), last.trim().parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(length)),
        (Ok(start), Err(_)) if last.trim().is_empty() => (start, length),
        (Err(_), Ok(count)) if first.trim().is_empty() => (length.saturating_sub(count), length),
        _ => return Wanted::All,
    };
    if start < end {
        Wanted::Part { start, end }
    } else {
        Wanted::Beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Wanted::{All, Beyond, Part};
        for (value, wanted) in [
            ("bytes=0-9", Part { start: 0, end: 10 }),
            (
                "bytes=10-",
                Part {
                    start: 10,
                    end: 100,
                },
            ),
            (
                "bytes=-7",
                Part {
                    start: 93,
                    end: 100,
                },
            ),
            ("bytes=-700", Part { start: 0, end: 100 }),
            (
                "bytes=90-900",
                Part {
                    start: 90,
                    end: 100,
                },
            ),
            ("bytes=100-", Beyond),
            ("bytes=-0", Beyond),
            ("bytes=9-3", All),
            ("bytes=0-1,5-6", All),
            ("bytes=a-b", All),
            ("bytes=-", All),
            ("lines=1-2", All),
            ("bytes=99999999999999999999999-", All),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_static(value));
            assert_eq!(range(&headers, "\"t\"", 100), wanted, "{value}");
            headers.insert(header::IF_RANGE, HeaderValue::from_static("\"other\""));
            assert_eq!(range(&headers, "\"t\"", 100), All, "{value}");
        }
    }
}
