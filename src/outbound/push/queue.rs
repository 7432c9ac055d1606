//! What waits for one pusher, and when it is sent.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use ruma::push::Action;

use crate::storage::{EventNid, Pos, RoomNid, UserNid};

/// How many notifications wait for a pusher. Of more, the oldest are given up.
pub(super) const MOST_WAITING: usize = 200;
/// The wait after the first failure, and the longest.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_hours(1);

/// An event that notifies somebody.
#[derive(Debug)]
pub(super) struct Notice {
    /// Its position.
    pub(super) pos: Pos,
    pub(super) room: RoomNid,
    pub(super) event: EventNid,
    /// What the rules of the user say.
    pub(super) actions: Vec<Action>,
    /// When it came, in milliseconds since 1970.
    pub(super) at: i64,
}

/// A pusher, with what is to be sent to it.
#[derive(Debug)]
pub(super) struct Recipient {
    pub(super) user: UserNid,
    waiting: VecDeque<Arc<Notice>>,
    /// Nothing up to here is to be added.
    known: Pos,
    /// How much it was told is unread; `None` if that is not known.
    badge: Option<i64>,
    /// Whether that may have changed.
    badge_due: bool,
    is_sending: bool,
    failures: u32,
    next_try: i64,
    /// Whether anything has ever been taken.
    is_proven: bool,
    /// What is written down of it: whether it waits, and since when.
    saved: Option<Pos>,
}

/// What is to be done for a pusher.
#[derive(Debug)]
pub(super) enum Next {
    Nothing,
    /// To look again then.
    Wait(i64),
    /// To send an event, or only how much is unread.
    Send(Option<Arc<Notice>>),
}

/// What became of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was taken, with this number.
    Taken(i64),
    /// Nobody needs to be told any more.
    Needless,
    /// It was not taken, and is not to be sent again for so long.
    Failed(Duration),
    /// The pusher is no longer there.
    Gone,
}

impl Recipient {
    /// A pusher that has been told of everything up to `known`. `waits`: but for what it is to be told still.
    pub(super) fn new(user: UserNid, known: Pos, waits: bool) -> Self {
        Self {
            user,
            waiting: VecDeque::new(),
            known,
            badge: None,
            badge_due: waits,
            is_sending: false,
            failures: 0,
            next_try: 0,
            is_proven: false,
            saved: waits.then_some(known),
        }
    }

    /// Whether it is there, as far as that was tried.
    pub(super) fn is_alive(&self) -> bool {
        self.is_proven && self.failures == 0
    }

    /// How much it was told is unread.
    pub(super) fn badge(&self) -> Option<i64> {
        self.badge
    }

    /// Adds an event, unless it is known.
    pub(super) fn add(&mut self, notice: &Arc<Notice>) {
        if notice.pos <= self.known {
            return;
        }
        self.known = notice.pos;
        self.waiting.push_back(Arc::clone(notice));
        if self.waiting.len() > MOST_WAITING {
            self.waiting.remove(usize::from(self.is_sending));
        }
    }

    /// The user may have less that is unread.
    pub(super) fn read(&mut self) {
        self.badge_due |= self.badge != Some(0);
    }

    /// The user may have read something that nobody has heard of.
    pub(super) fn may_have_read(&mut self) {
        self.badge_due |= self.badge.is_some_and(|badge| badge > 0);
    }

    /// The client has set the pusher once more: what failed may work now.
    pub(super) fn set_anew(&mut self) {
        self.failures = 0;
        self.next_try = 0;
        self.badge = None;
    }

    /// What is to be done now. Once something is to be sent, nothing is until it is known what became of it.
    pub(super) fn next(&mut self, now: i64) -> Next {
        if self.is_sending || (self.waiting.is_empty() && !self.badge_due) {
            return Next::Nothing;
        }
        if now < self.next_try {
            return Next::Wait(self.next_try);
        }
        self.is_sending = true;
        if self.waiting.is_empty() {
            self.badge_due = false;
        }
        Next::Send(self.waiting.front().cloned())
    }

    /// What was to be sent has come to this. `jitter`, from 0 to 1, takes off up to a fifth of the wait.
    pub(super) fn done(&mut self, sent: Option<&Notice>, outcome: Outcome, now: i64, jitter: f64) {
        self.is_sending = false;
        match outcome {
            Outcome::Taken(badge) => {
                self.badge = Some(badge);
                self.is_proven = true;
                self.failures = 0;
                self.next_try = 0;
            }
            Outcome::Needless | Outcome::Gone => {}
            Outcome::Failed(pause) => {
                self.failures = self.failures.saturating_add(1);
                let wait = wait(self.failures, jitter)
                    .max(pause.min(LONGEST))
                    .as_millis();
                self.next_try = now.saturating_add(i64::try_from(wait).unwrap_or(i64::MAX));
                self.badge_due |= sent.is_none();
                return;
            }
        }
        let front = self.waiting.front().map(|notice| notice.pos);
        if sent.is_some() && front == sent.map(|notice| notice.pos) {
            self.waiting.pop_front();
        }
    }

    /// Where it stands, if that is not written down yet: up to where it was told everything, and whether there is more.
    pub(super) fn unsaved(&self) -> Option<(Pos, bool)> {
        let waits = match self.waiting.front() {
            Some(first) => Some(first.pos - 1),
            None => (self.badge_due || self.is_sending).then_some(self.known),
        };
        (waits != self.saved).then(|| (waits.unwrap_or(self.known), waits.is_some()))
    }

    /// This is written down now.
    pub(super) fn was_saved(&mut self, pos: Pos, waits: bool) {
        self.saved = waits.then_some(pos);
    }
}

/// The wait after this many failures in a row.
fn wait(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1);
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let full = SHORTEST.saturating_mul(factor).min(LONGEST);
    full.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 5.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(pos: Pos) -> Arc<Notice> {
        Arc::new(Notice {
            pos,
            room: RoomNid(1),
            event: EventNid(pos),
            actions: Vec::new(),
            at: 0,
        })
    }

    /// What is to be sent now: an event, or the badge alone.
    fn sends(recipient: &mut Recipient, now: i64) -> Option<Arc<Notice>> {
        match recipient.next(now) {
            Next::Send(notice) => notice,
            next => panic!("{next:?}"),
        }
    }

    fn rests(recipient: &mut Recipient, now: i64) -> bool {
        !matches!(recipient.next(now), Next::Send(_))
    }

    /// The position of an event; 0 for the badge alone.
    fn position(sent: Option<&Arc<Notice>>) -> Pos {
        sent.map_or(0, |notice| notice.pos)
    }

    #[test]
    fn one_after_the_other_and_each_once() {
        let mut one = Recipient::new(UserNid(1), 5, false);
        for pos in [4, 5, 6, 7, 6, 8] {
            one.add(&notice(pos));
        }
        for expected in [6, 7, 8] {
            let sent = sends(&mut one, 0);
            assert_eq!(position(sent.as_ref()), expected);
            assert!(rests(&mut one, 0), "it is being sent");
            one.done(sent.as_deref(), Outcome::Taken(1), 0, 0.0);
        }
        assert!(rests(&mut one, 0));
    }

    #[test]
    fn failures_keep_the_order_and_make_longer_waits() {
        let mut one = Recipient::new(UserNid(1), 0, false);
        one.add(&notice(1));
        one.add(&notice(2));
        let mut now = 0;
        for (pause, wait) in [(0, 1000), (1, 2000), (30, 30_000), (9000, 3_600_000)] {
            let failed = Outcome::Failed(Duration::from_secs(pause));
            let sent = sends(&mut one, now);
            assert_eq!(position(sent.as_ref()), 1);
            one.done(sent.as_deref(), failed, now, 0.0);
            assert!(matches!(one.next(now), Next::Wait(at) if at == now + wait));
            now += wait;
        }
        one.set_anew();
        let sent = sends(&mut one, 0);
        one.done(sent.as_deref(), Outcome::Taken(2), 0, 0.0);
        assert_eq!(position(sends(&mut one, 0).as_ref()), 2);
        assert_eq!(wait(1, 1.0), Duration::from_millis(800));
        assert_eq!(wait(u32::MAX, 0.0), LONGEST);
    }

    #[test]
    fn the_oldest_are_given_up_but_not_the_one_that_is_sent() {
        let mut one = Recipient::new(UserNid(1), 0, false);
        one.add(&notice(1));
        let sent = sends(&mut one, 0);
        for pos in 2..=250 {
            one.add(&notice(pos));
        }
        assert_eq!(one.waiting.len(), MOST_WAITING);
        one.done(sent.as_deref(), Outcome::Failed(Duration::ZERO), 0, 0.0);
        let again = sends(&mut one, 9000);
        assert_eq!(position(again.as_ref()), 1);
        one.done(again.as_deref(), Outcome::Taken(1), 0, 0.0);
        assert_eq!(position(sends(&mut one, 9000).as_ref()), 52);
    }

    #[test]
    fn what_is_read_is_told_alone_and_once() {
        let mut one = Recipient::new(UserNid(1), 0, false);
        one.may_have_read();
        assert!(rests(&mut one, 0), "it was told nothing yet");
        one.read();
        let sent = sends(&mut one, 0);
        assert!(sent.is_none());
        one.done(None, Outcome::Failed(Duration::ZERO), 0, 0.0);
        assert!(sends(&mut one, 1000).is_none(), "once more");
        one.read();
        one.done(None, Outcome::Taken(3), 0, 0.0);
        assert!(sends(&mut one, 1000).is_none(), "meanwhile");
        one.done(None, Outcome::Taken(0), 0, 0.0);
        one.read();
        assert!(rests(&mut one, 1000), "nothing can be less");
    }

    #[test]
    fn what_waits_is_written_down() {
        let mut one = Recipient::new(UserNid(1), 3, false);
        assert_eq!(one.unsaved(), None);
        one.add(&notice(7));
        one.add(&notice(9));
        assert_eq!(one.unsaved(), Some((6, true)));
        for expected in [(6, true), (8, true), (9, false)] {
            assert_eq!(one.unsaved(), Some(expected), "it may not have worked");
            one.was_saved(expected.0, expected.1);
            assert_eq!(one.unsaved(), None);
            if let Next::Send(sent) = one.next(0) {
                one.done(sent.as_deref(), Outcome::Taken(0), 0, 0.0);
            }
        }
        assert_eq!(one.unsaved(), None);
        let mut again = Recipient::new(UserNid(1), 6, true);
        assert_eq!(again.unsaved(), None);
        assert!(sends(&mut again, 0).is_none());
        again.done(None, Outcome::Needless, 0, 0.0);
        assert_eq!(again.unsaved(), Some((6, false)));
    }
}
