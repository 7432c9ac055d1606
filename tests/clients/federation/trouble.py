"""History that has to be fetched, and what happens when servers do not reach each other for a while."""

from checks import check
from person import Failure, Person, expect, quote, same_state, short
from rooms import both_in, talk


def finds(person, room, texts):
    """Waits until walking back finds these messages, newest first."""

    def are_there():
        found = (event["content"].get("body") for event in person.history(room))
        return all(text in found for text in texts)

    person.until(f"{short(texts)} to be found by walking back", are_there, room)


@check
def back_pagination(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    room = alice.create_room(preset="public_chat")
    texts = [f"history {number}" for number in range(45)]
    for text in texts:
        alice.send(room, text)
    bob.join(room, here)
    events = bob.history(room)
    found = [event["content"]["body"] for event in events if event["type"] == "m.room.message"]
    expect(found, texts[::-1], "the messages from before the join")
    expect(events[-1]["type"], "m.room.create", "the first event of the room")


@check
def jump_to_date(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    room = alice.create_room(preset="public_chat")
    first = alice.send(room, "first")
    ts = alice.get(f"/rooms/{room}/event/{quote(first)}")["origin_server_ts"]
    for number in range(30):
        alice.send(room, f"later {number}")
    bob.join(room, here)
    found = bob.get(f"/_matrix/client/v1/rooms/{room}/timestamp_to_event", ts=ts, dir="f")
    expect(found["event_id"], first, "the event at that time")
    around = bob.get(f"/rooms/{room}/context/{quote(first)}")
    expect(around["event"]["content"]["body"], "first", "the event in its context")


@check(alone=True)
def outage_of_the_other(here, there):
    """The other server dies, much is said, and it comes back."""
    alice, bob, room = both_in(here, there)
    quiet = alice.create_room(preset="public_chat")
    bob.join(quiet, here)
    talk(room, alice, bob)
    there.kill()
    texts = [f"while you were away {number}" for number in range(15)]
    for text in texts:
        alice.send(room, text)
    alice.send(quiet, "here too")
    alice.set_state(room, "m.room.topic", {"topic": "absence"})
    there.start()
    bob.send(room, "I am back")
    alice.sees(room, "I am back")
    bob.sees(quiet, "here too")
    bob.sees_state(room, "m.room.topic", {"topic": "absence"})
    finds(bob, room, texts[::-1])
    talk(room, alice, bob)
    same_state(room, alice, bob)


@check(alone=True)
def outage_of_oneself(here, there):
    """A server dies while it has things to send, and sends them when it is back."""
    alice, bob, room = both_in(here, there)
    talk(room, alice, bob)
    here.link.cut()
    there.link.cut()
    alice.send(room, "said into the void")
    here.kill()
    here.link.mend()
    there.link.mend()
    here.start()
    alice.send(room, "and again")
    bob.sees(room, "and again")
    finds(bob, room, ["and again", "said into the void"])
    bob.send(room, "heard")
    alice.sees(room, "heard")
    same_state(room, alice, bob)


@check(alone=True)
def forks(here, there):
    """The link is cut, both sides go on by themselves, and agree afterwards."""
    alice, bob, room = both_in(here, there)
    carol, dave = Person(here, "carol"), Person(there, "dave")
    carol.join(room)
    dave.join(room)
    equal = {bob.id: 100}
    alice.change_state(room, "m.room.power_levels", lambda levels: levels.setdefault("users", {}).update(equal))
    bob.until("power", lambda: bob.room(room).content("m.room.power_levels")["users"].get(bob.id) == 100, room)
    for person in (alice, carol, bob, dave):
        person.sees_member(room, dave, "join")
    here.link.cut()
    there.link.cut()
    for number in range(4):
        alice.send(room, f"left {number}")
        bob.send(room, f"right {number}")
    alice.set_state(room, "m.room.topic", {"topic": "left"})
    bob.set_state(room, "m.room.topic", {"topic": "right"})
    alice.set_state(room, "m.room.name", {"name": "only left"})
    bob.set_state(room, "org.example.side", {"name": "only right"}, "right")
    alice.post(f"/rooms/{room}/ban", {"user_id": dave.id})
    dave.send(room, "said after the ban, or before")
    bob.post(f"/rooms/{room}/kick", {"user_id": carol.id})
    here.link.mend()
    there.link.mend()
    alice.send(room, "left again")
    bob.send(room, "right again")
    alice.sees(room, "right again")
    bob.sees(room, "left again")
    texts = [f"left {number}" for number in range(4)], [f"right {number}" for number in range(4)]
    for person in (alice, bob):
        for side in texts:
            finds(person, room, side[::-1])
    same_state(room, alice, bob)
    state = alice.state_ids(room)
    topics = {person: person.get(f"/rooms/{room}/state/m.room.topic/")["topic"] for person in (alice, bob)}
    expect(len(set(topics.values())), 1, f"the topics {short({str(key): topic for key, topic in topics.items()})}")
    expect(alice.get(f"/rooms/{room}/state/m.room.name/")["name"], "only left", "the name that one side gave")
    if "org.example.side|right" not in state:
        raise Failure(f"the state that the other side set: expected it to be there, saw {sorted(state)}")
    expect(bob.get(f"/rooms/{room}/state/m.room.member/{dave.id}")["membership"], "ban", "who was banned")
    talk(room, alice, bob)
