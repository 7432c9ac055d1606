// Two people hold an encrypted conversation through matrix-js-sdk, a client library that this project did not write.
//
// Whatever one does is asserted where it matters: in what the other receives from /sync. See `tests/clients/README.md`
// for the environment that this expects.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";

import { downloadEncrypted, uploadEncrypted } from "./attachment.js";
import { Person } from "./device.js";
import { lastLines } from "./log.js";
import { backUpAll, hasSecrets, restoreFromBackup, setUpSecrets, useRecoveryKey } from "./secrets.js";
import { Server } from "./server.js";
import { compareEmoji } from "./verification.js";

const { HOMESERVER_COMMAND: command, HOMESERVER_URL: url } = process.env;
const server = new Server(command, url);
const run = Date.now();
const alice = new Person(`alice${run}`, process.env.ALICE_URL ?? url);
const bob = new Person(`bob${run}`, process.env.BOB_URL ?? url);
const said = new Map(); // event id to the message as it should be read in the end
let a, b, b2, b3, b4; // Alice's device, and those of Bob as he logs in

const steps = [
    register,
    meet,
    bothWays,
    verifyEachOther,
    attachment,
    typing,
    receipts,
    presence,
    edit,
    reaction,
    redaction,
    newDevice,
    restart,
    recovery,
    dehydrated,
    nothingWasUndecryptable,
];

async function register() {
    [a, b] = await Promise.all(
        [alice, bob].map(async (person) => {
            const device = await person.register();
            await device.start();
            await setUpSecrets(device);
            return device;
        }),
    );
}

async function meet() {
    const { room_id: roomId } = await a.client.createRoom({
        preset: "trusted_private_chat",
        is_direct: true,
        invite: [bob.id],
        initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
    });
    alice.roomId = bob.roomId = roomId;
    await b.until("the invite", () => b.room?.getMyMembership() === "invite");
    assert.equal(b.room.getDMInviter(), alice.id);
    await b.client.joinRoom(roomId);
    await b.until("the room", () => b.room.getMyMembership() === "join" && b.room.hasEncryptionStateEvent());
    await a.until("Bob's join", () => a.room?.getMember(bob.id)?.membership === "join");
    for (const [device, other] of [
        [a, bob],
        [b, alice],
    ]) {
        await device.client.setAccountData("m.direct", { [other.id]: [roomId] });
        await device.until("the list of direct chats", () => device.direct?.[other.id]?.[0] === roomId);
        assert(await device.crypto.isEncryptionEnabledInRoom(roomId));
    }
}

/** One device says something, and others hear it. */
async function tell(from, body, ...to) {
    const eventId = await from.say(body);
    said.set(eventId, body);
    const [heard] = await Promise.all(to.map((device) => device.hear(body, eventId)));
    return heard;
}

async function bothWays() {
    await tell(a, "Hello Bob", b);
    await tell(b, "Hello Alice", a);
    // The second message of a session is encrypted with the next key of it.
    await tell(a, "How are you?", b);
    await tell(b, "Quite well", a);
}

async function verifyEachOther() {
    await compareEmoji(await a.crypto.requestVerificationDM(bob.id, alice.roomId), b);
    for (const [device, other] of [
        [a, b],
        [b, a],
    ]) {
        await device.until("trust", async () =>
            (await device.crypto.getUserVerificationStatus(other.userId)).isCrossSigningVerified(),
        );
        await device.until(
            "trust in the device",
            async () => (await device.crypto.getDeviceVerificationStatus(other.userId, other.id))?.crossSigningVerified,
        );
    }
}

async function attachment() {
    const picture = randomBytes(300_000);
    const file = await uploadEncrypted(a.client, picture);
    const info = { mimetype: "image/png", size: picture.length, w: 500, h: 200 };
    const eventId = await a.send("m.room.message", { msgtype: "m.image", body: "picture.png", file, info });
    said.set(eventId, "picture.png");
    const message = await b.hear("picture.png", eventId);
    assert.deepEqual(await downloadEncrypted(b.client, message.getContent().file), picture);
}

async function typing() {
    await b.client.sendTyping(b.room.roomId, true, 20_000);
    await a.until("that Bob types", () => a.room.getMember(bob.id).typing);
    await b.client.sendTyping(b.room.roomId, false);
    await a.until("that Bob stopped", () => !a.room.getMember(bob.id).typing);
}

async function receipts() {
    const message = await tell(a, "Have you read this?", b);
    await b.until("the unread message", () => b.room.getUnreadNotificationCount("total") > 0);
    await b.client.sendReadReceipt(message);
    await a.until("Bob's receipt", () =>
        a.room
            .getReceiptsForEvent(a.readable(message.getId()))
            .some(({ userId, type }) => userId === bob.id && type === "m.read"),
    );
    await b.until("that nothing is unread", () => b.room.getUnreadNotificationCount("total") === 0);
}

async function presence() {
    const seen = () => a.client.getUser(bob.id);
    await b.client.setSyncPresence("unavailable");
    await b.client.setPresence({ presence: "unavailable", status_msg: "At lunch" });
    await a.until(
        "that Bob is away",
        () => seen()?.presence === "unavailable" && seen().presenceStatusMsg === "At lunch",
    );
    await b.client.setSyncPresence("online");
    await b.client.setPresence({ presence: "online", status_msg: "Back" });
    await a.until("that Bob is back", () => seen().presence === "online" && seen().presenceStatusMsg === "Back");
}

async function edit() {
    const message = await tell(a, "I am hapy", b);
    const edited = await a.send("m.room.message", {
        msgtype: "m.text",
        body: "* I am happy",
        "m.new_content": { msgtype: "m.text", body: "I am happy" },
        "m.relates_to": { rel_type: "m.replace", event_id: message.getId() },
    });
    assert((await b.receive(edited)).isEncrypted());
    await b.until("the edit", () => b.readable(message.getId()).getContent().body === "I am happy");
    said.set(message.getId(), "I am happy");
}

async function reaction() {
    const message = await tell(a, "A joke", b);
    const relation = { rel_type: "m.annotation", event_id: message.getId(), key: "👍" };
    const sent = await b.send("m.reaction", { "m.relates_to": relation });
    const event = await a.receive(sent);
    assert.deepEqual([event.getSender(), event.getRelation()], [bob.id, relation]);
}

async function redaction() {
    const message = await tell(a, "Never mind", b);
    await a.client.redactEvent(a.room.roomId, message.getId());
    said.delete(message.getId());
    await b.until("the redaction", () => message.isRedacted());
    assert.deepEqual(message.getContent(), {});
}

/** Bob logs in at a second device. Verified by the first one it gets the secrets, and with them the history. */
async function newDevice() {
    await backUpAll(b);
    b2 = await bob.logIn();
    await b2.start();
    await a.until("Bob's new device", async () => (await devicesOfBob()).has(b2.id));
    await tell(a, "Are there two of you?", b, b2);

    await compareEmoji(await b2.crypto.requestOwnUserVerification(), b);
    await b2.until("the secrets", () => hasSecrets(b2));
    await a.until(
        "trust in Bob's new device",
        async () => (await a.crypto.getDeviceVerificationStatus(bob.id, b2.id)).crossSigningVerified,
    );
    await restoreFromBackup(b2);
    await readsEverything(b2);
    await tell(b2, "Now there are", a, b);
}

async function devicesOfBob() {
    return (await a.crypto.getUserDeviceInfo([bob.id])).get(bob.id);
}

/** What is not delivered when the server stops, above all the key of a new session, is delivered when it is back. */
async function restart() {
    b.goOffline();
    await a.crypto.forceDiscardSession(a.room.roomId);
    await tell(a, "Before the restart", b2);
    await server.stop();
    // Whose server goes on can send meanwhile.
    const elsewhere = [a, b2].filter((device) => device.person.url !== url);
    for (const device of elsewhere) {
        await device.crypto.forceDiscardSession(device.room.roomId);
        await tell(device, "While a server is down");
    }
    await server.start();
    for (const device of [a, b2]) device.client.retryImmediately();
    await tell(a, "After the restart", b2);
    b.goOnline();
    for (const device of [a, b, b2]) {
        for (const [eventId, body] of said) await device.hear(body, eventId);
    }
    await tell(b, "Still here", a, b2);
}

/** Bob logs out, and in again at a third device, where he enters his recovery key. */
async function recovery() {
    await b.client.logout(true);
    await a.until("that Bob's first device is gone", async () => !(await devicesOfBob()).has(b.id));
    await tell(a, "While you were away", b2);
    await backUpAll(b2);

    b3 = await bob.logIn();
    await useRecoveryKey(b3);
    await restoreFromBackup(b3);
    await b3.start();
    await readsEverything(b3);
    await a.until(
        "trust in Bob's third device",
        async () => (await a.crypto.getDeviceVerificationStatus(bob.id, b3.id))?.crossSigningVerified,
    );
    await tell(a, "Welcome back", b2, b3);
    await tell(b3, "Thank you", a, b2);
}

/** Bob logs out everywhere. What is said then can be read later all the same: a dehydrated device was there to hear it. */
async function dehydrated() {
    await b3.crypto.startDehydration();
    const isDehydrated = async () => [...(await devicesOfBob()).values()].some((device) => device.dehydrated);
    await a.until("Bob's dehydrated device", isDehydrated);
    await b2.client.logout(true);
    await b3.client.logout(true);
    await a.until("that nobody is there", async () => (await devicesOfBob()).size === 1 && (await isDehydrated()));
    await tell(a, "Is nobody there?");

    b4 = await bob.logIn();
    await useRecoveryKey(b4);
    await restoreFromBackup(b4);
    await b4.crypto.startDehydration();
    await b4.start();
    await readsEverything(b4);
    await tell(b4, "I am again", a);
}

async function readsEverything(device) {
    await device.readBack();
    for (const [eventId, body] of said) await device.hear(body, eventId);
    assert.deepEqual(new Set(device.messages().map((event) => event.getId())), new Set(said.keys()));
}

function nothingWasUndecryptable() {
    for (const device of [...alice.devices, ...bob.devices]) {
        for (const [eventId, reason] of device.undecryptable) {
            // A new device knows nothing of what was said before it was there, until it has the key of the backup.
            const event = device.events().find((event) => event.getId() === eventId);
            const isHistory = device === b2 && reason.startsWith("HISTORICAL_MESSAGE") && !event.isDecryptionFailure();
            assert(isHistory, `${device.name} could not decrypt ${eventId}: ${reason}`);
        }
        for (const event of device.events().filter((event) => !event.isRedacted())) {
            assert.notEqual(event.getType(), "m.room.encrypted", `${device.name} has not decrypted ${event.getId()}`);
        }
    }
}

try {
    await server.start();
    for (const step of steps) {
        const started = performance.now();
        await step();
        const name = step.name.replace(/[A-Z0-9]/g, (letter) => ` ${letter.toLowerCase()}`);
        console.log(`  ${name}: ${((performance.now() - started) / 1000).toFixed(1)} s`);
    }
    await server.stop();
    console.log("matrix-js-sdk: the whole conversation was held");
    process.exit();
} catch (error) {
    console.log(lastLines());
    console.log(error);
    await server.stop();
    process.exit(1);
}
