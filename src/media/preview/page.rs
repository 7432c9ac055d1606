//! What a page says of itself: the `og:` properties of its head, and what can stand in for them, at last what it shows.
//! Nothing here asks anybody.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    convert::Infallible,
};

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};
use html5gum::{
    Span, Tokenizer,
    emitters::callback::{CallbackEmitter, CallbackEvent},
};
use url::Url;

use super::text::Shown;
use crate::web::is_of_web;

/// How far into a page it is looked for what it says of its letters, in bytes.
const CHARSET_WITHIN: usize = 4096;
/// How many properties are kept, how long their names may be, and how long their values get, in characters.
const PROPERTIES: usize = 32;
const LONGEST_NAME: usize = 64;
const LONGEST_VALUE: usize = 1000;
/// The longest attribute that is looked at, in bytes.
const LONGEST_ATTRIBUTE: usize = 8192;
/// The attributes that are looked at.
const ATTRIBUTES: [&str; 7] = [
    "charset",
    "content",
    "href",
    "http-equiv",
    "name",
    "property",
    "rel",
];

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The `og:` properties, but for those of the image.
    pub properties: BTreeMap<String, String>,
    /// The address of the image.
    pub image: Option<Url>,
}

/// Reads the page at `address`, or the first part of it. `charset` is what the server says of its letters.
#[must_use]
pub fn read(address: &Url, bytes: &[u8], charset: Option<&str>) -> Page {
    let text = decode(bytes, charset);
    let (mut found, mut tags, mut shown) = (Found::default(), Tags::default(), Shown::default());
    each_event(&text, |event| {
        shown.take(event);
        if let Some(tag) = tags.take(event)
            // Drawings have titles of their own.
            && (tag.name != "title" || !shown.passes_over())
        {
            found.take(&tag);
        }
    });
    let (heading, text) = shown.finish();
    found.title = found.title.or(heading);
    found.text = text;
    found.page(address)
}

/// The value of `charset` in a media type.
#[must_use]
pub fn charset(content_type: &str) -> Option<&str> {
    let mut parameters = content_type.split(';').skip(1);
    parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let is_charset = name.trim().eq_ignore_ascii_case("charset");
        is_charset.then(|| value.trim().trim_matches(['"', '\'']))
    })
}

/// The text of a page, in the order in which browsers believe what is said of its letters.
fn decode<'a>(bytes: &'a [u8], charset: Option<&str>) -> Cow<'a, str> {
    let named = charset.and_then(|label| Encoding::for_label(label.as_bytes()));
    let encoding = named.or_else(|| declared(bytes)).unwrap_or_else(|| {
        // A letter that is cut off at the end says nothing against it.
        let is_utf8 =
            std::str::from_utf8(bytes).map_or_else(|error| error.error_len().is_none(), |_| true);
        if is_utf8 { UTF_8 } else { WINDOWS_1252 }
    });
    // A mark at the start of the text wins over all of this.
    encoding.decode(bytes).0
}

/// What a page itself says of its letters.
fn declared(bytes: &[u8]) -> Option<&'static Encoding> {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(CHARSET_WITHIN)]);
    let (mut found, mut tags) = (None, Tags::default());
    each_event(&start, |event| {
        let tag = tags.take(event).filter(|tag| tag.name == "meta");
        let Some(tag) = tag.filter(|_| found.is_none()) else {
            return;
        };
        let is_type = tag.get("http-equiv").eq_ignore_ascii_case("content-type");
        let label = match tag.get("charset") {
            "" if is_type => charset(tag.get("content")).unwrap_or_default(),
            label => label,
        };
        found = Encoding::for_label(label.as_bytes());
    });
    // Where this could be read, the text is none of these.
    found.map(|encoding| {
        if encoding == UTF_16LE || encoding == UTF_16BE {
            UTF_8
        } else {
            encoding
        }
    })
}

/// A tag that matters here, with those of its attributes that do; or a title with its text.
#[derive(Debug, Default)]
struct Tag {
    name: String,
    attributes: HashMap<&'static str, String>,
    text: String,
}

impl Tag {
    fn get(&self, attribute: &str) -> &str {
        self.attributes
            .get(attribute)
            .map_or("", |value| value.trim())
    }
}

/// Calls `seen` with all that a page consists of.
fn each_event(text: &str, mut seen: impl FnMut(&CallbackEvent<'_>)) {
    let callback = |event: CallbackEvent<'_>, _: Span<()>| -> Option<Infallible> {
        seen(&event);
        None
    };
    let mut emitter = CallbackEmitter::new(callback);
    emitter.naively_switch_states(true);
    // It reads from memory, which does not fail.
    let Ok(()) = Tokenizer::new_with_emitter(text, emitter).finish();
}

/// The tag that is being read.
#[derive(Debug, Default)]
struct Tags {
    tag: Tag,
    attribute: Option<&'static str>,
}

impl Tags {
    /// Takes the next part of a page; answers each `meta` and `link`, and each `title` when it ends.
    fn take(&mut self, event: &CallbackEvent<'_>) -> Option<Tag> {
        let tag = &mut self.tag;
        match event {
            CallbackEvent::OpenStartTag { name } => {
                *tag = Tag::default();
                if matches!(*name, b"meta" | b"link" | b"title") {
                    tag.name = String::from_utf8_lossy(name).into_owned();
                }
            }
            CallbackEvent::AttributeName { name } => {
                let mut known = ATTRIBUTES.iter();
                self.attribute = known.find(|known| known.as_bytes() == *name).copied();
            }
            CallbackEvent::AttributeValue { value } if !tag.name.is_empty() => {
                if let Some(name) = self.attribute.take() {
                    let value = &value[..value.len().min(LONGEST_ATTRIBUTE)];
                    // Of an attribute that is there twice the first one counts.
                    let place = tag.attributes.entry(name);
                    place.or_insert_with(|| String::from_utf8_lossy(value).into_owned());
                }
            }
            CallbackEvent::CloseStartTag { .. } if matches!(&*tag.name, "meta" | "link") => {
                return Some(std::mem::take(tag));
            }
            CallbackEvent::String { value } if tag.name == "title" => {
                let value = &value[..value.len().min(LONGEST_ATTRIBUTE)];
                tag.text = String::from_utf8_lossy(value).into_owned();
            }
            CallbackEvent::EndTag { name: b"title" } if tag.name == "title" => {
                return Some(std::mem::take(tag));
            }
            _ => {}
        }
        None
    }
}

/// What the tags have said so far. The first that says something is believed.
#[derive(Debug, Default)]
struct Found {
    properties: BTreeMap<String, String>,
    image: Option<String>,
    /// What can stand in for a property.
    others: HashMap<&'static str, String>,
    title: Option<String>,
    text: Option<String>,
}

impl Found {
    fn take(&mut self, tag: &Tag) {
        match &*tag.name {
            "title" => {
                let text = clean(&tag.text);
                self.title = self.title.take().or(text);
            }
            "link" => {
                let rel = tag.get("rel").split_ascii_whitespace();
                if rel
                    .into_iter()
                    .any(|rel| rel.eq_ignore_ascii_case("image_src"))
                {
                    self.set("link", tag.get("href"));
                }
            }
            _ => {
                let property = match tag.get("property") {
                    "" => tag.get("name"),
                    property => property,
                };
                self.property(&property.to_ascii_lowercase(), tag.get("content"));
            }
        }
    }

    fn property(&mut self, name: &str, value: &str) {
        match name {
            "og:image" | "og:image:url" | "og:image:secure_url" => {
                if self.image.is_none() && !value.is_empty() {
                    self.image = Some(value.to_owned());
                }
            }
            "description" => self.set("description", value),
            "twitter:title" => self.set("twitter:title", value),
            "twitter:description" => self.set("twitter:description", value),
            "twitter:image" | "twitter:image:src" => self.set("twitter:image", value),
            _ => {
                let is_property = name.starts_with("og:")
                    && (!name.starts_with("og:image:") || name == "og:image:alt")
                    && name.len() <= LONGEST_NAME
                    && name.bytes().all(|byte| byte.is_ascii_graphic());
                if is_property
                    && self.properties.len() < PROPERTIES
                    && !self.properties.contains_key(name)
                    && let Some(value) = clean(value)
                {
                    self.properties.insert(name.to_owned(), value);
                }
            }
        }
    }

    fn set(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.others.entry(name).or_insert_with(|| value.to_owned());
        }
    }

    fn page(mut self, address: &Url) -> Page {
        let other = |names: [&str; 2]| {
            let mut values = names.iter().filter_map(|name| self.others.get(*name));
            values.find_map(|value| clean(value))
        };
        let title = other(["twitter:title", ""]).or(self.title);
        let description = other(["description", "twitter:description"]).or(self.text);
        for (name, value) in [("og:title", title), ("og:description", description)] {
            if let Some(value) = value {
                self.properties.entry(name.to_owned()).or_insert(value);
            }
        }
        // Clients may open it, so it is one that can be opened.
        let is_page = |text: &String| Url::parse(text).is_ok_and(|url| is_of_web(&url));
        if self
            .properties
            .get("og:url")
            .is_some_and(|text| !is_page(text))
        {
            self.properties.remove("og:url");
        }
        let image = self.image.as_ref();
        let image = image.or_else(|| self.others.get("twitter:image"));
        let image = image.or_else(|| self.others.get("link"));
        let image = image.and_then(|image| address.join(image).ok());
        Page {
            properties: self.properties,
            image: image.filter(is_of_web),
        }
    }
}

/// A text in one line, and not longer than texts in previews are. `None` if nothing is left of it.
pub(super) fn clean(text: &str) -> Option<String> {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().filter(|letter| !letter.is_control()));
    }
    if let Some((end, _)) = line.char_indices().nth(LONGEST_VALUE) {
        line.truncate(end);
    }
    (!line.is_empty()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(bytes: &[u8], charset: Option<&str>) -> Vec<(String, String)> {
        let address = Url::parse("https://example.org/a/page?x").unwrap();
        let page = read(&address, bytes, charset);
        let image = page.image.map(|url| ("image".to_owned(), url.to_string()));
        page.properties.into_iter().chain(image).collect()
    }

    #[track_caller]
    fn says(html: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(properties(html.as_bytes(), None), expected, "{html}");
    }

    #[test]
    fn properties_of_the_head_are_read() {
        says(
            r#"<!DOCTYPE html><html prefix="og: http://ogp.me/ns#"><head><title>Other</title>
            <meta property="og:title" content="A &amp; B &#x1F600;"/>
            <META PROPERTY='OG:TYPE' CONTENT=video.movie>
            <meta name="og:site_name" content="  Two
               lines ">
            <meta content="https://example.org/c" property="og:url">
            <meta property="og:title" content="second">
            <meta property="og:image" content="../b.png"><meta property="og:image:width" content="9">
            <meta property="og:image:alt" content="a cat"><meta property="og:" content="">
            <meta property="matrix:image:size" content="1"></head><body>text</body></html>"#,
            &[
                ("og:description", "text"),
                ("og:image:alt", "a cat"),
                ("og:site_name", "Two lines"),
                ("og:title", "A & B 😀"),
                ("og:type", "video.movie"),
                ("og:url", "https://example.org/c"),
                ("image", "https://example.org/b.png"),
            ],
        );
    }

    #[test]
    fn other_tags_stand_in_for_them() {
        says(
            "<title>\n The <b>Rock </title><meta name=description content='It is a rock.'>\
             <link rel='icon image_src' href=//cdn.example.org/rock.png>",
            &[
                ("og:description", "It is a rock."),
                ("og:title", "The <b>Rock"),
                ("image", "https://cdn.example.org/rock.png"),
            ],
        );
        says(
            "<meta name=twitter:title content=T><meta name=twitter:description content=D>\
             <meta name=twitter:image content=/i><title>x</title>",
            &[
                ("og:description", "D"),
                ("og:title", "T"),
                ("image", "https://example.org/i"),
            ],
        );
        says("", &[]);
        says("<title></title><meta><meta property=og:title>", &[]);
    }

    #[test]
    fn what_is_no_tag_or_no_page_says_nothing() {
        for html in [
            "<!-- <meta property=og:title content=x> -->",
            "<script>'<meta property=og:title content=x>'</script>",
            "<style><meta property=og:title content=x></style>",
            "<textarea><meta property=og:title content=x></textarea>",
            "<title><meta property=og:title content=x>",
            "<meta property=og:title content=x",
            "</meta property=og:title content=x>",
            "<meta property=og:url content='javascript:alert(1)'>",
            "<meta property=og:url content='relative'>",
            "<meta property=og:image content='file:///etc/passwd'>",
            "<meta property=og:image content='data:image/png;base64,AAAA'>",
            "<meta property=og:image content='https://user:password@example.org/'>",
            "<meta property=og:image content='http://['>",
            "<meta property=og:title content='\u{1}\u{7f} \n'>",
            "<meta property='og:ti\u{e9}' content=x>",
        ] {
            says(html, &[]);
        }
    }

    #[test]
    fn pages_without_measure_stay_small() {
        let value = "ö".repeat(2000);
        let many = (0..10_000).map(|number| format!("<meta property=og:{number} content={value}>"));
        let many: Vec<String> = many.collect();
        let many = many.concat();
        let found = properties(many.as_bytes(), None);
        assert_eq!(found.len(), PROPERTIES);
        assert!(
            found
                .iter()
                .all(|(_, value)| value.chars().count() == LONGEST_VALUE)
        );
        for part in [
            "<a ",
            "<meta a=b ",
            "<!--",
            "<title>",
            "<meta content='",
            "</",
            "<![CDATA[",
            "<nav>",
            "<h1>",
            "</svg>",
        ] {
            says(&part.repeat(100_000), &[]);
        }
        for (part, letter) in [("<", "<"), ("&amp", "&")] {
            let text = part.repeat(100_000);
            let expected = letter.repeat(300) + "…";
            says(&text, &[("og:description", &expected)]);
            let deep = "<nav>".repeat(100_000) + &"</nav>".repeat(32);
            says(&format!("{deep}<h1>{text}"), &[("og:title", &expected)]);
        }
    }

    #[test]
    fn what_a_page_shows_stands_in_for_what_it_does_not_say() {
        let (title, description) = ("og:title", "og:description");
        for (html, expected) in [
            (
                "<body><h1>The <em>R</em>ock</h1><p>It is a <b>ro</b>ck.<p>A\n large&nbsp;<br>one.",
                &[
                    (description, "It is a rock. A large one."),
                    (title, "The Rock"),
                ][..],
            ),
            (
                "<h4>Small</h4><h2></h2><h3>Third</h3><h1>First</h1>",
                &[(description, "Small First"), (title, "Third")],
            ),
            // Each is for itself.
            (
                "<title>Title</title><h1>Heading</h1>text",
                &[(description, "text"), (title, "Title")],
            ),
            (
                "<meta name=description content=said><h1>Heading</h1>text",
                &[(description, "said"), (title, "Heading")],
            ),
            // Nobody sees these, or they are the same everywhere.
            (
                "<style>a</style><header>top<h1>Head</h1></header><nav>b<h2>Menu</h2></nav><script>'<p>c'</script>\
                 <noscript><p>d</noscript><aside><h1>e</h1></aside><textarea><p>f</textarea><template>g</template>\
                 <!-- h --><select><option>i</select><button>j</button><footer>k</footer>text",
                &[(description, "text"), (title, "Head")],
            ),
            (
                "<h1><svg><title>Logo</title></svg>Name</h1><svg/>text<iframe>a</iframe>",
                &[(description, "text"), (title, "Name")],
            ),
            // What does not fit together.
            (
                "</nav></nav>a<nav>b<nav>c</nav>d</nav>e",
                &[(description, "a e")],
            ),
            ("<nav><aside>a</nav>b</aside>c", &[(description, "b c")]),
            (
                "<header><h1>a</header>b",
                &[(description, "b"), (title, "a")],
            ),
            ("<h1>a<p>b</h1>c", &[(description, "b c"), (title, "a")]),
            ("<h1>a</h2>b", &[(description, "b"), (title, "a")]),
            ("a<nav>b", &[(description, "a")]),
            (" \u{1}\n<br>&#32;", &[]),
        ] {
            says(html, expected);
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_word() {
        let words = "word ".repeat(100);
        let expected = format!("{}word…", "word ".repeat(59));
        says(&words, &[("og:description", &expected)]);
        let whole = format!("{}words", "word ".repeat(59));
        says(&whole, &[("og:description", &whole)]);
        let expected = format!("{}word…", "word ".repeat(58));
        says(&format!("{whole}!"), &[("og:description", &expected)]);
        let expected = format!("短 {}…", "文".repeat(298));
        says(
            &format!("短 {}", "文".repeat(400)),
            &[("og:description", &expected)],
        );
    }

    #[test]
    fn letters_are_read_as_the_page_says() {
        let title = |start: &str, letters: &[u8], charset| {
            let bytes = [start.as_bytes(), b"<title>", letters, b"</title>"].concat();
            let mut found = properties(&bytes, charset);
            found.pop().map(|(_, title)| title)
        };
        for (start, letters, charset, expected) in [
            ("", "Käse".as_bytes(), None, "Käse"),
            ("", b"K\xe4se", None, "Käse"),
            ("", b"K\xe4se", Some("iso-8859-1"), "Käse"),
            ("<meta charset=windows-1251>", b"\xd1\xfb\xf0", None, "Сыр"),
            (
                "<meta http-equiv=Content-Type content='text/html; charset=\"shift_jis\"'>",
                b"\x83\x60\x81\x5b\x83\x59",
                None,
                "チーズ",
            ),
            // What the server says wins, if there is such a thing.
            (
                "<meta charset=windows-1251>",
                "Käse".as_bytes(),
                Some("UTF-8"),
                "Käse",
            ),
            (
                "<meta charset=utf-8>",
                b"K\xe4se",
                Some("nonsense"),
                "K\u{fffd}se",
            ),
            ("<meta charset=utf-16>", "Käse".as_bytes(), None, "Käse"),
            ("\u{feff}", "Käse".as_bytes(), Some("windows-1251"), "Käse"),
        ] {
            assert_eq!(
                title(start, letters, charset).as_deref(),
                Some(expected),
                "{start}"
            );
        }
        let wide: Vec<u8> = "<title>Käse</title>"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(properties(&wide, Some("utf-16"))[0].1, "Käse");
        for (content_type, expected) in [
            ("text/html", None),
            ("text/html; charset=utf-8", Some("utf-8")),
            ("text/html;a=b; Charset = \"x\" ", Some("x")),
            ("text/html; charset", None),
        ] {
            assert_eq!(charset(content_type), expected);
        }
    }
}
