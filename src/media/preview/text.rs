//! What a page shows to those who look at it, for pages that say nothing of themselves: a heading, and the beginning of
//! the text. The page is read from its start to its end, and nothing is built of its elements.

use html5gum::emitters::callback::CallbackEvent;

/// How much of a text is taken, in characters.
const MOST: usize = 300;
/// How deep elements that are passed over are followed into each other.
const DEPTH: usize = 32;
/// Elements that nobody sees, or that are the same on each page of a site.
const PASSED_OVER: [&[u8]; 21] = [
    b"aside",
    b"audio",
    b"button",
    b"canvas",
    b"dialog",
    b"footer",
    b"header",
    b"iframe",
    b"nav",
    b"noembed",
    b"noframes",
    b"noscript",
    b"object",
    b"script",
    b"select",
    b"style",
    b"svg",
    b"template",
    b"textarea",
    b"title",
    b"video",
];
/// Elements that may begin and end within a word.
const WITHIN_WORDS: [&[u8]; 27] = [
    b"a", b"abbr", b"b", b"bdi", b"bdo", b"cite", b"code", b"data", b"del", b"dfn", b"em", b"font",
    b"i", b"ins", b"kbd", b"mark", b"q", b"s", b"samp", b"small", b"span", b"strong", b"sub",
    b"sup", b"u", b"var", b"wbr",
];

/// What was seen of a page so far.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The elements to be passed over that are open, from the outermost one on.
    passed_over: Vec<&'static [u8]>,
    /// Whether the tag that is being read is that of a drawing.
    is_drawing: bool,
    in_heading: bool,
    heading: Line,
    text: Line,
}

impl Shown {
    /// Takes the next part of the page.
    pub(super) fn take(&mut self, event: &CallbackEvent<'_>) {
        match event {
            CallbackEvent::OpenStartTag { name } => self.open(name),
            // Of the elements that are passed over, only drawings can be empty in this way.
            CallbackEvent::CloseStartTag { self_closing: true } if self.is_drawing => {
                self.close(b"svg");
            }
            CallbackEvent::EndTag { name } => self.close(name),
            CallbackEvent::String { value } => {
                if let Some(line) = self.line() {
                    line.add(&String::from_utf8_lossy(value));
                }
            }
            _ => {}
        }
    }

    /// Whether this is within something that is passed over.
    pub(super) fn passes_over(&self) -> bool {
        !self.passed_over.is_empty()
    }

    /// The first heading, and the beginning of the rest of the text.
    pub(super) fn finish(self) -> (Option<String>, Option<String>) {
        (self.heading.finish(), self.text.finish())
    }

    /// Where a text belongs that comes now.
    fn line(&mut self) -> Option<&mut Line> {
        if self.in_heading && self.heads() && !self.heading.is_full {
            return Some(&mut self.heading);
        }
        (!self.passes_over()).then_some(&mut self.text)
    }

    /// Whether a heading would be one here: many pages have theirs at their head.
    fn heads(&self) -> bool {
        self.passed_over.iter().all(|name| *name == b"header")
    }

    fn open(&mut self, name: &[u8]) {
        self.part(name);
        self.is_drawing = name == b"svg";
        match name {
            b"h1" | b"h2" | b"h3" => self.in_heading = self.heads() && self.heading.is_empty(),
            // There is none in a heading: its end was forgotten.
            b"p" => self.in_heading = false,
            _ => {
                let known = PASSED_OVER.iter().find(|known| **known == name);
                if self.passed_over.len() < DEPTH {
                    self.passed_over.extend(known);
                }
            }
        }
    }

    fn close(&mut self, name: &[u8]) {
        self.part(name);
        if matches!(
            name,
            b"h1" | b"h2" | b"h3" | b"h4" | b"h5" | b"h6" | b"header"
        ) {
            self.in_heading = false;
        }
        // What was not closed in it ends with it, and what was not opened does not end.
        if let Some(place) = self.passed_over.iter().rposition(|open| *open == name) {
            self.passed_over.truncate(place);
        }
    }

    /// Ends a word, unless the element may be within one.
    fn part(&mut self, name: &[u8]) {
        if !WITHIN_WORDS.contains(&name) {
            self.heading.ends_word = true;
            self.text.ends_word = true;
        }
    }
}

/// A text in one line, which does not grow without end.
#[derive(Debug, Default)]
struct Line {
    text: String,
    length: usize,
    ends_word: bool,
    /// Whether something found no place.
    is_full: bool,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    fn add(&mut self, text: &str) {
        for letter in text.chars() {
            if self.is_full {
                return;
            }
            if letter.is_whitespace() {
                self.ends_word = true;
            } else if !letter.is_control() {
                if std::mem::take(&mut self.ends_word) && !self.text.is_empty() {
                    self.push(' ');
                }
                self.push(letter);
            }
        }
    }

    fn push(&mut self, letter: char) {
        if self.length == MOST {
            self.is_full = true;
        } else {
            self.text.push(letter);
            self.length += 1;
        }
    }

    fn finish(mut self) -> Option<String> {
        if self.is_full {
            // Not every language has spaces between its words.
            let end = self.text.rfind(' ');
            let end = end.filter(|end| *end > self.text.len() / 2);
            self.text.truncate(end.unwrap_or(self.text.len()));
            self.text.push('…');
        }
        (!self.text.is_empty()).then_some(self.text)
    }
}
