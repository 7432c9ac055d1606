//! How other servers send media: `multipart/mixed` with two parts, of which the second is the file or says where it is
//! (Server-Server API, "Content Repository"). What comes is read piece by piece.

use memchr::memmem;
use serde_json::Map;

/// The most bytes before the file, with what is said of it.
const HEAD_BYTES: usize = 64 << 10;
/// The longest line between parts that RFC 2046 allows.
const BOUNDARY_BYTES: usize = 70;

/// What is said of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// `Content-Type`
    pub content_type: Option<String>,
    /// `Content-Disposition`
    pub content_disposition: Option<String>,
    /// `Location`: where the file is; then it is not here.
    pub location: Option<String>,
}

/// An answer is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is no `multipart/mixed` with a file in its second part")]
pub struct Broken;

/// An answer that is being read.
#[derive(Debug)]
pub struct Parts {
    /// What stands between parts: a line break, two dashes and the boundary.
    delimiter: Vec<u8>,
    /// What has come and was not taken yet.
    buffer: Vec<u8>,
    head: Option<Head>,
    is_whole: bool,
}

impl Parts {
    /// An answer with this `Content-Type`.
    ///
    /// # Errors
    /// If it is another one than `multipart/mixed`.
    pub fn new(content_type: &str) -> Result<Self, Broken> {
        let mut fields = content_type.split(';').map(str::trim);
        let is_mixed = fields
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/mixed"));
        let boundary = fields
            .filter_map(|field| field.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("boundary"))
            .map(|(_, value)| value.trim().trim_matches('"'))
            .filter(|value| (1..=BOUNDARY_BYTES).contains(&value.len()))
            .ok_or(Broken)?;
        if !is_mixed {
            return Err(Broken);
        }
        Ok(Self {
            delimiter: format!("\r\n--{boundary}").into_bytes(),
            buffer: Vec::new(),
            head: None,
            is_whole: false,
        })
    }

    /// Takes what has come next; answers what of it belongs to the file.
    ///
    /// # Errors
    /// If this is not how such answers look.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Broken> {
        if self.is_whole {
            return Ok(Vec::new());
        }
        self.buffer.extend_from_slice(bytes);
        if self.head.is_none() {
            match self.read_head()? {
                Some((head, start)) => {
                    self.head = Some(head);
                    self.buffer.drain(..start);
                }
                None if self.buffer.len() > HEAD_BYTES => return Err(Broken),
                None => return Ok(Vec::new()),
            }
        }
        Ok(self.take_file())
    }

    /// What is said of the file, as soon as that has come.
    #[must_use]
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Whether the file has come to its end.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn take_file(&mut self) -> Vec<u8> {
        let end = match memmem::find(&self.buffer, &self.delimiter) {
            Some(end) => {
                self.is_whole = true;
                end
            }
            // The end may be the beginning of the delimiter.
            None => self.buffer.len().saturating_sub(self.delimiter.len() - 1),
        };
        let rest = self.buffer.split_off(end);
        std::mem::replace(&mut self.buffer, rest)
    }

    /// What is said of the file, and where it starts, if that has come.
    fn read_head(&self) -> Result<Option<(Head, usize)>, Broken> {
        let find = |from: usize| {
            let at = memmem::find(&self.buffer[from..], &self.delimiter)?;
            Some(from + at + self.delimiter.len())
        };
        let first = &self.delimiter[2..];
        if self.buffer.len() < self.delimiter.len() {
            return Ok(None);
        }
        // What comes before the first part means nothing; without it the line break may be missing.
        let start = if self.buffer.starts_with(first) {
            Some(first.len())
        } else {
            find(0)
        };
        let Some((metadata, file)) = start.and_then(|start| Some((start, find(start)?))) else {
            return Ok(None);
        };
        let metadata = &self.buffer[metadata..file - self.delimiter.len()];
        let (_, start) = fields(metadata)?.ok_or(Broken)?;
        serde_json::from_slice::<Map<_, _>>(&metadata[start..]).map_err(|_| Broken)?;
        let found = fields(&self.buffer[file..])?;
        Ok(found.map(|(head, start)| (head, file + start)))
    }
}

/// The fields at the start of a part, which begin on the line after the boundary and end with an empty one, and where
/// what they describe begins. `None` if they are not all there.
fn fields(part: &[u8]) -> Result<Option<(Head, usize)>, Broken> {
    let mut head = Head::default();
    let mut start = match memchr::memchr(b'\n', part) {
        Some(end) if part[..end].trim_ascii().is_empty() => end + 1,
        Some(_) => return Err(Broken),
        None => return Ok(None),
    };
    while let Some(length) = memchr::memchr(b'\n', &part[start..]) {
        let line = part[start..start + length].trim_ascii();
        start += length + 1;
        if line.is_empty() {
            return Ok(Some((head, start)));
        }
        let line = std::str::from_utf8(line).map_err(|_| Broken)?;
        let (name, value) = line.split_once(':').ok_or(Broken)?;
        let value = Some(value.trim().to_owned());
        match name.trim().to_ascii_lowercase().as_str() {
            "content-type" => head.content_type = value,
            "content-disposition" => head.content_disposition = value,
            "location" => head.location = value,
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/mixed; boundary=abc";

    /// Reads an answer in pieces of some size: what is said of the file, the file, and whether it was whole.
    fn read(body: &[u8], piece: usize) -> Result<(Option<Head>, Vec<u8>, bool), Broken> {
        let mut parts = Parts::new(TYPE)?;
        let mut file = Vec::new();
        for bytes in body.chunks(piece) {
            file.extend(parts.push(bytes)?);
        }
        Ok((parts.head().cloned(), file, parts.is_whole()))
    }

    #[test]
    fn answers_as_servers_send_them() {
        let head = Head {
            content_type: Some("text/plain".to_owned()),
            content_disposition: Some("inline; filename=a.txt".to_owned()),
            location: None,
        };
        for body in [
            "--abc\r\nContent-Type: application/json\r\n\r\n{}\r\n--abc\r\nContent-Type: text/plain\r\n\
             Content-Disposition: inline; filename=a.txt\r\n\r\nthe file\r\n--abc--\r\n",
            "\r\n--abc\r\n\r\n{}\r\n--abc\r\ncontent-type: text/plain\r\n\
             content-disposition:  inline; filename=a.txt\r\n\r\nthe file\r\n--abc",
            "before\r\n--abc  \r\n\r\n{\"a\":1}\r\n--abc\ncontent-type: text/plain\n\
             content-disposition: inline; filename=a.txt\n\nthe file\r\n--abc--after",
        ] {
            for piece in [1, 7, 1000] {
                let (found, file, is_whole) = read(body.as_bytes(), piece).unwrap();
                assert_eq!(found.as_ref(), Some(&head), "{body:?}");
                assert_eq!(file, b"the file", "{body:?}");
                assert!(is_whole, "{body:?}");
            }
        }
        let elsewhere =
            b"--abc\r\n\r\n{}\r\n--abc\r\nLocation: https://cdn.example/1\r\n\r\n\r\n--abc--";
        let (found, file, _) = read(elsewhere, 3).unwrap();
        assert_eq!(
            found.unwrap().location.as_deref(),
            Some("https://cdn.example/1")
        );
        assert!(file.is_empty());
    }

    #[test]
    fn a_file_may_nearly_have_the_boundary_in_it() {
        let body = b"--abc\r\n\r\n{}\r\n--abc\r\n\r\n\r\n--ab\r\n--ab\r\n--abc--";
        for piece in [1, 4, 100] {
            let (head, file, is_whole) = read(body, piece).unwrap();
            assert_eq!(head, Some(Head::default()));
            assert_eq!((&*file, is_whole), (&b"\r\n--ab\r\n--ab"[..], true));
        }
    }

    #[test]
    fn what_is_no_such_answer() {
        for kind in [
            "text/plain; boundary=abc",
            "multipart/mixed",
            "multipart/mixed; boundary=",
            "multipart/form-data; boundary=abc",
        ] {
            assert_eq!(Parts::new(kind).unwrap_err(), Broken, "{kind}");
        }
        assert!(Parts::new("Multipart/Mixed; charset=x; Boundary=\"abc\"").is_ok());
        for body in [
            &b"--abc\r\n\r\nno json\r\n--abc\r\n\r\nfile\r\n--abc--"[..],
            b"--abc\r\n\r\n[]\r\n--abc\r\n\r\nfile\r\n--abc--",
            b"--abc\r\n\r\n{}\r\n--abc\r\nno field\r\n\r\nfile\r\n--abc--",
            b"--abc\r\n\r\n{}\r\n--abcd\r\n\r\nfile\r\n--abc--",
            b"--abc--\r\n\r\n{}\r\n--abc\r\n\r\nfile\r\n--abc--",
            &vec![b'x'; 70_000],
        ] {
            assert_eq!(read(body, 100), Err(Broken), "{body:?}");
        }
        for body in [
            &b""[..],
            b"--abc",
            b"--abc\r\n\r\n{}\r\n--abc\r\n\r\nfile",
            b"--abc\r\n\r\n{}\r\n--abc\r\ncontent-type: a/b\r\n",
        ] {
            assert!(!read(body, 100).unwrap().2, "{body:?}");
        }
    }
}
