"""Rooms that people of both servers are in: how they get there, and what they do there."""

from checks import check
from person import Failure, Person, expect, quote, same_state, short

VERSIONS = ["6", "7", "8", "9", "10", "11", "12"]
OLD_VERSIONS = ["3", "4", "5"]  # Synapse makes these, and Homing joins them


def both_in(here, there, **options):
    """A public room that somebody here has made and somebody there has joined."""
    alice, bob = Person(here, "alice"), Person(there, "bob")
    room = alice.create_room(**{"preset": "public_chat", **options})
    bob.join(room, here)
    alice.sees_member(room, bob, "join")
    return alice, bob, room


def talk(room, alice, bob):
    """A word in each direction."""
    alice.send(room, f"from {alice.id}")
    bob.sees(room, f"from {alice.id}")
    bob.send(room, f"from {bob.id}")
    alice.sees(room, f"from {alice.id}", f"from {bob.id}")


@check
def direct_room(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    room = alice.create_room(preset="trusted_private_chat", is_direct=True, invite=[bob.id])
    bob.sees_membership(room, "invite")
    invite = bob.room(room).state["m.room.member", bob.id]
    expect(invite["sender"], alice.id, "who invites")
    expect(invite["content"].get("is_direct"), True, "whether the invite is to a direct chat")
    bob.join(room)
    alice.sees_member(room, bob, "join")
    for number in range(3):
        alice.send(room, f"question {number}")
        bob.sees(room, f"question {number}")
        bob.send(room, f"answer {number}")
        for person in (alice, bob):
            person.sees(room, f"answer {number}")
    expect(alice.room(room).texts(), bob.room(room).texts(), "what both have read")
    same_state(room, alice, bob)


@check
def invite_is_rejected_and_withdrawn(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    room = alice.create_room(preset="private_chat", invite=[bob.id])
    bob.sees_membership(room, "invite")
    bob.leave(room)
    alice.sees_member(room, bob, "leave")
    alice.invite(room, bob)
    bob.sees_membership(room, "invite")
    alice.post(f"/rooms/{room}/kick", {"user_id": bob.id})
    bob.sees_membership(room, "leave")
    bob.refused("POST", f"/join/{room}", {}, query={"server_name": here.name})


@check
def second_person_joins_and_invites(here, there):
    alice, bob, room = both_in(here, there, power_level_content_override={"invite": 0})
    carol, dave = Person(there, "carol"), Person(here, "dave")
    carol.join(room)
    alice.sees_member(room, carol, "join")
    bob.invite(room, dave)
    dave.sees_membership(room, "invite")
    dave.join(room)
    for other in (alice, bob, carol):
        other.sees_member(room, dave, "join")
    talk(room, dave, carol)
    same_state(room, alice, carol)


@check
def messages_in_a_burst(here, there):
    alice, bob, room = both_in(here, there)
    texts = [f"m{number}" for number in range(60)]
    for text in texts:
        alice.send(room, text)
    bob.sees(room, *texts)
    for text in texts:
        bob.send(room, f"re {text}")
    alice.sees(room, *(f"re {text}" for text in texts))


@check
def state_changes(here, there):
    alice, bob, room = both_in(here, there)
    alice.set_state(room, "m.room.name", {"name": "Tea"})
    bob.sees_state(room, "m.room.name", {"name": "Tea"})
    bob.refused("PUT", f"/rooms/{room}/state/m.room.topic", {"topic": "no"})
    alice.change_state(room, "m.room.power_levels", lambda levels: levels.setdefault("users", {}).update({bob.id: 50}))
    bob.until("power", lambda: bob.room(room).content("m.room.power_levels")["users"].get(bob.id) == 50, room)
    bob.set_state(room, "m.room.topic", {"topic": "set from afar"})
    alice.sees_state(room, "m.room.topic", {"topic": "set from afar"})
    bob.set_state(room, "org.example.own", {"colour": "blue"}, "key / with signs")
    alice.sees_state(room, "org.example.own", {"colour": "blue"}, "key / with signs")
    same_state(room, alice, bob)


@check
def redactions(here, there):
    alice, bob, room = both_in(here, there)
    alice.change_state(room, "m.room.power_levels", lambda levels: levels.setdefault("users", {}).update({bob.id: 50}))
    own, other = alice.send(room, "I regret this"), alice.send(room, "others regret this")
    bob.sees(room, "I regret this", "others regret this")
    alice.redact(room, own)
    redaction = bob.redact(room, other)
    for person in (alice, bob):
        for event in (own, other):

            def is_empty(person=person, event=event):
                return person.get(f"/rooms/{room}/event/{quote(event)}")["content"] == {}

            person.until(f"the redaction of {event}", is_empty, room)
    alice.until("the redaction", lambda: any(e["event_id"] == redaction for e in alice.room(room).timeline), room)


@check
def typing(here, there):
    alice, bob, room = both_in(here, there)
    for one, other in [(alice, bob), (bob, alice)]:
        path = f"/rooms/{room}/typing/{one.id}"
        one.put(path, {"typing": True, "timeout": 20000})
        other.until(f"{one.id} typing", lambda one=one, other=other: one.id in other.room(room).typing, room)
        one.put(path, {"typing": False})
        other.until(f"{one.id} to stop", lambda one=one, other=other: one.id not in other.room(room).typing, room)


@check
def receipts(here, there):
    alice, bob, room = both_in(here, there)
    for one, other in [(alice, bob), (bob, alice)]:
        event = one.send(room, f"read me, says {one.id}")
        other.sees(room, f"read me, says {one.id}")
        other.post(f"/rooms/{room}/receipt/m.read/{quote(event)}", {})

        def is_read(one=one, other=other, event=event):
            return other.id in one.room(room).receipts.get(("m.read", event), ())

        one.until(f"the receipt of {other.id}", is_read, room)


@check
def leave_and_rejoin(here, there):
    alice, bob, room = both_in(here, there)
    talk(room, alice, bob)
    bob.leave(room)
    alice.sees_member(room, bob, "leave")
    alice.send(room, "said behind their back")
    bob.join(room, here)
    alice.sees_member(room, bob, "join")
    alice.send(room, "welcome back")
    bob.sees(room, "welcome back")
    texts = [event["content"].get("body") for event in bob.history(room)]
    for text in ("welcome back", "said behind their back", f"from {alice.id}"):
        if text not in texts:
            raise Failure(f"{bob} scrolls back: expected to find {text!r}, saw {short(texts)}")
    talk(room, bob, alice)
    same_state(room, alice, bob)


def in_version(alice, bob, version):
    room = alice.create_room(preset="public_chat", room_version=version)
    bob.join(room, alice.server)
    alice.sees_member(room, bob, "join")
    event = alice.send(room, f"version {version}")
    bob.sees(room, f"version {version}")
    bob.send(room, f"so it is {version}")
    alice.sees(room, f"so it is {version}")
    alice.redact(room, event)
    bob.until("the redaction", lambda: bob.get(f"/rooms/{room}/event/{quote(event)}")["content"] == {}, room)
    same_state(room, alice, bob)


@check
def room_versions(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    for version in VERSIONS + (OLD_VERSIONS if here.kind == "synapse" else []):
        in_version(alice, bob, version)


@check
def upgrade_is_followed(here, there):
    alice, bob, room = both_in(here, there, room_version="10")
    new = alice.post(f"/rooms/{room}/upgrade", {"new_version": "11"})["replacement_room"]
    bob.sees_state(room, "m.room.tombstone", {"replacement_room": new})
    bob.join(new, here)
    talk(new, alice, bob)
