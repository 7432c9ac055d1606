//! The tokens that clients hand back to be told what comes next ("Pagination", and `next_batch` of `/sync`).

use std::{fmt, str::FromStr};

use crate::{
    error::Error,
    storage::{Event, Pos},
};

/// A place between two things that a client may be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Token {
    /// `s<pos>_<ephemeral>_<run>`: up to where a sync has come; `s<pos>_<ephemeral>_<run>_<to_device>` if there were more
    /// messages for the device than one answer has.
    Sync {
        /// The position in the log.
        pos: Pos,
        /// The count of what is kept in memory only.
        ephemeral: u64,
        /// The run of the server that the count belongs to.
        run: u64,
        /// The position of the last message that the device was given, if it was not given all up to `pos`.
        to_device: Option<Pos>,
    },
    /// `t<depth>_<ord>`: a place in the history of a room, just after an event with this key; `t<depth>_<ord>_<pos>` on the
    /// way back from a token of one of the other kinds: what came after its position is left out.
    History {
        /// The depth of the event.
        depth: i64,
        /// Its order among those of the same depth.
        ord: i64,
        /// A position in the log.
        upto: Option<Pos>,
    },
    /// `b<depth>_<ord>_<pos>`: where the timeline of a sync begins, just after an event with this key in the history of a
    /// room. What came after `pos` is in that timeline, or was told before it; all else is before it, wherever in the
    /// history it stands.
    Timeline {
        /// The depth of the event.
        depth: i64,
        /// Its order among those of the same depth.
        ord: i64,
        /// A position in the log.
        pos: Pos,
    },
}

impl Token {
    /// The place just after an event.
    #[must_use]
    pub fn after(event: &Event) -> Self {
        Self::History {
            depth: event.depth(),
            ord: event.ord,
            upto: None,
        }
    }

    /// Where a timeline begins, of which this is the first event; `None` if the event is not in the log.
    #[must_use]
    pub fn timeline(first: &Event) -> Option<Self> {
        Some(Self::Timeline {
            depth: first.depth(),
            ord: first.ord.saturating_sub(1),
            pos: first.pos?.saturating_sub(1),
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sync {
                pos,
                ephemeral,
                run,
                to_device,
            } => {
                write!(formatter, "s{pos}_{ephemeral}_{run}")?;
                to_device.map_or(Ok(()), |pos| write!(formatter, "_{pos}"))
            }
            Self::History { depth, ord, upto } => {
                write!(formatter, "t{depth}_{ord}")?;
                upto.map_or(Ok(()), |pos| write!(formatter, "_{pos}"))
            }
            Self::Timeline { depth, ord, pos } => write!(formatter, "b{depth}_{ord}_{pos}"),
        }
    }
}

impl FromStr for Token {
    type Err = Error;

    /// # Errors
    /// `M_INVALID_PARAM` for everything that this server does not print.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text)
            .filter(|token| token.to_string() == text)
            .ok_or_else(|| Error::invalid_param("the token is not one of this server"))
    }
}

fn parse(text: &str) -> Option<Token> {
    if let Some(rest) = text.strip_prefix('s') {
        let mut parts = rest.splitn(4, '_');
        return Some(Token::Sync {
            pos: parts.next()?.parse().ok().filter(|pos| *pos >= 0)?,
            ephemeral: parts.next()?.parse().ok()?,
            run: parts.next()?.parse().ok()?,
            to_device: match parts.next() {
                Some(pos) => Some(pos.parse().ok().filter(|pos| *pos >= 0)?),
                None => None,
            },
        });
    }
    if let Some(rest) = text.strip_prefix('b') {
        let mut parts = rest.splitn(3, '_');
        return Some(Token::Timeline {
            depth: parts.next()?.parse().ok()?,
            ord: parts.next()?.parse().ok()?,
            pos: parts.next()?.parse().ok().filter(|pos| *pos >= 0)?,
        });
    }
    let mut parts = text.strip_prefix('t')?.splitn(3, '_');
    Some(Token::History {
        depth: parts.next()?.parse().ok()?,
        ord: parts.next()?.parse().ok()?,
        upto: match parts.next() {
            Some(pos) => Some(pos.parse().ok().filter(|pos| *pos >= 0)?),
            None => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read() {
        let tokens = [
            Token::Sync {
                pos: 17,
                ephemeral: 4,
                run: u64::MAX,
                to_device: None,
            },
            Token::Sync {
                pos: 17,
                ephemeral: 4,
                run: 1,
                to_device: Some(9),
            },
            Token::History {
                depth: 9,
                ord: -3,
                upto: None,
            },
            Token::History {
                depth: 9,
                ord: -3,
                upto: Some(2),
            },
            Token::Timeline {
                depth: 9,
                ord: -3,
                pos: 2,
            },
        ];
        for token in tokens {
            assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        }
    }

    #[test]
    fn nothing_else_is_read() {
        for text in [
            "",
            "s",
            "t",
            "s1",
            "s1_2",
            "s1_2_3_4_5",
            "s1_2_3_-4",
            "s-1_2_3",
            "s01_2_3",
            "s+1_2_3",
            "t1",
            "t1_2_3_4",
            "t1_2_-3",
            "t 1_2",
            "t1_02",
            "b1_2",
            "b1_2_-3",
            "b1_2_3_4",
            "x1_2",
            "t99999999999999999999_1",
            "s1_2_3 ",
            "ß",
        ] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
