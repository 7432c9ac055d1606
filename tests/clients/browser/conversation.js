// Two people hold an encrypted conversation in a browser, with a web client that this project did not write.
//
// See `tests/clients/README.md` for the environment that this expects. With SHOTS,
// what is on the screens is kept in that folder.

import { chromium } from "playwright-core";

import { Server } from "../js-sdk/server.js";
import { Person } from "./cinny.js";
import { serve } from "./site.js";

const { HOMESERVER_COMMAND: command, HOMESERVER_URL: url, CINNY: client, CHROMIUM: chrome, SHOTS: shots } = process.env;
const PASSWORD = "correct horse battery staple";
const PATIENCE = 20_000; // milliseconds until something that should appear counts as lost
const people = [];
let taken = 0;
let alice, bob, key; // the key opens Bob's secrets

const steps = [meet, talk, picture, logOut, recover, talkOn];

/** Makes an account, and opens a browser of its own for it. */
async function person(name, site) {
    const auth = { type: "m.login.dummy" };
    const body = JSON.stringify({ username: name, password: PASSWORD, inhibit_login: true, auth });
    const made = await fetch(`${url}/_matrix/client/v3/register`, { method: "POST", body });
    if (!made.ok) throw new Error(await made.text());
    const context = await browser.newContext({ viewport: { width: 1200, height: 800 } });
    context.setDefaultTimeout(PATIENCE);
    const person = new Person(name, await context.newPage(), site);
    people.push(person);
    return person;
}

async function shot(person, what) {
    if (!shots) return;
    taken += 1;
    await person.page.screenshot({ path: `${shots}/${String(taken).padStart(2, "0")} ${person.name} ${what}.png` });
}

async function meet() {
    const site = await serve(client, {
        defaultHomeserver: 0,
        homeserverList: [url],
        allowCustomHomeservers: true,
        hashRouter: { enabled: true, basename: "/" },
    });
    [alice, bob] = [await person("alice", site), await person("bob", site)];
    await alice.logIn(PASSWORD);
    await shot(alice, "is logged in");
    await alice.setUpSecrets();
    await bob.logIn(PASSWORD);
    key = await bob.setUpSecrets();
    await alice.beginChat(bob);
    await bob.acceptInvite();
    await bob.openChat(alice);
    await alice.hears("bob joined the room");
}

async function talk() {
    await alice.say("Hello Bob");
    await bob.hears("Hello Bob");
    await bob.say("Hello Alice");
    await alice.hears("Hello Alice");
}

async function picture() {
    const page = await browser.newPage({ viewport: { width: 400, height: 300 } });
    await page.setContent("<body style='background: linear-gradient(teal, gold); font: 60px serif'>A picture");
    await alice.sendPicture({ name: "picture.png", mimeType: "image/png", buffer: await page.screenshot() });
    await bob.seesPicture("picture.png");
    await shot(alice, "has sent a picture");
    await shot(bob, "sees the picture");
}

async function logOut() {
    await bob.logOut();
    await shot(bob, "is logged out");
    await bob.logIn(PASSWORD);
    await shot(bob, "is logged in again");
}

async function recover() {
    await bob.recover(key);
    await shot(bob, "has restored the backup");
    await bob.close();
    await bob.close();
    await bob.openChat(alice);
    for (const text of ["Hello Bob", "Hello Alice"]) await bob.hears(text);
    await bob.seesPicture("picture.png");
    await shot(bob, "sees what was said before");
}

async function talkOn() {
    await alice.say("Welcome back");
    await bob.hears("Welcome back");
    await bob.say("Thank you");
    await alice.hears("Thank you");
    await shot(bob, "reads everything");
    await shot(alice, "reads everything");
}

const server = new Server(command, url);
const browser = await chromium.launch({
    executablePath: chrome,
    args: ["--no-sandbox"], // root may not have one
});
try {
    await server.start();
    for (const step of steps) {
        const started = performance.now();
        await step();
        for (const person of people) await person.readsEverything();
        const name = step.name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
        console.log(`  ${name}: ${((performance.now() - started) / 1000).toFixed(1)} s`);
    }
    console.log("in the browser the whole conversation was held");
} catch (error) {
    console.log(error);
    for (const person of people) await shot(person, "when it failed");
    process.exitCode = 1;
}
await browser.close();
await server.stop();
process.exit();
