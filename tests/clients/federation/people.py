"""What people show of themselves, and what they send each other beside messages."""

import struct
import zlib

from checks import check
from person import Failure, Person, expect, quote
from rooms import both_in


def picture(side):
    """A PNG of `side` by `side` pixels in one colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x20\x80\xc0" * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@check
def profile(here, there):
    alice, bob, room = both_in(here, there)
    name, avatar = f"Alice of {here.name}", f"mxc://{here.name}/abcdefghijklmnop"
    alice.put(f"/profile/{alice.id}/displayname", {"displayname": name})
    bob.sees_state(room, "m.room.member", {"displayname": name}, alice.id)
    alice.put(f"/profile/{alice.id}/avatar_url", {"avatar_url": avatar})
    bob.sees_state(room, "m.room.member", {"displayname": name, "avatar_url": avatar}, alice.id)
    carol = Person(there, "carol")
    told = carol.get(f"/profile/{quote(alice.id)}")
    expect({key: told.get(key) for key in ("displayname", "avatar_url")}, {"displayname": name, "avatar_url": avatar},
           "the profile as another server tells it")
    expect(carol.get(f"/profile/{quote(alice.id)}/displayname"), {"displayname": name}, "one field of the profile")
    carol.refused("GET", f"/profile/{quote(f'@nobody:{here.name}')}", status=404)


@check
def presence(here, there):
    alice, bob, room = both_in(here, there)
    for one, other in [(alice, bob), (bob, alice)]:
        one.put(f"/presence/{one.id}/status", {"presence": "unavailable", "status_msg": "at tea"})

        def is_told(one=one, other=other):
            told = other.presence.get(one.id, {})
            return told.get("presence") == "unavailable" and told.get("status_msg") == "at tea"

        other.until(f"the presence of {one.id}, of whom they know {other.presence.get(one.id)}", is_told, room)


@check
def media(here, there):
    alice, bob, room = both_in(here, there)
    data = picture(200)
    status, made = alice.request("POST", "/_matrix/media/v3/upload", data=data, content_type="image/png",
                                 query={"filename": "tea.png"})
    expect(status, 200, "the upload")
    uri = made["content_uri"]
    alice.send_event(room, "m.room.message", {"msgtype": "m.image", "body": "tea.png", "url": uri})
    bob.sees(room, "tea.png")
    received = bob.room(room).timeline[-1]["content"]["url"]
    path = received.removeprefix("mxc://")
    for _ in range(2):  # the second time from what was kept
        status, seen = bob.request("GET", f"/_matrix/client/v1/media/download/{path}")
        expect(status, 200, "the download of a medium of the other server")
        if seen != data:
            raise Failure(f"the medium: expected the {len(data)} bytes that were uploaded, saw {len(seen)} others")
    status, seen = bob.request("GET", f"/_matrix/client/v1/media/thumbnail/{path}",
                               query={"width": 32, "height": 32, "method": "scale"})
    expect(status, 200, "the thumbnail of a medium of the other server")
    if not isinstance(seen, bytes) or seen[:4] not in (b"\x89PNG", b"\xff\xd8\xff\xe0", b"RIFF"):
        raise Failure(f"the thumbnail: expected an image, saw {seen[:40]!r}")
    bob.refused("GET", f"/_matrix/client/v1/media/download/{here.name}/doesnotexistatall", status=404)


@check
def reactions_edits_and_threads(here, there):
    alice, bob, room = both_in(here, there)
    root = alice.send(room, "tea?")
    bob.sees(room, "tea?")
    bob.send_event(room, "m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": root, "key": "+1"}})
    reply = {"msgtype": "m.text", "body": "with milk", "m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    bob.send_event(room, "m.room.message", reply)
    alice.sees(room, "tea?", "with milk")
    new = {"msgtype": "m.text", "body": "coffee?"}
    edit = {**new, "body": "* coffee?", "m.new_content": new,
            "m.relates_to": {"rel_type": "m.replace", "event_id": root}}
    alice.send_event(room, "m.room.message", edit)
    bob.sees(room, "* coffee?")
    for person in (alice, bob):

        def found(person=person):
            related = person.get(f"/_matrix/client/v1/rooms/{room}/relations/{quote(root)}")["chunk"]
            return sorted(event["content"]["m.relates_to"]["rel_type"] for event in related)

        expect(found(), ["m.annotation", "m.replace", "m.thread"], f"what {person} finds related")
