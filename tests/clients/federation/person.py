"""A client with its own account. What it knows of others it has from `/sync`, as people's clients do."""

import itertools
import json
import time
import urllib.error
import urllib.request
from urllib.parse import quote as percent_encode
from urllib.parse import urlencode

PATIENCE = 25  # seconds until something that should arrive counts as lost
PASSWORD = "correct horse battery staple"
FILTER = json.dumps({"room": {"timeline": {"limit": 200}}})
numbers = itertools.count(1)


def quote(part):
    """A part of a path."""
    return percent_encode(part, safe="")


class Failure(AssertionError):
    """Something is not as it was expected: says what was, and what was seen."""


def expect(seen, wanted, what):
    if seen != wanted:
        raise Failure(f"{what}: expected {short(wanted)}, saw {short(seen)}")


def short(value):
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 1500 else text[:1500] + " …"


class Room:
    """What a client was told of a room."""

    def __init__(self):
        self.membership = None
        self.timeline = []
        self.state = {}
        self.typing = set()
        self.receipts = {}

    def texts(self):
        """The bodies of the messages in the timeline, as they came."""
        found = (event["content"].get("body") for event in self.timeline if event["type"] == "m.room.message")
        return [body for body in found if body is not None]

    def content(self, kind, key=""):
        return self.state.get((kind, key), {}).get("content")

    def membership_of(self, user):
        content = self.content("m.room.member", user)
        return content and content.get("membership")

    def __repr__(self):
        told = [f"{event['type']} {short(event['content'])[:120]}" for event in self.timeline[-12:]]
        return f"membership {self.membership}, typing {self.typing}, last events {told}"


class Person:
    def __init__(self, server, name):
        self.server = server
        self.since = None
        self.rooms = {}
        self.presence = {}
        localpart = f"{name}{next(numbers)}"
        made = self._register(localpart)
        self.id, self.token = made["user_id"], made["access_token"]

    def __repr__(self):
        return f"{self.id} on {self.server}"

    def _register(self, localpart):
        body = {"username": localpart, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        self.token = None
        return self.post("/register", body)

    # -- requests

    def request(self, method, path, body=None, query=None, data=None, content_type="application/json"):
        """The status and the body (JSON, or else bytes) of an answer."""
        if not path.startswith("/_matrix"):
            path = f"/_matrix/client/v3{path}"
        url = self.server.url + path + (f"?{urlencode(query, doseq=True)}" if query else "")
        if body is not None:
            data = json.dumps(body).encode()
        headers = {"Content-Type": content_type}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(url, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE + 10) as answer:
                status, kind, raw = answer.status, answer.headers.get_content_type(), answer.read()
        except urllib.error.HTTPError as error:
            status, kind, raw = error.code, error.headers.get_content_type(), error.read()
        except TimeoutError as error:
            raise Failure(f"{method} {path} by {self} had no answer within {PATIENCE + 10} s") from error
        return status, json.loads(raw) if kind == "application/json" else raw

    def call(self, method, path, body=None, query=None, **more):
        status, answer = self.request(method, path, body, query, **more)
        if status != 200:
            raise Failure(f"{method} {path} by {self}: expected 200, saw {status} {short(answer)}")
        return answer

    def get(self, path, **query):
        return self.call("GET", path, query=query)

    def post(self, path, body, **query):
        return self.call("POST", path, body, query)

    def put(self, path, body):
        return self.call("PUT", path, body)

    def refused(self, method, path, body=None, status=403, query=None):
        """Makes sure that a request is refused."""
        seen, answer = self.request(method, path, body, query)
        if seen != status:
            raise Failure(f"{method} {path} by {self}: expected {status}, saw {seen} {short(answer)}")

    # -- what people do

    def create_room(self, **options):
        return self.post("/createRoom", options)["room_id"]

    def invite(self, room, other):
        self.post(f"/rooms/{quote(room)}/invite", {"user_id": other.id})

    def join(self, room, via=None):
        query = {"server_name": via.name, "via": via.name} if via else {}
        room = self.post(f"/join/{quote(room)}", {}, **query)["room_id"]
        self.until(f"their join of {room}", lambda: self.room(room).membership == "join")
        return room

    def leave(self, room):
        self.post(f"/rooms/{quote(room)}/leave", {})

    def send(self, room, text):
        return self.send_event(room, "m.room.message", {"msgtype": "m.text", "body": text})

    def send_event(self, room, kind, content):
        path = f"/rooms/{quote(room)}/send/{kind}/{next(numbers)}"
        return self.put(path, content)["event_id"]

    def set_state(self, room, kind, content, key=""):
        return self.put(f"/rooms/{quote(room)}/state/{kind}/{quote(key)}", content)["event_id"]

    def change_state(self, room, kind, change):
        """Changes the content of a state event in place."""
        content = self.get(f"/rooms/{quote(room)}/state/{kind}/")
        change(content)
        return self.set_state(room, kind, content)

    def redact(self, room, event):
        return self.put(f"/rooms/{quote(room)}/redact/{quote(event)}/{next(numbers)}", {})["event_id"]

    def state_ids(self, room):
        state = self.get(f"/rooms/{quote(room)}/state")
        return {f"{event['type']}|{event['state_key']}": event["event_id"] for event in state}

    def history(self, room, pages=40, limit=30):
        """All events of the room, newest first, as walking back finds them."""
        found, query = [], {"dir": "b", "limit": limit}
        for _ in range(pages):
            page = self.get(f"/rooms/{quote(room)}/messages", **query)
            found += page["chunk"]
            if "end" not in page or not page["chunk"] and page["end"] == query.get("from"):
                break
            query["from"] = page["end"]
        return found

    # -- what people are told

    def room(self, room):
        return self.rooms.setdefault(room, Room())

    def sync(self, seconds):
        query = {"timeout": int(seconds * 1000), "filter": FILTER}
        if self.since:
            query["since"] = self.since
        answer = self.get("/sync", **query)
        self.since = answer["next_batch"]
        for event in answer.get("presence", {}).get("events", []):
            self.presence[event["sender"]] = event["content"]
        rooms = answer.get("rooms", {})
        for membership, stripped in [("invite", "invite_state"), ("knock", "knock_state")]:
            for room_id, told in rooms.get(membership, {}).items():
                room = self.rooms[room_id] = Room()
                room.membership = membership
                self._state(room, told.get(stripped, {}).get("events", []))
        for membership in ["leave", "join"]:
            for room_id, told in rooms.get(membership, {}).items():
                self._joined(self.room(room_id), membership, told)

    def _joined(self, room, membership, told):
        room.membership = membership
        self._state(room, told.get("state", {}).get("events", []))
        events = told.get("timeline", {}).get("events", [])
        room.timeline += events
        self._state(room, events)
        for event in told.get("ephemeral", {}).get("events", []):
            if event["type"] == "m.typing":
                room.typing = set(event["content"]["user_ids"])
            elif event["type"] == "m.receipt":
                for event_id, kinds in event["content"].items():
                    for kind, users in kinds.items():
                        room.receipts.setdefault((kind, event_id), set()).update(users)

    @staticmethod
    def _state(room, events):
        for event in events:
            if "state_key" in event:
                room.state[event["type"], event["state_key"]] = event

    def until(self, what, is_there, room=None, seconds=PATIENCE):
        """Syncs until something is there. Answers what `is_there` does."""
        deadline = time.monotonic() + seconds
        while not (found := is_there()):
            rest = deadline - time.monotonic()
            if rest <= 0:
                told = f"; of the room they know: {self.room(room)}" if room else ""
                raise Failure(f"{self} waited {seconds} s for {what}, which did not come{told}")
            self.sync(min(rest, 10))
        return found

    def sees(self, room, *texts):
        """Waits for messages, in this order though perhaps with others between them."""

        def are_there():
            rest = iter(self.room(room).texts())
            return all(text in rest for text in texts)

        self.until(f"the messages {short(texts)}", are_there, room)

    def sees_member(self, room, other, membership):
        self.until(f"{other.id} to have membership {membership}",
                   lambda: self.room(room).membership_of(other.id) == membership, room)

    def sees_state(self, room, kind, content, key=""):
        def is_there():
            now = self.room(room).content(kind, key)
            return now is not None and all(now.get(field) == value for field, value in content.items())

        self.until(f"the state {kind} {short(content)}", is_there, room)

    def sees_membership(self, room, membership):
        """Waits for one's own membership."""
        self.until(f"their own membership {membership} in {room}",
                   lambda: self.room(room).membership == membership, room)


def same_state(room, one, other, seconds=PATIENCE):
    """Waits until two servers agree on what holds in a room, event by event."""
    deadline = time.monotonic() + seconds
    while True:
        here, there = one.state_ids(room), other.state_ids(room)
        if here == there:
            return
        if time.monotonic() > deadline:
            keys = sorted(key for key in {*here, *there} if here.get(key) != there.get(key))
            apart = {key: {str(one.server): here.get(key), str(other.server): there.get(key)} for key in keys}
            raise Failure(f"the servers do not agree on the state of {room} after {seconds} s: {short(apart)}")
        one.sync(0.2)
        other.sync(0.2)
