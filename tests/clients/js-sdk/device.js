// A person and their devices; each device is a client of its own with Rust's encryption, which receives only through /sync.

import assert from "node:assert/strict";

import {
    ClientEvent,
    createClient,
    MatrixEventEvent,
    RoomEvent,
    RoomMemberEvent,
    SyncState,
    UserEvent,
} from "matrix-js-sdk";
import { CryptoEvent, decodeRecoveryKey } from "matrix-js-sdk/lib/crypto-api/index.js";
import { RustBackupManager } from "matrix-js-sdk/lib/rust-crypto/backup.js";

import { logger } from "./log.js";

export const PASSWORD = "correct horse battery staple";
const PATIENCE = 20_000; // milliseconds until something that should arrive counts as lost

// A client puts off the first upload to the backup by up to ten seconds, to spare the server.
RustBackupManager.maxBackupLoopStartDelayMillis = 0;

// Whatever can make a thing come true that somebody waits for.
const CHANGES = [
    ClientEvent.AccountData,
    ClientEvent.Room,
    ClientEvent.Sync,
    CryptoEvent.DevicesUpdated,
    CryptoEvent.KeyBackupDecryptionKeyCached,
    CryptoEvent.KeyBackupSessionsRemaining,
    CryptoEvent.KeyBackupStatus,
    CryptoEvent.KeysChanged,
    CryptoEvent.UserTrustStatusChanged,
    CryptoEvent.VerificationRequestReceived,
    MatrixEventEvent.Decrypted,
    MatrixEventEvent.Replaced,
    RoomEvent.MyMembership,
    RoomEvent.Receipt,
    RoomEvent.Timeline,
    RoomMemberEvent.Typing,
    UserEvent.LastPresenceTs,
    UserEvent.Presence,
];

export class Person {
    constructor(name, url) {
        Object.assign(this, { name, url, devices: [] });
    }

    /** Makes the account. Answers its first device, which does not sync yet. */
    async register() {
        const client = createClient({ baseUrl: this.url, logger: logger(this.name) });
        const made = await client.registerRequest({
            username: this.name,
            password: PASSWORD,
            auth: { type: "m.login.dummy" },
        });
        this.id = made.user_id;
        return this.device(made);
    }

    /** Logs in a further device, which does not sync yet. */
    async logIn() {
        const client = createClient({ baseUrl: this.url, logger: logger(this.name) });
        const identifier = { type: "m.id.user", user: this.name };
        const made = await client.loginRequest({ type: "m.login.password", identifier, password: PASSWORD });
        assert.equal(made.user_id, this.id);
        return this.device(made);
    }

    async device(made) {
        const device = new Device(this, made, this.devices.length + 1);
        this.devices.push(device);
        await device.client.initRustCrypto({ useIndexedDB: false });
        return device;
    }
}

export class Device {
    constructor(person, { user_id: userId, device_id: deviceId, access_token: accessToken }, number) {
        Object.assign(this, { person, id: deviceId, userId, accessToken, name: `${person.name}/${number}` });
        this.undecryptable = new Map(); // event id to why it could not be decrypted when it came
        this.verificationRequests = [];
        this.line = new AbortController(); // aborted while the device is offline
        this.client = createClient({
            baseUrl: person.url,
            userId,
            deviceId,
            accessToken,
            logger: logger(this.name),
            fetchFn: (resource, options) => this.fetch(resource, options),
            cryptoCallbacks: {
                // The recovery key is asked of the person; only who has it gets at the secrets.
                getSecretStorageKey: async ({ keys }) => {
                    assert(this.recoveryKey, `${this.name} was asked for the recovery key, which it was not given`);
                    return [Object.keys(keys)[0], decodeRecoveryKey(this.recoveryKey)];
                },
            },
        });
        this.client.on(MatrixEventEvent.Decrypted, (event) => {
            if (event.isDecryptionFailure()) this.undecryptable.set(event.getId(), event.decryptionFailureReason);
        });
        this.client.on(CryptoEvent.VerificationRequestReceived, (request) => this.verificationRequests.push(request));
        this.client.setMaxListeners(50);
    }

    get crypto() {
        return this.client.getCrypto();
    }

    get room() {
        return this.client.getRoom(this.person.roomId);
    }

    get direct() {
        return this.client.getAccountData("m.direct")?.getContent();
    }

    async start() {
        await this.client.startClient({ initialSyncLimit: 10, lazyLoadMembers: true });
        await this.until("its first sync", () => this.client.getSyncState() === SyncState.Syncing);
    }

    async fetch(resource, options = {}) {
        const signals = [this.line.signal, options.signal].filter(Boolean);
        try {
            return await fetch(resource, { ...options, signal: AbortSignal.any(signals) });
        } catch (error) {
            throw this.line.signal.aborted ? new TypeError(`${this.name} is offline`) : error;
        }
    }

    goOffline() {
        this.line.abort();
    }

    goOnline() {
        this.line = new AbortController();
        this.client.retryImmediately();
    }

    /** Waits until something is there, and answers it. It is looked for whenever the client tells of a change. */
    async until(what, find) {
        const deadline = Date.now() + PATIENCE;
        for (;;) {
            const changed = this.change(deadline - Date.now());
            const found = await find();
            if (found) {
                changed.forget();
                return found;
            }
            if (!(await changed)) {
                const seen = this.events().map(
                    (event) => `\n    ${event.getSender()} ${event.getType()} ${JSON.stringify(event.getContent())}`,
                );
                throw new Error(`${this.name} waited ${PATIENCE / 1000} s for ${what}; its timeline: ${seen.join("")}`);
            }
        }
    }

    /** A promise of whether anything changes within so many milliseconds. */
    change(milliseconds) {
        let forget;
        const promise = new Promise((resolve) => {
            const done = (changed) => {
                clearTimeout(timer);
                CHANGES.forEach((event) => this.client.off(event, onChange));
                resolve(changed);
            };
            const onChange = () => done(true);
            const timer = setTimeout(done, Math.max(milliseconds, 0), false);
            CHANGES.forEach((event) => this.client.on(event, onChange));
            forget = () => done(false);
        });
        return Object.assign(promise, { forget });
    }

    events() {
        return this.room?.getLiveTimeline().getEvents() ?? [];
    }

    /** What the two have said, as far as it can be read. */
    messages() {
        const isSaid = (event) =>
            event.getType() === "m.room.message" &&
            event.getContent().msgtype !== "m.key.verification.request" &&
            event.getRelation()?.rel_type !== "m.replace" &&
            !event.isRedacted();
        return this.events().filter(isSaid);
    }

    async say(body) {
        return this.send("m.room.message", { msgtype: "m.text", body });
    }

    async send(type, content) {
        const { event_id: eventId } = await this.client.sendEvent(this.room.roomId, type, content);
        return eventId;
    }

    /** Waits for an event, decrypted. */
    async receive(eventId) {
        return this.until(`the event ${eventId}`, () => this.readable(eventId));
    }

    readable(eventId) {
        const event = this.events().find((event) => event.getId() === eventId);
        const isReadable =
            event &&
            !event.isBeingDecrypted() &&
            !event.isDecryptionFailure() &&
            event.getType() !== "m.room.encrypted";
        return isReadable && event;
    }

    /** Waits for a message, which must have been encrypted. */
    async hear(body, eventId) {
        const event = await this.receive(eventId);
        assert.equal(event.getContent().body, body);
        assert(event.isEncrypted(), `“${body}” came unencrypted`);
        return event;
    }

    /** Goes back to the beginning of the room. */
    async readBack() {
        while (this.room.getLiveTimeline().getPaginationToken("b")) await this.client.scrollback(this.room, 10);
        assert.equal(this.events()[0].getType(), "m.room.create");
    }

    async stop() {
        this.client.stopClient();
    }
}
