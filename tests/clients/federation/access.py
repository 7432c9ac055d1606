"""Who may come in, and who is kept out."""


from checks import check
from person import Failure, Person, expect, quote, same_state, short
from rooms import both_in, talk


@check
def alias(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    name = alice.id.split(":")[0][1:]
    room = alice.create_room(preset="public_chat", room_alias_name=name)
    full = f"#{name}:{here.name}"
    found = bob.get(f"/directory/room/{quote(full)}")
    expect(found["room_id"], room, f"where {full} leads")
    if here.name not in found["servers"]:
        raise Failure(f"the servers of {full}: expected {here.name} among them, saw {found['servers']}")
    expect(bob.join(full), room, "the room that was joined")
    talk(room, alice, bob)
    bob.refused("GET", f"/directory/room/{quote(f'#nowhere{full[1:]}')}", status=404)


@check
def directory(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    name = f"Tea {alice.id}"
    room = alice.create_room(preset="public_chat", name=name, topic="all about tea", visibility="public")
    alice.create_room(preset="private_chat", name="Secret")

    def listed():
        return bob.get("/publicRooms", server=here.name)["chunk"]

    bob.until(f"{name} in the directory", lambda: any(entry.get("topic") for entry in listed()))
    listed = listed()
    found = [entry for entry in listed if entry["room_id"] == room]
    expect([entry.get("name") for entry in found], [name], "the name in the directory")
    expect([entry.get("topic") for entry in found], ["all about tea"], "the topic in the directory")
    expect([entry for entry in listed if entry.get("name") == "Secret"], [], "private rooms in the directory")
    body = {"filter": {"generic_search_term": name}, "limit": 10}
    searched = bob.post("/publicRooms", body, server=here.name)["chunk"]
    expect([entry["room_id"] for entry in searched], [room], "the rooms that were searched for")
    bob.join(room, here)


@check
def restricted_room(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    club = alice.create_room(preset="public_chat")
    rule = {"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": club}]}
    state = [{"type": "m.room.join_rules", "state_key": "", "content": rule}]
    room = alice.create_room(preset="private_chat", initial_state=state)
    bob.refused("POST", f"/join/{room}", {}, query={"server_name": here.name, "via": here.name})
    bob.join(club, here)
    bob.join(room, here)
    alice.sees_member(room, bob, "join")
    member = alice.room(room).content("m.room.member", bob.id)
    expect(member.get("join_authorised_via_users_server"), alice.id, "who let them in")
    talk(room, alice, bob)
    same_state(room, alice, bob)


@check
def knock(here, there):
    alice, bob, carol = Person(here, "alice"), Person(there, "bob"), Person(there, "carol")
    state = [{"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}]
    room = alice.create_room(preset="private_chat", name="Quiet", initial_state=state)
    bob.refused("POST", f"/join/{room}", {}, query={"server_name": here.name, "via": here.name})
    via = {"server_name": here.name, "via": here.name}
    for person in (bob, carol):
        person.post(f"/knock/{room}", {"reason": "may I?"}, **via)
        person.sees_membership(room, "knock")
        alice.sees_member(room, person, "knock")
        expect(alice.room(room).content("m.room.member", person.id).get("reason"), "may I?", "the reason")
    expect(bob.room(room).content("m.room.name"), {"name": "Quiet"}, "the name that who knocks is told")
    alice.invite(room, bob)
    bob.sees_membership(room, "invite")
    bob.join(room, here)
    alice.sees_member(room, bob, "join")
    alice.post(f"/rooms/{room}/kick", {"user_id": carol.id})
    carol.sees_membership(room, "leave")
    talk(room, alice, bob)
    dave = Person(there, "dave")
    dave.post(f"/knock/{room}", {}, **via)
    alice.sees_member(room, dave, "knock")
    dave.leave(room)
    alice.sees_member(room, dave, "leave")


@check
def kick_and_ban(here, there):
    alice, bob, room = both_in(here, there)
    talk(room, alice, bob)
    alice.post(f"/rooms/{room}/kick", {"user_id": bob.id, "reason": "out"})
    bob.sees_membership(room, "leave")
    bob.join(room, here)
    alice.sees_member(room, bob, "join")
    alice.post(f"/rooms/{room}/ban", {"user_id": bob.id})
    bob.sees_membership(room, "leave")
    bob.refused("POST", f"/join/{room}", {}, query={"server_name": here.name, "via": here.name})
    alice.post(f"/rooms/{room}/unban", {"user_id": bob.id})
    alice.sees_member(room, bob, "leave")
    bob.join(room, here)
    alice.sees_member(room, bob, "join")
    bob.send(room, "here again")
    alice.sees(room, "here again")
    same_state(room, alice, bob)


@check
def access_control_list(here, there):
    alice, bob, room = both_in(here, there)
    other = alice.create_room(preset="public_chat")
    bob.join(other, here)
    alice.sees_member(other, bob, "join")
    denied = {"allow": ["*"], "deny": [there.name.split(":")[0]], "allow_ip_literals": True}
    alice.set_state(room, "m.room.server_acl", denied)
    bob.sees_state(room, "m.room.server_acl", denied)
    bob.send(room, "does anybody hear me?")
    # What comes later and arrives shows that what came earlier would have, too.
    bob.send(other, "but here you do")
    alice.sees(other, "but here you do")
    expect([text for text in alice.room(room).texts() if "hear me" in text], [], "messages of a server that is denied")
    state = [{"type": "m.room.server_acl", "state_key": "", "content": denied}]
    closed = alice.create_room(preset="public_chat", initial_state=state)
    bob.refused("POST", f"/join/{closed}", {}, query={"server_name": here.name, "via": here.name})


@check
def space(here, there):
    alice, bob = Person(here, "alice"), Person(there, "bob")
    child = alice.create_room(preset="public_chat", name="Child")
    hidden = alice.create_room(preset="private_chat", name="Hidden")
    top = alice.create_room(preset="public_chat", name="Top", creation_content={"type": "m.space"})
    for room in (child, hidden):
        alice.set_state(top, "m.space.child", {"via": [here.name]}, room)
    bob.join(top, here)
    told = bob.get(f"/_matrix/client/v1/rooms/{top}/hierarchy")["rooms"]
    names = {entry["room_id"]: entry.get("name") for entry in told}
    expect(names, {top: "Top", child: "Child"}, "the rooms of the space")
    expect(sorted(len(entry["children_state"]) for entry in told), [0, 2], "the children that are named")
    summary = bob.get(f"/_matrix/client/v1/room_summary/{child}", via=here.name)
    expect({key: summary.get(key) for key in ("name", "join_rule")}, {"name": "Child", "join_rule": "public"},
           f"the summary of a room elsewhere ({short(summary)})")
