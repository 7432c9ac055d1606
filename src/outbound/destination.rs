//! One other server: what waits for it, and when it is tried.

use std::{collections::VecDeque, sync::Arc};

use homing_federation::backoff;
use ruma::OwnedServerName;

use super::{
    durable::Durable,
    edus::{Edus, Note},
    transaction::{Pdu, Transaction},
};
use crate::storage::{Pos, ServerNid, destinations::DestinationRow};

/// The most PDUs in a transaction ("Transactions").
pub(super) const MOST_PDUS: usize = 50;
/// The most bytes of PDUs in a transaction that has more than one: some servers take no requests of more than a mebibyte, and
/// EDUs go with them.
pub(super) const MOST_BYTES: usize = 512 << 10;
/// The most events that wait in memory; when there are more, the database is asked.
const QUEUE: usize = 200;
/// For how long a transaction that could not be sent is kept, in milliseconds: when the next try is later than this, the
/// database is asked then. A restart ends waits that are not longer.
const KEEP: i64 = 10 * 60_000;
/// How long there is quiet after a transaction without PDUs, in milliseconds.
const QUIET: i64 = 1000;
/// How long after a failure a server is not tried, whatever happens, in milliseconds.
const PAUSE: i64 = 2000;

/// Another server.
#[derive(Debug)]
pub(super) struct Destination {
    pub(super) name: OwnedServerName,
    /// How far it has come, and what failed.
    pub(super) row: DestinationRow,
    /// Whether the database does not know `row`.
    pub(super) is_unsaved: bool,
    /// Events after `row.last_ok_pos`, in their order.
    queue: VecDeque<Arc<Pdu>>,
    behind: Option<Behind>,
    edus: Edus,
    /// Whether EDUs that must not be lost may wait in the database.
    has_durable: bool,
    /// The first of them, to be sent next.
    durable: Durable,
    /// A transaction that was not taken, to be sent again.
    unsent: Option<Transaction>,
    /// Something is being read or sent.
    pub(super) is_busy: bool,
    /// When a transaction without PDUs may be sent.
    quiet_until: i64,
    /// When something last happened.
    pub(super) used: i64,
    /// When it failed last.
    failed: i64,
}

/// What was not sent is to be read from the database.
#[derive(Clone, Copy, Debug)]
struct Behind {
    /// From this position on.
    from: Pos,
    /// More has happened since the reading began than the queue holds.
    has_overflown: bool,
}

/// What is to be done for a destination.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// To look again at this time, in milliseconds since 1970.
    Wait(i64),
    /// To read the rooms with something newer than `after`, and of them the latest events that are newer than `from`.
    Read { after: Pos, from: Pos },
    /// To read what waits beside events.
    ReadDurable,
    /// To send this.
    Send(Transaction),
}

impl Destination {
    /// A server as an earlier run has left it. It is tried at once if it has not been away for long: what kept it from this
    /// one may have been trouble here, which a restart often ends.
    pub(super) fn loaded(
        name: OwnedServerName,
        mut row: DestinationRow,
        is_behind: bool,
        now: i64,
    ) -> Self {
        row.next_try = row.next_try.filter(|next_try| *next_try > now + KEEP);
        Self::new(name, row, is_behind)
    }

    /// A server that has been sent everything up to `row.last_ok_pos`; if it `is_behind`, not everything since.
    pub(super) fn new(name: OwnedServerName, row: DestinationRow, is_behind: bool) -> Self {
        let mut destination = Self {
            name,
            row,
            is_unsaved: false,
            queue: VecDeque::new(),
            behind: None,
            edus: Edus::default(),
            has_durable: false,
            durable: Durable::default(),
            unsent: None,
            is_busy: false,
            quiet_until: 0,
            used: 0,
            failed: 0,
        };
        if is_behind {
            destination.fall_behind();
        }
        destination
    }

    /// The server.
    pub(super) fn server(&self) -> ServerNid {
        self.row.server
    }

    /// How many events wait in memory.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether the server could not be reached when it was tried last.
    pub(super) fn is_failing(&self) -> bool {
        self.row.failures > 0
    }

    /// Whether nothing is lost if it is forgotten.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_busy
            && !self.is_unsaved
            && !self.is_failing()
            && self.queue.is_empty()
            && self.behind.is_none()
            && self.unsent.is_none()
            && self.edus.is_empty()
            && !self.has_durable
            && self.durable.is_empty()
    }

    /// An event is for the server.
    pub(super) fn add_pdu(&mut self, pdu: &Arc<Pdu>) {
        if pdu.pos <= self.row.last_ok_pos {
            return;
        }
        if self.queue.len() >= QUEUE {
            self.fall_behind();
        } else {
            self.queue.push_back(Arc::clone(pdu));
        }
    }

    /// Something that is not kept is for the server. Who cannot be reached does not get it.
    pub(super) fn add_note(&mut self, note: &Arc<Note>) {
        if !self.is_failing() {
            self.edus.add(note);
        }
    }

    /// Something that must not be lost waits for the server in the database.
    pub(super) fn add_durable(&mut self) {
        self.has_durable = true;
    }

    /// What waited there was read.
    pub(super) fn durable_read(&mut self, durable: Durable) {
        self.is_busy = false;
        self.has_durable |= durable.has_more;
        self.durable = durable;
    }

    /// Lets memory go; what is not sent is read from the database.
    fn fall_behind(&mut self) {
        self.queue.clear();
        match &mut self.behind {
            Some(behind) => behind.has_overflown = true,
            None => {
                self.behind = Some(Behind {
                    from: self.row.last_ok_pos,
                    has_overflown: false,
                });
            }
        }
    }

    /// What is to be done now; while that is done the destination is busy.
    pub(super) fn next(&mut self, now: i64) -> Next {
        if self.is_busy {
            return Next::Nothing;
        }
        if let Some(next_try) = self.row.next_try.filter(|next_try| *next_try > now) {
            return Next::Wait(next_try);
        }
        let next = if let Some(unsent) = self.unsent.take() {
            Next::Send(unsent)
        } else if self.has_durable && self.durable.is_empty() {
            self.has_durable = false;
            Next::ReadDurable
        } else if let Some(behind) = self.behind {
            Next::Read {
                after: self.row.last_ok_pos,
                from: behind.from,
            }
        } else if self.queue.is_empty() {
            if self.durable.is_empty() {
                if self.edus.is_empty() {
                    return Next::Nothing;
                }
                if self.quiet_until > now {
                    return Next::Wait(self.quiet_until);
                }
            }
            self.quiet_until = now + QUIET;
            Next::Send(Transaction::new(Vec::new(), self.take_edus(), 0, false))
        } else {
            let pdus: Vec<_> = self.queue.drain(..self.fitting()).collect();
            let upto = pdus.last().map_or(0, |pdu| pdu.pos);
            Next::Send(Transaction::new(pdus, self.take_edus(), upto, true))
        };
        self.is_busy = true;
        self.used = now;
        next
    }

    fn take_edus(&mut self) -> (Durable, Vec<String>) {
        (std::mem::take(&mut self.durable), self.edus.take())
    }

    /// How many of the events that wait go into one transaction.
    fn fitting(&self) -> usize {
        let sizes = self.queue.iter().take(MOST_PDUS).map(|pdu| pdu.json.len());
        let sums = sizes.scan(0, |sum, size| {
            *sum += size;
            Some(*sum)
        });
        sums.take_while(|sum| *sum <= MOST_BYTES).count().max(1)
    }

    /// What was read: the events, and up to where that is all. With nothing there the destination is not behind any more,
    /// unless too much has happened since. Answers what is to be sent; then the destination stays busy.
    pub(super) fn read(&mut self, pdus: Vec<Arc<Pdu>>, upto: Option<Pos>) -> Option<Transaction> {
        match upto {
            Some(upto) if !pdus.is_empty() => {
                return Some(Transaction::new(pdus, self.take_edus(), upto, false));
            }
            Some(upto) => self.has_come_to(upto),
            None => match &mut self.behind {
                Some(behind) if behind.has_overflown => behind.has_overflown = false,
                _ => {
                    self.behind = None;
                    let sent = self.row.last_ok_pos;
                    self.queue.retain(|pdu| pdu.pos > sent);
                }
            },
        }
        self.is_busy = false;
        None
    }

    /// What was not sent could not be read, or what was being sent is lost.
    pub(super) fn start_anew(&mut self, now: i64) {
        self.is_busy = false;
        self.has_durable = true;
        self.fall_behind();
        self.row.next_try = Some(now + PAUSE);
    }

    fn has_come_to(&mut self, pos: Pos) {
        if pos > self.row.last_ok_pos {
            self.row.last_ok_pos = pos;
            self.is_unsaved = true;
        }
    }

    /// The server has taken a transaction.
    pub(super) fn sent(&mut self, transaction: &Transaction, now: i64) {
        self.is_busy = false;
        self.used = now;
        self.is_unsaved |= self.is_failing();
        self.row.failures = 0;
        self.row.fail_since = None;
        self.row.next_try = None;
        self.has_come_to(transaction.upto);
        if transaction.is_whole
            && let Some(behind) = &mut self.behind
        {
            behind.from = behind.from.max(transaction.upto);
        }
    }

    /// The server has not taken a transaction. `jitter` is between 0 and 1.
    pub(super) fn failed(&mut self, mut transaction: Transaction, now: i64, jitter: f64) {
        self.is_busy = false;
        self.is_unsaved = true;
        self.used = now;
        self.failed = now;
        self.row.failures += 1;
        self.row.fail_since.get_or_insert(now);
        let failures = u32::try_from(self.row.failures).unwrap_or(u32::MAX);
        let wait = backoff::wait(failures, jitter);
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX / 2);
        self.row.next_try = Some(now + wait);
        self.edus = Edus::default();
        if transaction.pdus.is_empty() || wait > KEEP {
            self.has_durable |= !transaction.durable.is_empty();
            if !transaction.pdus.is_empty() {
                self.fall_behind();
            }
            return;
        }
        transaction.drop_edus();
        self.unsent = Some(transaction);
    }

    /// The server was heard from: it is tried at once, and leaves off where the waits are short.
    pub(super) fn heard(&mut self, now: i64) {
        if self.is_failing() {
            self.row.failures = 1;
            self.row.next_try = Some(now.max(self.failed + PAUSE));
            self.is_unsaved = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{RoomNid, UserNid};

    const DAY: i64 = 24 * 3_600_000;

    fn destination(last_ok_pos: Pos, is_behind: bool) -> Destination {
        let row = DestinationRow {
            server: ServerNid(1),
            name: "b.example".to_owned(),
            last_ok_pos,
            failures: 0,
            fail_since: None,
            next_try: None,
        };
        Destination::new("b.example".try_into().unwrap(), row, is_behind)
    }

    fn pdu(pos: Pos) -> Arc<Pdu> {
        let json = "{}".into();
        Arc::new(Pdu { pos, json })
    }

    fn add(destination: &mut Destination, positions: impl IntoIterator<Item = Pos>) {
        for pos in positions {
            destination.add_pdu(&pdu(pos));
        }
    }

    fn typing() -> Arc<Note> {
        Arc::new(Note::Typing {
            room: RoomNid(1),
            user: UserNid(1),
            json: "{}".to_owned(),
        })
    }

    #[track_caller]
    fn sending(destination: &mut Destination, now: i64) -> Transaction {
        match destination.next(now) {
            Next::Send(transaction) => transaction,
            next => panic!("{next:?}"),
        }
    }

    fn positions(transaction: &Transaction) -> Vec<Pos> {
        transaction.pdus.iter().map(|pdu| pdu.pos).collect()
    }

    #[test]
    fn fifty_are_sent_at_once_and_one_transaction_at_a_time() {
        let mut one = destination(0, false);
        add(&mut one, 1..=51);
        let first = sending(&mut one, 0);
        assert_eq!(positions(&first), (1..=50).collect::<Vec<_>>());
        add(&mut one, [52]);
        assert_eq!(one.next(0), Next::Nothing, "one is under way");
        one.sent(&first, 0);
        assert_eq!(one.row.last_ok_pos, 50);
        let second = sending(&mut one, 0);
        assert_eq!(positions(&second), [51, 52]);
        one.sent(&second, 0);
        assert_eq!(one.row.last_ok_pos, 52);
        assert_eq!(one.next(0), Next::Nothing);
    }

    #[test]
    fn large_events_go_in_several_transactions() {
        let mut one = destination(0, false);
        let large = |pos, bytes: usize| {
            let json = "x".repeat(bytes).into();
            Arc::new(Pdu { pos, json })
        };
        one.add_pdu(&large(1, MOST_BYTES + 1));
        for pos in 2..=4 {
            one.add_pdu(&large(pos, MOST_BYTES / 2));
        }
        for expected in [vec![1], vec![2, 3], vec![4]] {
            let transaction = sending(&mut one, 0);
            assert_eq!(positions(&transaction), expected);
            one.sent(&transaction, 0);
        }
    }

    #[test]
    fn what_failed_is_sent_again_with_longer_and_longer_waits() {
        let mut one = destination(0, false);
        add(&mut one, [1]);
        let first = sending(&mut one, 0);
        one.failed(first, 0, 0.0);
        add(&mut one, [2]);
        assert_eq!(one.next(1999), Next::Wait(2000));
        let again = sending(&mut one, 2000);
        assert_eq!(positions(&again), [1]);
        one.failed(again, 2000, 0.0);
        assert_eq!(one.next(2001), Next::Wait(6000));
        assert_eq!(one.row.fail_since, Some(0));
        let again = sending(&mut one, 6000);
        one.sent(&again, 6000);
        assert_eq!(positions(&sending(&mut one, 6000)), [2]);
        assert_eq!((one.row.failures, one.row.fail_since), (0, None));
    }

    #[test]
    fn after_a_long_outage_the_database_is_asked() {
        let mut one = destination(5, false);
        add(&mut one, [6]);
        let mut now = 0;
        for _ in 0..20 {
            let transaction = match one.next(now) {
                Next::Send(transaction) => transaction,
                Next::Read { after, from } => {
                    assert_eq!((after, from), (5, 5));
                    one.read(vec![pdu(6)], Some(6)).unwrap()
                }
                next => panic!("{next:?}"),
            };
            one.failed(transaction, now, 0.0);
            let next_try = one.row.next_try.unwrap();
            assert!(next_try - now <= DAY);
            now = next_try;
        }
        assert_eq!(now - one.failed, DAY);
        assert_eq!(one.next(now), Next::Read { after: 5, from: 5 });
    }

    #[test]
    fn too_much_is_read_from_the_database_and_then_it_goes_on() {
        let mut one = destination(0, false);
        add(&mut one, 1..=201);
        assert_eq!(one.waiting(), 0);
        assert_eq!(one.next(0), Next::Read { after: 0, from: 0 });
        add(&mut one, 202..=205);
        let read = one.read((152..=201).map(pdu).collect(), Some(201)).unwrap();
        assert_eq!(one.next(0), Next::Nothing, "it is being sent");
        one.sent(&read, 0);
        let next = one.next(0);
        assert_eq!(
            next,
            Next::Read {
                after: 201,
                from: 0
            }
        );
        let read = one.read(vec![pdu(202), pdu(203)], Some(203)).unwrap();
        one.sent(&read, 0);
        assert_eq!(
            one.next(0),
            Next::Read {
                after: 203,
                from: 0
            }
        );
        assert!(one.read(Vec::new(), None).is_none());
        assert_eq!(positions(&sending(&mut one, 0)), [204, 205]);
    }

    #[test]
    fn what_overflows_while_it_is_read_is_read_again() {
        let mut one = destination(0, true);
        assert_eq!(one.next(0), Next::Read { after: 0, from: 0 });
        add(&mut one, 1..=250);
        assert!(one.read(Vec::new(), None).is_none());
        assert_eq!(one.next(0), Next::Read { after: 0, from: 0 });
        assert!(one.read(Vec::new(), None).is_none());
        let rest = positions(&sending(&mut one, 0));
        assert_eq!(rest, (202..=250).collect::<Vec<_>>(), "{rest:?}");
    }

    #[test]
    fn notes_go_with_events_or_now_and_then_alone() {
        let mut one = destination(0, false);
        one.add_note(&typing());
        let alone = sending(&mut one, 0);
        assert!(alone.pdus.is_empty() && alone.has_edus());
        one.sent(&alone, 0);
        assert_eq!(one.row.last_ok_pos, 0);
        one.add_note(&typing());
        assert_eq!(one.next(1), Next::Wait(QUIET));
        add(&mut one, [1]);
        let both = sending(&mut one, 2);
        assert!(!both.pdus.is_empty() && both.has_edus());
        one.failed(both, 3, 0.0);
        one.add_note(&typing());
        let again = sending(&mut one, 30_003);
        assert!(!again.pdus.is_empty() && !again.has_edus());
        one.sent(&again, 30_003);
        assert_eq!(one.next(30_003), Next::Nothing);
    }

    #[test]
    fn what_must_not_be_lost_is_read_and_sent_until_it_is_taken() {
        let mut one = destination(0, false);
        one.add_durable();
        assert_eq!(one.next(0), Next::ReadDurable);
        one.durable_read(Durable::new(&["{}"], 7, true));
        let alone = sending(&mut one, 0);
        assert_eq!(alone.durable.edus, ["{}"]);
        one.failed(alone, 0, 0.0);
        assert!(!one.is_idle());
        assert_eq!(one.next(30_000), Next::ReadDurable);
        one.durable_read(Durable::new(&["{}"], 7, true));
        add(&mut one, [1]);
        let both = sending(&mut one, 30_000);
        assert_eq!((both.pdus.len(), both.durable.edus.len()), (1, 1));
        one.failed(both, 30_000, 0.0);
        let again = sending(&mut one, 90_000);
        assert_eq!((again.pdus.len(), again.durable.edus.len()), (1, 1));
        one.sent(&again, 90_000);
        assert_eq!(one.next(90_000), Next::ReadDurable, "there was more");
        one.durable_read(Durable::default());
        assert_eq!(one.next(90_000), Next::Nothing);
        one.is_unsaved = false;
        assert!(one.is_idle());
    }

    #[test]
    fn a_note_that_is_not_taken_is_forgotten() {
        let mut one = destination(0, false);
        one.add_note(&typing());
        let alone = sending(&mut one, 0);
        one.failed(alone, 0, 0.0);
        assert_eq!(one.next(0), Next::Wait(2000));
        assert_eq!(one.next(2000), Next::Nothing);
        add(&mut one, [1]);
        assert!(matches!(one.next(2000), Next::Send(_)));
    }

    #[test]
    fn who_is_heard_from_is_tried_at_once() {
        let mut one = destination(0, false);
        add(&mut one, [1]);
        for now in [0, 2000, 6000] {
            let transaction = sending(&mut one, now);
            one.failed(transaction, now, 0.0);
        }
        assert_eq!(one.next(6001), Next::Wait(14_000));
        one.heard(6001);
        assert_eq!(one.next(6001), Next::Wait(8000), "not without a pause");
        let transaction = sending(&mut one, 8000);
        one.failed(transaction, 8000, 0.0);
        assert_eq!(
            one.next(8000),
            Next::Wait(12_000),
            "the waits are short again"
        );
    }
}
