//! State resolution from little gives what ruma gives from everything.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use homing_federation::{
    Error, Pdu, SigningKey,
    auth_graph::{AuthGraph, MAX_SETS, Step, Walk},
    state_res::{ResolveError, StateMap, keys_needed, resolve, split},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use ruma::{EventId, OwnedEventId, RoomVersionId, events::StateEventType};

use crate::random_room::{RandomRoom, State};

/// A room on servers whose keys are always the same.
fn random_room(version: &RoomVersionId, seed: u64) -> RandomRoom {
    let servers = ["one.test", "two.test", "three.test"];
    let mut random = StdRng::from_seed([7; 32]);
    let servers = servers.map(|name| {
        let key = SigningKey::generate(&mut random);
        (name.try_into().unwrap(), Arc::new(key))
    });
    RandomRoom::new(&servers, version, seed)
}

/// What the resolutions of a test came across, to know that it tested something.
#[derive(Default)]
struct Seen {
    conflicts: usize,
    /// Events that would have been in the difference, were it not for the unconflicted state.
    cleared: usize,
    /// Differences that do not consist of conflicting events alone.
    differences: usize,
    /// Subgraphs with events that are not in conflict.
    subgraphs: usize,
    /// Conflicts in which a key lost its event.
    removed: usize,
}

/// A server that knows events by numbers, and loads what a walk asks for.
struct Numbers<'a> {
    room: &'a RandomRoom,
    of: HashMap<&'a EventId, usize>,
}

impl<'a> Numbers<'a> {
    fn new(room: &'a RandomRoom) -> Self {
        let of = room.events.iter().enumerate();
        Self {
            room,
            of: of.map(|(nid, event)| (&*event.event_id, nid)).collect(),
        }
    }

    fn many<'b>(&self, ids: impl IntoIterator<Item = &'b OwnedEventId>) -> Vec<usize> {
        ids.into_iter().map(|id| self.of[&**id]).collect()
    }

    fn id(&self, nid: usize) -> OwnedEventId {
        self.room.events[nid].event_id.clone()
    }

    /// Drives a walk to its end. The unconflicted state is read a little at a time.
    fn walk(&self, walk: &mut Walk<usize>, unconflicted: &State, graph: &mut AuthGraph<usize>) {
        let unconflicted = self.many(unconflicted.values());
        let mut rest = unconflicted.chunks(3);
        let mut is_first = true;
        loop {
            match walk.step(graph).unwrap() {
                Step::Load(nodes) => {
                    assert!(!nodes.is_empty());
                    for nid in nodes {
                        let auth_events = &self.room.events[nid].auth_events;
                        graph.insert(nid, self.many(auth_events));
                    }
                }
                Step::Doubtful(doubtful) if is_first => {
                    is_first = false;
                    let known = doubtful
                        .into_iter()
                        .filter(|nid| unconflicted.contains(nid));
                    walk.unconflicted(known);
                }
                Step::Doubtful(_) => match rest.next() {
                    Some(some) => walk.unconflicted(some.iter().copied()),
                    None => return,
                },
                Step::Done => return,
            }
        }
    }
}

/// Resolves sets in the way of the server, and compares each step with its definition.
fn check(room: &RandomRoom, sets: &[&State], graph: &mut AuthGraph<usize>, seen: &mut Seen) {
    let whole: Vec<State> = sets.iter().map(|set| (*set).clone()).collect();
    let (unconflicted, conflicted) = split(&whole);
    let numbers = Numbers::new(room);
    let nodes: Vec<_> = conflicted
        .iter()
        .map(|set| numbers.many(set.values()))
        .collect();
    let all: HashSet<_> = nodes.iter().flatten().copied().collect();

    let mut walk = Walk::new(&nodes, 10_000).unwrap();
    numbers.walk(&mut walk, &unconflicted, graph);
    let difference: HashSet<_> = walk.difference().collect();
    let chains: Vec<_> = sets
        .iter()
        .map(|set| room.auth_chain(set.values()))
        .collect();
    let in_some: HashSet<_> = chains.iter().flatten().collect();
    let expected: HashSet<_> = in_some
        .into_iter()
        .filter(|id| !chains.iter().all(|chain| chain.contains(*id)))
        .map(|id| numbers.of[&**id])
        .filter(|nid| !all.contains(nid))
        .collect();
    assert_eq!(difference, expected);

    let subgraph: HashSet<_> = walk.subgraph(graph).into_iter().collect();
    let expected = room.subgraph(conflicted.iter().flat_map(StateMap::values));
    assert_eq!(subgraph, numbers.many(&expected).into_iter().collect());

    let mut events: HashSet<_> = all.union(&difference).copied().collect();
    if room
        .rules
        .state_res
        .v2_rules()
        .unwrap()
        .consider_conflicted_state_subgraph
    {
        events.extend(&subgraph);
    }
    let events = events.iter().map(|nid| &room.events[*nid]);
    let needed = keys_needed(room.rules, events);
    let reduced: State = needed
        .into_iter()
        .filter_map(|key| unconflicted.get(&key).cloned().map(|id| (key, id)))
        .collect();
    let changes = resolve(
        room.rules,
        &conflicted,
        &reduced,
        difference.iter().map(|nid| numbers.id(*nid)),
        subgraph.iter().map(|nid| numbers.id(*nid)),
        |id| Ok::<_, Error>(room.by_id.get(id).map(Arc::clone)),
    )
    .unwrap();

    let mut resolved = unconflicted;
    for (key, id) in &changes {
        match id {
            Some(id) => resolved.insert(key.clone(), id.clone()),
            None => resolved.remove(key),
        };
    }
    assert_eq!(resolved, room.resolve(sets));

    seen.conflicts += usize::from(!all.is_empty());
    seen.differences += usize::from(!difference.is_empty());
    seen.subgraphs += usize::from(subgraph.len() > all.len());
    seen.removed += usize::from(changes.values().any(Option::is_none));
    let mut alone = Walk::new(&nodes, 10_000).unwrap();
    numbers.walk(&mut alone, &State::new(), graph);
    seen.cleared += alone.difference().count() - difference.len();
}

fn rooms(version: &RoomVersionId) -> Seen {
    let mut seen = Seen::default();
    let first = 100 * version.as_str().parse::<u64>().unwrap();
    for seed in first..first + 10 {
        let mut room = random_room(version, seed);
        let mut random = StdRng::seed_from_u64(seed);
        // The server keeps what it knows of the auth events between conflicts.
        let mut graph = AuthGraph::new();
        for _ in 0..60 {
            room.grow();
            let count = random.random_range(2..5);
            let ids: Vec<_> = (0..count)
                .map(|_| &room.events.choose(&mut random).unwrap().event_id)
                .collect();
            let sets: Vec<_> = ids.into_iter().map(|id| &*room.after[id]).collect();
            check(&room, &sets, &mut graph, &mut seen);
        }
        let heads: Vec<_> = room
            .heads
            .iter()
            .flatten()
            .map(|id| &*room.after[id])
            .collect();
        check(&room, &heads, &mut AuthGraph::new(), &mut seen);
    }
    seen
}

#[test]
fn random_rooms_resolve_as_with_whole_sets() {
    for version in [RoomVersionId::V10, RoomVersionId::V11, RoomVersionId::V12] {
        let seen = rooms(&version);
        let Seen {
            conflicts,
            cleared,
            differences,
            subgraphs,
            removed,
        } = seen;
        assert!(conflicts > 400, "{version}: {conflicts}");
        assert!(cleared > 400, "{version}: {cleared}");
        assert!(differences > 40, "{version}: {differences}");
        assert!(subgraphs > 40, "{version}: {subgraphs}");
        assert!(removed > 0, "{version}: {removed}");
    }
}

/// A small graph of which everything is known: `(event, auth events)`.
fn graph(edges: &[(u32, &[u32])]) -> AuthGraph<u32> {
    let mut graph = AuthGraph::new();
    for (event, auth_events) in edges {
        graph.insert(*event, *auth_events);
    }
    graph
}

/// 1 is the create event, 2 to 4 are power levels one after another, 5 and 6 conflict, 7 is a
/// member who came under the power levels 3.
const ROOM: &[(u32, &[u32])] = &[
    (1, &[]),
    (2, &[1]),
    (3, &[1, 2]),
    (4, &[1, 3]),
    (5, &[1, 2]),
    (6, &[1, 4]),
    (7, &[1, 3]),
];

#[test]
fn a_walk_asks_for_what_it_needs_and_no_more() {
    let known = graph(ROOM);
    let mut graph = AuthGraph::new();
    let mut walk = Walk::new(&[vec![5], vec![6]], 100).unwrap();
    let mut loads = Vec::new();
    let doubtful = loop {
        match walk.step(&graph).unwrap() {
            Step::Load(nodes) => {
                for node in &nodes {
                    graph.insert(*node, known.get(*node).unwrap());
                }
                loads.push(nodes);
            }
            Step::Doubtful(doubtful) => break doubtful,
            Step::Done => panic!("3 and 4 are doubtful"),
        }
    };
    assert_eq!(loads, [vec![5, 6], vec![1, 2, 4], vec![3]]);
    assert_eq!(doubtful, [3, 4]);
    assert_eq!(graph.len(), 6);
    assert!(!graph.is_empty());
    // The member leads to 3, whatever else is in the state; 4 remains.
    let mut other = walk.clone();
    other.unconflicted([7]);
    assert_eq!(other.step(&graph).unwrap(), Step::Load(vec![7]));
    graph.insert(7, known.get(7).unwrap());
    assert_eq!(other.step(&graph).unwrap(), Step::Doubtful(vec![4]));
    assert_eq!(other.difference().collect::<Vec<_>>(), [4]);
    let mut met: Vec<_> = other.met().collect();
    met.sort_unstable();
    assert_eq!(met, [1, 2, 3, 4, 5, 6]);
    // With 4 in the state nothing is left, and nothing more is asked for.
    walk.unconflicted([4, 8]);
    assert_eq!(walk.step(&graph).unwrap(), Step::Done);
    assert_eq!(walk.difference().count(), 0);
    assert_eq!(walk.subgraph(&graph), [5, 6]);
}

#[test]
fn a_walk_has_limits() {
    let graph = graph(ROOM);
    let mut walk = Walk::new(&[vec![5], vec![6]], 3).unwrap();
    let error = walk.step(&graph).unwrap_err();
    assert!(
        matches!(error, Error::TooManyEvents { limit: 3 }),
        "{error}"
    );
    // The rest of the room does not count.
    let mut walk = Walk::new(&[vec![5], vec![6]], 6).unwrap();
    walk.unconflicted([7]);
    assert_eq!(walk.step(&graph).unwrap(), Step::Doubtful(vec![4]));
    assert!(Walk::<u32>::new(&vec![Vec::new(); MAX_SETS], 3).is_ok());
    assert!(Walk::<u32>::new(&vec![Vec::new(); MAX_SETS + 1], 3).is_err());

    // Who does not load what is asked for is not asked for ever.
    let mut walk = Walk::new(&[vec![5], vec![6]], 100).unwrap();
    let nothing = AuthGraph::new();
    assert_eq!(walk.step(&nothing).unwrap(), Step::Load(vec![5, 6]));
    assert!(matches!(walk.step(&nothing), Err(Error::BadEvent(_))));
    // A part is progress.
    let mut walk = Walk::new(&[vec![5], vec![6]], 100).unwrap();
    walk.step(&nothing).unwrap();
    let mut some = AuthGraph::new();
    some.insert(5, []);
    assert_eq!(walk.step(&some).unwrap(), Step::Load(vec![6]));
}

#[test]
fn a_walk_in_a_circle_ends() {
    let graph = graph(&[(1, &[2]), (2, &[3]), (3, &[1]), (4, &[4])]);
    let mut walk = Walk::new(&[vec![1], vec![4]], 100).unwrap();
    assert_eq!(walk.step(&graph).unwrap(), Step::Doubtful(vec![2, 3]));
    assert_eq!(walk.subgraph(&graph), [1, 2, 3, 4]);
}

/// What an event leads to, itself included.
fn chain(edges: &[Vec<usize>], from: &[usize]) -> HashSet<usize> {
    let (mut found, mut todo) = (HashSet::new(), from.to_vec());
    while let Some(node) = todo.pop() {
        if found.insert(node) {
            todo.extend(&edges[node]);
        }
    }
    found
}

/// In any graph at all, even one with circles, a walk finds what the definition says, however
/// little it is given at a time.
#[test]
fn walks_through_random_graphs() {
    let mut random = StdRng::seed_from_u64(7);
    let mut found = 0;
    for round in 0..3_000 {
        let size = random.random_range(4..14);
        let edges: Vec<Vec<usize>> = (0..size)
            .map(|node| {
                let count = random.random_range(0..3);
                let last = if round % 4 == 0 { size } else { node.max(1) };
                (0..count).map(|_| random.random_range(0..last)).collect()
            })
            .collect();
        let mut some = |most: usize| -> Vec<usize> {
            let count = random.random_range(0..=most);
            (0..count).map(|_| random.random_range(0..size)).collect()
        };
        let sets = [some(2), some(2), some(1)];
        let unconflicted = some(3);
        let all: HashSet<_> = sets.iter().flatten().copied().collect();

        let mut walk = Walk::new(&sets, 100).unwrap();
        let mut graph = AuthGraph::new();
        let mut rest = unconflicted.iter();
        loop {
            match walk.step(&graph).unwrap() {
                Step::Load(nodes) => {
                    let node = *nodes.choose(&mut random).unwrap();
                    graph.insert(node, edges[node].as_slice());
                }
                Step::Doubtful(_) => match rest.next() {
                    Some(node) => walk.unconflicted([*node]),
                    None => break,
                },
                Step::Done => break,
            }
        }
        let chains: Vec<_> = sets.iter().map(|set| chain(&edges, set)).collect();
        let common = chain(&edges, &unconflicted);
        let difference: HashSet<_> = (0..size)
            .filter(|node| chains.iter().any(|chain| chain.contains(node)))
            .filter(|node| !chains.iter().all(|chain| chain.contains(node)))
            .filter(|node| !common.contains(node) && !all.contains(node))
            .collect();
        assert_eq!(walk.difference().collect::<HashSet<_>>(), difference);
        found += difference.len();

        let subgraph: HashSet<_> = chains
            .iter()
            .flatten()
            .copied()
            .filter(|node| !all.is_disjoint(&chain(&edges, &[*node])))
            .collect();
        let walked: HashSet<_> = walk.subgraph(&graph).into_iter().collect();
        assert_eq!(walked, subgraph);
    }
    assert!(found > 1_000, "{found}");
}

#[test]
fn nothing_is_in_conflict_with_itself() {
    let mut walk = Walk::new(&[vec![5]], 100).unwrap();
    assert_eq!(walk.step(&graph(ROOM)).unwrap(), Step::Done);
    let mut walk = Walk::<u32>::new(&[], 100).unwrap();
    assert_eq!(walk.step(&AuthGraph::new()).unwrap(), Step::Done);
    assert_eq!(split(&[]), (State::new(), Vec::new()));
}

/// Two topics that were set at the same time.
fn fork(version: &RoomVersionId) -> (RandomRoom, Vec<State>, State) {
    let mut room = random_room(version, 1);
    let key = (StateEventType::RoomTopic, String::new());
    loop {
        room.grow();
        let after: Vec<State> = room
            .heads
            .iter()
            .map(|heads| room.resolve_at(heads))
            .collect();
        let topics: HashSet<_> = after.iter().filter_map(|set| set.get(&key)).collect();
        if topics.len() == 3 {
            let (unconflicted, conflicted) = split(&after);
            return (room, conflicted, unconflicted);
        }
    }
}

/// What cannot be loaded is not what does not exist: with each event missing in turn, the answer
/// is an error.
#[test]
fn an_event_that_cannot_be_fetched_ends_the_resolution() {
    let (room, conflicted, unconflicted) = fork(&RoomVersionId::V11);
    let resolve_without = |missing: Option<&EventId>| {
        let asked = std::cell::RefCell::new(HashSet::new());
        let resolved = resolve(
            room.rules,
            &conflicted,
            &unconflicted,
            [],
            [],
            |id| -> Result<Option<Arc<Pdu>>, String> {
                asked.borrow_mut().insert(id.to_owned());
                if missing == Some(id) {
                    return Err(format!("the database is away: {id}"));
                }
                Ok(room.by_id.get(id).cloned())
            },
        );
        (resolved, asked.into_inner())
    };
    let (resolved, asked) = resolve_without(None);
    resolved.unwrap();
    assert!(asked.len() > 5);
    for id in asked {
        let (resolved, _) = resolve_without(Some(&id));
        let Err(ResolveError::Fetch(error)) = resolved else {
            panic!("{id}: {resolved:?}");
        };
        assert_eq!(error, format!("the database is away: {id}"));
    }
}

/// The create event of version 12 is in no auth chain; it is found by the room id.
#[test]
fn version_12_needs_its_create_event() {
    let (room, conflicted, unconflicted) = fork(&RoomVersionId::V12);
    let create = room.events[0].event_id.clone();
    let resolve_with = |create_is_known: bool| {
        resolve(
            room.rules,
            &conflicted,
            &unconflicted,
            [],
            [],
            |id| -> Result<Option<Arc<Pdu>>, Error> {
                let is_known = create_is_known || *id != create;
                Ok(room.by_id.get(id).filter(|_| is_known).cloned())
            },
        )
        .unwrap()
    };
    let topic = (StateEventType::RoomTopic, String::new());
    assert!(resolve_with(true)[&topic].is_some());
    assert!(resolve_with(false)[&topic].is_none());
    assert!(
        room.events[1..]
            .iter()
            .all(|event| !event.auth_events.contains(&create))
    );
    let needed = keys_needed(room.rules, conflicted[0].values().map(|id| &room.by_id[id]));
    assert!(needed.contains(&(StateEventType::RoomCreate, String::new())));
    assert!(needed.contains(&topic));
}
