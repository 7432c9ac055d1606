// Encrypted files as the specification has them: AES-CTR, whose key is in the message and never on the server.

import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";

const { subtle } = webcrypto;
const unpadded = (bytes, encoding) => Buffer.from(bytes).toString(encoding).replace(/=+$/, "");

/** Uploads the encrypted bytes. Answers the `file` of a message. */
export async function uploadEncrypted(client, bytes) {
    const iv = new Uint8Array(16);
    webcrypto.getRandomValues(iv.subarray(0, 8));
    const key = await subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const encrypted = await subtle.encrypt({ name: "AES-CTR", counter: iv, length: 64 }, key, bytes);
    const type = "application/octet-stream";
    const { content_uri: url } = await client.uploadContent(new Blob([encrypted], { type }), {
        type,
        includeFilename: false,
    });
    return {
        v: "v2",
        url,
        key: await subtle.exportKey("jwk", key),
        iv: unpadded(iv, "base64"),
        hashes: { sha256: unpadded(await subtle.digest("SHA-256", encrypted), "base64") },
    };
}

/** Downloads what `file` tells of, and decrypts it. */
export async function downloadEncrypted(client, file) {
    const url = client.mxcUrlToHttp(file.url, undefined, undefined, undefined, false, true, true);
    const refused = await fetch(url);
    assert.equal(refused.status, 401, "a download without an access token");
    const response = await fetch(url, { headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
    assert.equal(response.status, 200, await response.clone().text());
    const encrypted = await response.arrayBuffer();
    assert.equal(unpadded(await subtle.digest("SHA-256", encrypted), "base64"), file.hashes.sha256);
    const key = await subtle.importKey("jwk", file.key, "AES-CTR", false, ["decrypt"]);
    const counter = Buffer.from(file.iv, "base64");
    return Buffer.from(await subtle.decrypt({ name: "AES-CTR", counter, length: 64 }, key, encrypted));
}
