"""Two people talk through matrix-nio, a client library that this project did not write.

Whatever one does is asserted where it matters: in what the other receives from /sync. See
`tests/clients/README.md` for the environment that this expects.
"""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request

from nio import AsyncClient, AsyncClientConfig, ErrorResponse
from nio.api import RoomPreset
from nio.events import (
    BadEvent,
    InviteMemberEvent,
    ReactionEvent,
    ReceiptEvent,
    RedactedEvent,
    RedactionEvent,
    RoomMemberEvent,
    RoomMessageText,
    TypingNoticeEvent,
    UnknownBadEvent,
)

URL = os.environ["HOMESERVER_URL"]
COMMAND = shlex.split(os.environ["HOMESERVER_COMMAND"])
PASSWORD = "correct horse battery staple"
PATIENCE = 20  # seconds until something that should arrive counts as lost
SLEEP = 30_000  # milliseconds that a sync may sleep; longer than the patience


class Server:
    """The homeserver's process."""

    process = None

    def start(self):
        self.process = subprocess.Popen(COMMAND, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{URL}/_matrix/client/versions", timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"the server ended with status {self.process.returncode}")
                if time.monotonic() > deadline:
                    sys.exit("the server did not start within a minute")
                time.sleep(0.05)

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError("the server did not end within 30 seconds of SIGTERM")


def ok(response):
    """The response, unless it is an error."""
    assert not isinstance(response, ErrorResponse), f"{type(response).__name__}: {response}"
    return response


class Person:
    """A client with its own account; it receives only through `/sync`."""

    def __init__(self, name):
        self.name = name
        # Without limits nio would hide a server that does not answer behind endless retries.
        config = AsyncClientConfig(max_timeouts=1, max_limit_exceeded=0, encryption_enabled=False)
        self.client = AsyncClient(URL, name, config=config)
        self.room_id = None

    @property
    def user_id(self):
        return self.client.user_id

    async def sync(self, timeout=0, **options):
        response = ok(await self.client.sync(timeout=timeout, **options))
        for room in [*response.rooms.join.values(), *response.rooms.leave.values()]:
            for event in [*room.timeline.events, *room.state]:
                assert not isinstance(event, (BadEvent, UnknownBadEvent)), f"bad event: {event.source}"
        return response

    async def receive(self, what, find):
        """Syncs until `find(response)` is neither None nor empty, and returns that."""
        deadline = time.monotonic() + PATIENCE
        responses = []
        while (left := deadline - time.monotonic()) > 0:
            try:
                response = await asyncio.wait_for(self.sync(SLEEP), left)
            except asyncio.TimeoutError:
                break
            responses.append(response)
            if found := find(response):
                return found
        seen = "\n".join(repr(response) for response in responses)
        raise AssertionError(f"{self.name} did not receive {what} within {PATIENCE} s; synced:\n{seen}")

    async def receive_event(self, what, kind, condition=lambda event: True):
        """The first timeline event of the room that is of this kind and meets the condition."""
        return await self.receive(
            what, lambda response: next((e for e in self.timeline(response) if isinstance(e, kind) and condition(e)), None)
        )

    async def receive_ephemeral(self, what, kind, condition):
        def find(response):
            room = response.rooms.join.get(self.room_id)
            events = room.ephemeral if room else []
            return next((e for e in events if isinstance(e, kind) and condition(e)), None)

        return await self.receive(what, find)

    async def room_from_scratch(self, limit):
        """The room as a client without a token receives it. The person's position does not move."""
        position, self.client.next_batch = self.client.next_batch, None
        response = await self.sync(sync_filter={"room": {"timeline": {"limit": limit}}})
        self.client.next_batch = position
        return response.rooms.join[self.room_id]

    def timeline(self, response):
        room = response.rooms.join.get(self.room_id)
        return room.timeline.events if room else []

    async def say(self, text, transaction_id=None):
        content = {"msgtype": "m.text", "body": text}
        return await self.send("m.room.message", content, transaction_id)

    async def send(self, kind, content, transaction_id=None):
        response = await self.client.room_send(self.room_id, kind, content, tx_id=transaction_id)
        return ok(response).event_id

    async def hear(self, text, event_id):
        event = await self.receive_event(f"“{text}”", RoomMessageText, lambda e: e.body == text)
        assert event.event_id == event_id, f"{event.event_id} is not {event_id}"
        return event


async def register_and_meet(alice, bob):
    for person in (alice, bob):
        ok(await person.client.register(person.name, PASSWORD, device_name="nio"))
        assert person.user_id == f"@{person.name}:localhost", person.user_id
        who = ok(await person.client.whoami())
        assert (who.user_id, who.device_id) == (person.user_id, person.client.device_id), who
        await person.sync(full_state=True)

    created = await alice.client.room_create(
        is_direct=True, preset=RoomPreset.trusted_private_chat, invite=[bob.user_id]
    )
    alice.room_id = bob.room_id = ok(created).room_id

    invite = await bob.receive("the invite", lambda r: r.rooms.invite.get(bob.room_id))
    mine = [e for e in invite.invite_state if isinstance(e, InviteMemberEvent) and e.state_key == bob.user_id]
    assert len(mine) == 1, invite
    assert mine[0].sender == alice.user_id and mine[0].content["is_direct"] is True, mine

    ok(await bob.client.join(bob.room_id))
    await alice.receive_event(
        "bob's join", RoomMemberEvent, lambda e: e.state_key == bob.user_id and e.membership == "join"
    )
    members = ok(await alice.client.joined_members(alice.room_id)).members
    assert {member.user_id for member in members} == {alice.user_id, bob.user_id}, members
    joined = await bob.receive("the joined room", lambda r: r.rooms.join.get(bob.room_id))
    state = {event.source["type"] for event in [*joined.state, *joined.timeline.events]}
    assert {"m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.member"} <= state, state


async def both_ways(alice, bob):
    hello = await alice.say("Hello Bob")
    await bob.hear("Hello Bob", hello)

    # A sleeping sync is woken, it does not poll: Alice is asleep before Bob sends.
    await alice.sync()
    listening = asyncio.create_task(alice.receive_event("the answer", RoomMessageText))
    await asyncio.sleep(1)
    assert not listening.done(), listening.result()
    sent = time.monotonic()
    answer = await bob.say("Hello Alice")
    event = await listening
    assert (event.event_id, event.body, event.sender) == (answer, "Hello Alice", bob.user_id), event
    assert time.monotonic() - sent < 2, "the sleeping sync was woken late"


async def typing(alice, bob):
    ok(await bob.client.room_typing(bob.room_id, True, timeout=20_000))
    await alice.receive_ephemeral("that bob types", TypingNoticeEvent, lambda e: e.users == [bob.user_id])
    ok(await bob.client.room_typing(bob.room_id, False))
    await alice.receive_ephemeral("that bob stopped", TypingNoticeEvent, lambda e: e.users == [])


async def read_receipts(alice, bob):
    unread = await alice.say("Have you read this?")
    room = await bob.receive(
        "the unread count",
        lambda r: next((j for i, j in r.rooms.join.items() if i == bob.room_id and j.unread_notifications), None),
    )
    assert room.unread_notifications.notification_count >= 1, room.unread_notifications
    ok(await bob.client.update_receipt_marker(bob.room_id, unread))

    def by_bob(event):
        return any(
            (r.event_id, r.receipt_type, r.user_id) == (unread, "m.read", bob.user_id) for r in event.receipts
        )

    await alice.receive_ephemeral("bob's receipt", ReceiptEvent, by_bob)
    await bob.receive(
        "that nothing is unread",
        lambda r: any(
            i == bob.room_id and j.unread_notifications.notification_count == 0 for i, j in r.rooms.join.items()
        ),
    )
    ok(await bob.client.room_read_markers(bob.room_id, unread, unread))
    await bob.receive(
        "the fully read marker",
        lambda r: any(
            getattr(data, "event_id", None) == unread
            for i, j in r.rooms.join.items()
            if i == bob.room_id
            for data in j.account_data
        ),
    )


async def presence(alice, bob):
    ok(await bob.client.set_presence("unavailable", "At lunch"))
    event = await alice.receive(
        "bob's presence",
        lambda r: next((e for e in r.presence_events if e.user_id == bob.user_id and e.status_msg == "At lunch"), None),
    )
    assert event.presence == "unavailable", event
    asked = ok(await alice.client.get_presence(bob.user_id))
    assert (asked.presence, asked.status_msg) == ("unavailable", "At lunch"), asked
    ok(await bob.client.set_presence("online", "Back"))
    await alice.receive(
        "that bob is back",
        lambda r: any((e.user_id, e.presence) == (bob.user_id, "online") for e in r.presence_events),
    )


async def edit(alice, bob):
    original = await alice.say("I am hapy")
    await bob.hear("I am hapy", original)
    new_content = {"msgtype": "m.text", "body": "I am happy"}
    edited = await alice.send(
        "m.room.message",
        {
            "msgtype": "m.text",
            "body": "* I am happy",
            "m.new_content": new_content,
            "m.relates_to": {"rel_type": "m.replace", "event_id": original},
        },
    )
    event = await bob.hear("* I am happy", edited)
    content = event.source["content"]
    assert content["m.new_content"] == new_content, content
    assert content["m.relates_to"] == {"rel_type": "m.replace", "event_id": original}, content
    # Who asks for the original is told of its replacement.
    bundled = ok(await bob.client.room_get_event(bob.room_id, original)).event.source
    assert bundled["unsigned"]["m.relations"]["m.replace"]["event_id"] == edited, bundled


async def reaction(alice, bob):
    target = await alice.say("A joke")
    await bob.hear("A joke", target)
    relation = {"rel_type": "m.annotation", "event_id": target, "key": "👍"}
    sent = await bob.send("m.reaction", {"m.relates_to": relation})
    event = await alice.receive_event("the reaction", ReactionEvent)
    assert (event.event_id, event.reacts_to, event.key, event.sender) == (sent, target, "👍", bob.user_id), event


async def redaction(alice, bob):
    mistake = await alice.say("Never mind")
    await bob.hear("Never mind", mistake)
    redacted = ok(await alice.client.room_redact(alice.room_id, mistake, reason="a mistake")).event_id
    event = await bob.receive_event("the redaction", RedactionEvent)
    assert (event.event_id, event.redacts, event.reason) == (redacted, mistake, "a mistake"), event
    pruned = ok(await bob.client.room_get_event(bob.room_id, mistake)).event
    assert isinstance(pruned, RedactedEvent) and pruned.redacter == alice.user_id, pruned
    assert pruned.source["content"] == {}, pruned.source


async def back_pagination(alice, bob):
    said = [await alice.say(f"message {n}") for n in range(40)]
    await bob.receive_event("the last message", RoomMessageText, lambda e: e.event_id == said[-1])

    room = await bob.room_from_scratch(limit=5)
    assert room.timeline.limited and len(room.timeline.events) == 5, room.timeline
    # Newest first, from the timeline's start back to the room's creation.
    walked = list(reversed(room.timeline.events))
    token = room.timeline.prev_batch
    while token:
        page = ok(await bob.client.room_messages(bob.room_id, start=token, limit=7))
        assert len(page.chunk) <= 7, page
        walked += page.chunk
        token = page.end
    ids = [event.event_id for event in walked]
    assert len(set(ids)) == len(ids), f"an event came twice: {ids}"
    assert [event_id for event_id in ids if event_id in set(said)] == said[::-1], ids
    assert walked[-1].source["type"] == "m.room.create", walked[-1]


async def restart(alice, bob, server):
    await bob.sync()
    await alice.sync()
    before = await alice.say("Before the restart", "same-transaction")
    # Bob is asleep while the server stops: his request must end, by an answer or by an error.
    await bob.hear("Before the restart", before)
    asleep = asyncio.create_task(bob.sync(SLEEP))
    await asyncio.sleep(0.5)
    await asyncio.to_thread(server.stop)
    await asyncio.gather(asleep, return_exceptions=True)
    await asyncio.to_thread(server.start)

    # Access tokens, sync tokens and transaction ids are all as valid as before.
    assert await alice.say("Before the restart", "same-transaction") == before, "sent twice"
    after = await alice.say("After the restart")
    texts = []

    def find(response):
        texts.extend(e.body for e in bob.timeline(response) if isinstance(e, RoomMessageText))
        return "After the restart" in texts

    await bob.receive("the message after the restart", find)
    assert texts == ["After the restart"], texts
    room = await bob.room_from_scratch(limit=2)
    assert [e.event_id for e in room.timeline.events] == [before, after], room.timeline
    answer = await bob.say("Still here")
    await alice.hear("Still here", answer)


async def log_out_and_in(alice, bob):
    old_token, old_device = bob.client.access_token, bob.client.device_id
    ok(await bob.client.logout())
    bob.client.access_token = old_token
    refused = await bob.client.whoami()
    assert getattr(refused, "status_code", None) == "M_UNKNOWN_TOKEN", refused

    while_away = await alice.say("While you were away")
    await bob.client.close()
    again = Person(bob.name)
    wrong = await again.client.login("wrong password")
    assert getattr(wrong, "status_code", None) == "M_FORBIDDEN", wrong
    # Without a name for the device: nio reads no list of devices in which one lacks the field.
    ok(await again.client.login(PASSWORD))
    assert again.user_id == bob.user_id and again.client.device_id != old_device, again.client.device_id
    again.room_id = alice.room_id
    await again.hear("While you were away", while_away)
    devices = ok(await again.client.devices()).devices
    assert [device.id for device in devices] == [again.client.device_id], devices
    answer = await again.say("Back again")
    await alice.hear("Back again", answer)
    return again


async def main():
    server = Server()
    run = f"{time.time_ns() // 1_000_000:x}"
    alice, bob = Person(f"alice{run}"), Person(f"bob{run}")
    try:
        server.start()
        for step in (
            register_and_meet,
            both_ways,
            typing,
            read_receipts,
            presence,
            edit,
            reaction,
            redaction,
            back_pagination,
        ):
            await timed(step, alice, bob)
        await timed(restart, alice, bob, server)
        bob = await timed(log_out_and_in, alice, bob)
    finally:
        await alice.client.close()
        await bob.client.close()
        server.stop()
    print("matrix-nio: the whole conversation was held")


async def timed(step, *arguments):
    started = time.monotonic()
    result = await step(*arguments)
    print(f"  {step.__name__.replace('_', ' ')}: {time.monotonic() - started:.1f} s", flush=True)
    return result


asyncio.run(main())
