// What people do in Cinny, a web client that this project did not write. Things are found by what they show.

import assert from "node:assert/strict";

export class Person {
    /** `page` is a page of a browser at which nobody is logged in; `site` is where the client is served. */
    constructor(name, page, site) {
        Object.assign(this, { name, page, site, id: `@${name}:localhost` });
    }

    async logIn(password) {
        await this.page.goto(this.site);
        await this.page.locator("input[name=usernameInput]").fill(this.name);
        await this.page.locator("input[name=passwordInput]").fill(password);
        await this.button("Login").click();
        await this.page.getByText("Welcome to Cinny").waitFor();
    }

    async logOut() {
        await this.openSettings();
        await this.button("Logout").click();
        await this.button("Logout").last().click(); // of the question whether one is sure
        await this.page.locator("input[name=usernameInput]").waitFor();
    }

    button(name) {
        return this.page.getByRole("button", { name, exact: true });
    }

    async openSettings() {
        await this.page.locator("button", { hasText: new RegExp(`^${this.name[0]}$`, "i") }).click();
        await this.page.getByText("Settings", { exact: true }).waitFor();
        await this.page.getByText("Security", { exact: true }).click();
    }

    /** Closes the settings or the dialog that is in front. */
    async close() {
        const windows = this.page.locator(".ReactModal__Content");
        const front = await windows.last().elementHandle();
        await windows.last().locator(".header button").last().click();
        await front.waitForElementState("hidden");
    }

    /** Sets up cross-signing and the backup of keys. Answers the key that opens the secrets. */
    async setUpSecrets() {
        await this.openSettings();
        await this.button("Setup").click();
        await this.button("Generate Key").click();
        const key = await this.page.locator(".cross-signing__key-text").innerText();
        await this.close();
        await this.close();
        return key;
    }

    /** Verifies this session with the key that opens the secrets, and fetches the keys of old messages from the backup. */
    async recover(key) {
        await this.openSettings();
        await this.button("Verify").click();
        await this.page.locator(".secret-storage-access input").fill(key);
        await this.button("Continue").click();
        await this.page.getByText("No unverified sessions").waitFor();
        await this.page.locator(".ic-btn-positive").click();
        await this.page.getByText("Successfully restored backup keys").waitFor();
    }

    /** Begins a direct chat, and opens it. */
    async beginChat(other) {
        await this.page.goto(`${this.site}/#/direct/`);
        await this.button("Direct Message").click();
        await this.page.locator(".invite-user__form input").fill(other.id);
        await this.button("Search").click();
        await this.button("Message").click();
        await this.button("Open").click();
        await this.editor.waitFor();
    }

    async acceptInvite() {
        await this.page.goto(`${this.site}/#/inbox/invites/`);
        await this.button("Accept").click();
        await this.page.waitForURL(/#.(home|direct)./); // It opens the room, at first among those that are no chats.
    }

    async openChat(other) {
        await this.page.goto(`${this.site}/#/direct/`);
        await this.page.getByText(other.name, { exact: true }).first().click();
        await this.editor.waitFor();
    }

    get editor() {
        return this.page.locator("[contenteditable=true]");
    }

    async say(text) {
        await this.editor.click();
        await this.page.keyboard.type(text);
        await this.page.keyboard.press("Enter");
        await this.hears(text);
    }

    async hears(text) {
        await this.sees(this.page.getByText(text, { exact: true }).last());
    }

    /** Waits for something in the chat, which does not stay at its end when a picture grows. */
    async sees(what) {
        const latest = this.page.getByText("Jump to Latest");
        await what.or(latest).first().waitFor();
        if (await latest.isVisible()) await latest.click();
        await what.waitFor();
        await what.scrollIntoViewIfNeeded();
    }

    async sendPicture(picture) {
        const chooser = this.page.waitForEvent("filechooser");
        await this.editor.locator("xpath=preceding::button[1]").click();
        await (await chooser).setFiles(picture);
        await this.button("Send").click();
        await this.seesPicture(picture.name);
    }

    async seesPicture(name) {
        const image = this.page.locator(`img[alt="${name}"]`);
        await this.sees(image);
        await this.page.waitForFunction((image) => image.naturalWidth > 0, await image.elementHandle());
    }

    async readsEverything() {
        for (const complaint of ["Unable to decrypt message", "This message is not decrypted yet"]) {
            assert.equal(await this.page.getByText(complaint).count(), 0, `${this.name} sees: ${complaint}`);
        }
    }
}
