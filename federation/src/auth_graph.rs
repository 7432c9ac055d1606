//! Which events of a room authorize which, and what state resolution has to know about it.
//!
//! State resolution asks for the *auth difference* of some state sets: the events that are in the
//! auth chains of some sets, but not of all. Taken literally that means to walk through the auth
//! chains of every member of the room. A [`Walk`] finds the same from little:
//!
//! 1. It goes down from the conflicting events only, and marks each event with the sets whose
//!    conflicting events lead to it.
//! 2. An event that not all sets lead to is *doubtful*: should the unconflicted state, which is
//!    in all sets, lead to it too, then it is in all chains. So the caller names some unconflicted
//!    events, first those that are doubtful themselves (nearly all are: the sender's membership,
//!    the power levels), and goes on until nothing is doubtful or there are no more. What is still
//!    doubtful then is the difference.
//!
//! The walk does no input and output. It says what it needs next ([`Step`]), so that its caller
//! can load many events at once from a database, and keep the [`AuthGraph`] for the next time.
//! The auth events of an event never change.
//!
//! Specification: <https://spec.matrix.org/v1.19/rooms/v2/#state-resolution>.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::Hash,
};

use crate::Error;

/// The most state sets that are resolved at once. Events have at most 20 previous events.
pub const MAX_SETS: usize = 63;

/// The mark of what the unconflicted state leads to.
const UNCONFLICTED: u64 = 1 << MAX_SETS;

/// The auth events of events, as far as they are known.
///
/// `N` stands for an event. It should be small: a number of the caller's own.
#[derive(Clone, Debug)]
pub struct AuthGraph<N> {
    auth_events: HashMap<N, Box<[N]>>,
}

impl<N> Default for AuthGraph<N> {
    fn default() -> Self {
        Self {
            auth_events: HashMap::new(),
        }
    }
}

impl<N: Copy + Eq + Hash> AuthGraph<N> {
    /// A graph that knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the auth events of an event known.
    pub fn insert(&mut self, event: N, auth_events: impl Into<Box<[N]>>) {
        self.auth_events.insert(event, auth_events.into());
    }

    /// The auth events of an event, or `None` if they are not known.
    #[must_use]
    pub fn get(&self, event: N) -> Option<&[N]> {
        self.auth_events.get(&event).map(|events| &**events)
    }

    /// How many events are known, for the caller to forget a graph that has grown large.
    #[must_use]
    pub fn len(&self) -> usize {
        self.auth_events.len()
    }

    /// Whether no event is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.auth_events.is_empty()
    }
}

/// What a [`Walk`] needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<N> {
    /// The auth events of these, in the graph. Not all of them have to come at once.
    Load(Vec<N>),
    /// Unconflicted state events that may lead to one of these, by [`Walk::unconflicted`]: first
    /// those of them that are in the unconflicted state themselves. If there are no more, then
    /// these are the auth difference.
    Doubtful(Vec<N>),
    /// Nothing: nothing is doubtful, and the auth difference has no event that is not itself in
    /// conflict.
    Done,
}

/// A search for the auth difference and the conflicted state subgraph of some state sets.
#[derive(Clone, Debug)]
pub struct Walk<N> {
    /// The events that are in conflict.
    conflicted: HashSet<N>,
    /// The marks of all sets together.
    all: u64,
    /// The marks of each event that was met.
    marks: HashMap<N, u64>,
    /// Marks that are still to be handed to events.
    todo: Vec<(N, u64)>,
    /// Events that were met and whose auth events are not known.
    waiting: BTreeSet<N>,
    /// How many events were waiting when the caller was last asked to load them.
    asked: Option<usize>,
    /// The doubtful events, once all conflicting events were gone down from.
    doubtful: Option<BTreeSet<N>>,
    /// How many events the conflicting ones lead to, and how many they may.
    met: usize,
    limit: usize,
}

impl<N: Copy + Eq + Hash + Ord> Walk<N> {
    /// Starts with the conflicting events of each state set: those of all keys that do not have
    /// the same event in every set. They may lead to at most `limit` events. What the unconflicted
    /// state leads to has no limit but the caller's, who need not name all of it.
    ///
    /// # Errors
    ///
    /// [`Error::BadEvent`] if there are more than [`MAX_SETS`] sets.
    pub fn new(sets: &[Vec<N>], limit: usize) -> Result<Self, Error> {
        if sets.len() > MAX_SETS {
            return Err(Error::BadEvent(format!(
                "{} state sets are in conflict, at most {MAX_SETS} can be",
                sets.len()
            )));
        }
        let mut todo = Vec::new();
        for (index, set) in sets.iter().enumerate() {
            todo.extend(set.iter().map(|event| (*event, 1 << index)));
        }
        Ok(Self {
            conflicted: todo.iter().map(|(event, _)| *event).collect(),
            all: (1 << sets.len()) - 1,
            marks: HashMap::new(),
            todo,
            waiting: BTreeSet::new(),
            asked: None,
            doubtful: None,
            met: 0,
            limit,
        })
    }

    /// Goes as far as the graph allows. To be called again and again, until what it asks for is
    /// exhausted.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyEvents`] if there are more events than the limit allows, and
    /// [`Error::BadEvent`] if nothing of what was to be loaded is in the graph.
    pub fn step(&mut self, graph: &AuthGraph<N>) -> Result<Step<N>, Error> {
        self.wake(graph)?;
        while let Some((event, marks)) = self.todo.pop() {
            self.mark(event, marks, graph);
            if self.met > self.limit {
                return Err(Error::TooManyEvents { limit: self.limit });
            }
            if self.doubtful.as_ref().is_some_and(BTreeSet::is_empty) {
                self.todo.clear();
                self.waiting.clear();
            }
        }
        if !self.waiting.is_empty() {
            self.asked = Some(self.waiting.len());
            return Ok(Step::Load(self.waiting.iter().copied().collect()));
        }
        let (conflicted, all) = (&self.conflicted, self.all);
        let marks = &self.marks;
        let doubtful = self.doubtful.get_or_insert_with(|| {
            let is_doubtful = |(event, marks): &(&N, &u64)| {
                **marks & all != all && **marks & UNCONFLICTED == 0 && !conflicted.contains(*event)
            };
            let doubtful = marks.iter().filter(is_doubtful);
            doubtful.map(|(event, _)| *event).collect()
        });
        Ok(if doubtful.is_empty() {
            Step::Done
        } else {
            Step::Doubtful(doubtful.iter().copied().collect())
        })
    }

    /// Names events of the unconflicted state. It does no harm to name one twice.
    pub fn unconflicted(&mut self, events: impl IntoIterator<Item = N>) {
        let events = events.into_iter().map(|event| (event, UNCONFLICTED));
        self.todo.extend(events);
    }

    /// The auth difference, without the events that are themselves in conflict: the events that
    /// are doubtful still. Right after the last unconflicted event was named and
    /// [`step`](Self::step) asks for more, or is done.
    pub fn difference(&self) -> impl Iterator<Item = N> {
        self.doubtful.iter().flatten().copied()
    }

    /// The conflicted state subgraph: the events on the ways from a conflicting event to another,
    /// with both ends. It is complete once [`step`](Self::step) asked for no events to load.
    #[must_use]
    pub fn subgraph(&self, graph: &AuthGraph<N>) -> Vec<N> {
        let mut authorized: HashMap<N, Vec<N>> = HashMap::new();
        for event in self.met() {
            for auth_event in graph.get(event).unwrap_or_default() {
                authorized.entry(*auth_event).or_default().push(event);
            }
        }
        // All of these are below a conflicting event; now up from the conflicting events.
        let mut found = self.conflicted.clone();
        let mut todo: Vec<N> = found.iter().copied().collect();
        while let Some(event) = todo.pop() {
            for above in authorized.get(&event).into_iter().flatten() {
                if found.insert(*above) {
                    todo.push(*above);
                }
            }
        }
        let mut found: Vec<N> = found.into_iter().collect();
        found.sort_unstable();
        found
    }

    /// The events that the conflicting ones lead to, themselves included. With the unconflicted
    /// ones that it is given, these are nearly all that
    /// [`resolve`](crate::state_res::resolve) will want to see.
    pub fn met(&self) -> impl Iterator<Item = N> {
        let below = self.marks.iter();
        let below = below.filter(|(_, marks)| *marks & self.all != 0);
        below.map(|(event, _)| *event)
    }

    /// Goes on from the events whose auth events have come into the graph.
    fn wake(&mut self, graph: &AuthGraph<N>) -> Result<(), Error> {
        let mut woken = Vec::new();
        self.waiting.retain(|event| {
            let auth_events = graph.get(*event);
            if let Some(auth_events) = auth_events {
                woken.push((*event, auth_events));
            }
            auth_events.is_none()
        });
        for (event, auth_events) in woken {
            let marks = self.marks.get(&event).copied().unwrap_or_default();
            let handed = auth_events.iter().map(|event| (*event, marks));
            self.todo.extend(handed);
        }
        if self.asked.take() == Some(self.waiting.len()) && !self.waiting.is_empty() {
            return Err(Error::BadEvent(
                "the auth events of an event could not be loaded".to_owned(),
            ));
        }
        Ok(())
    }

    /// Marks an event, and hands on to its auth events what is new.
    fn mark(&mut self, event: N, marks: u64, graph: &AuthGraph<N>) {
        let known = self.marks.entry(event).or_default();
        let new = marks & !*known;
        if new == 0 {
            return;
        }
        // What all sets lead to leads to nothing doubtful.
        let is_common = *known & self.all == self.all;
        self.met += usize::from(*known & self.all == 0 && new & self.all != 0);
        *known |= new;
        if new & UNCONFLICTED != 0 {
            if let Some(doubtful) = &mut self.doubtful {
                doubtful.remove(&event);
            }
            if is_common {
                return;
            }
        }
        match graph.get(event) {
            Some(auth_events) => {
                let handed = auth_events.iter().map(|event| (*event, new));
                self.todo.extend(handed);
            }
            None => {
                self.waiting.insert(event);
            }
        }
    }
}
