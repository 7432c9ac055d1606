//! What may be done with a file, and what it is called.

use ruma::http_headers::{ContentDisposition, ContentDispositionType};

/// What is said of a file of which nobody said what it is.
pub const UNKNOWN_TYPE: &str = "application/octet-stream";

/// What a browser may show by itself: the list of "Serving inline content".
const INLINE_TYPES: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// How a file of this media type may be shown.
#[must_use]
pub fn disposition(content_type: &str, filename: Option<String>) -> ContentDisposition {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let is_safe = INLINE_TYPES
        .iter()
        .any(|safe| safe.eq_ignore_ascii_case(essence));
    let kind = if is_safe {
        ContentDispositionType::Inline
    } else {
        ContentDispositionType::Attachment
    };
    ContentDisposition::new(kind).with_filename(filename)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_types_of_the_list_are_shown() {
        for (content_type, start) in [
            ("image/png", "inline"),
            ("IMAGE/PNG; a=b", "inline"),
            ("text/html", "attachment"),
            ("image/svg+xml", "attachment"),
            ("", "attachment"),
        ] {
            let value = disposition(content_type, None).to_string();
            assert_eq!(value, start, "{content_type}");
        }
    }
}
