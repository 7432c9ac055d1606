// Verification by comparing emoji (SAS), both ends played as two people with their screens side by side would.

import assert from "node:assert/strict";

import { VerificationPhase, VerificationRequestEvent, VerifierEvent } from "matrix-js-sdk/lib/crypto-api/index.js";

const PATIENCE = 20_000;

/** `request` is what the device that begins has asked for; `other` is the device that is to be asked. */
export async function compareEmoji(request, other) {
    const received = await other.until("the request for verification", () =>
        other.verificationRequests.find((asked) => asked.transactionId === request.transactionId),
    );
    assert.equal(received.phase, VerificationPhase.Requested);
    await received.accept();
    await change(request, "the acceptance", () => request.phase === VerificationPhase.Ready);

    const mine = await request.startVerification("m.sas.v1");
    await change(received, "the beginning", () => received.verifier);
    const theirs = received.verifier;
    const done = [mine.verify(), theirs.verify()];
    const [shownToMe, shownToThem] = await Promise.race([Promise.all([sas(mine), sas(theirs)]), failure(done)]);
    assert.equal(shownToMe.sas.emoji.length, 7);
    assert.deepEqual(shownToMe.sas.emoji, shownToThem.sas.emoji);
    await Promise.all([shownToMe.confirm(), shownToThem.confirm()]);
    await Promise.all(done);
    for (const end of [request, received]) {
        await change(end, "the end", () => end.phase === VerificationPhase.Done);
    }
}

function sas(verifier) {
    return new Promise((resolve) => {
        const shown = verifier.getShowSasCallbacks();
        if (shown) resolve(shown);
        else verifier.once(VerifierEvent.ShowSas, resolve);
    });
}

/** Never answers, unless one of these fails. */
async function failure(promises) {
    await Promise.all(promises);
    return new Promise(() => {});
}

/** Waits until a request for verification has come so far. */
function change(request, what, isThere) {
    return new Promise((resolve, reject) => {
        const timer = setTimeout(
            () =>
                reject(
                    new Error(
                        `${what} of the verification did not come within ${PATIENCE / 1000} s; it is in phase ${request.phase}`,
                    ),
                ),
            PATIENCE,
        );
        const look = () => {
            if (request.phase === VerificationPhase.Cancelled) {
                reject(new Error(`the verification was cancelled: ${request.cancellationCode}`));
            } else if (isThere()) {
                resolve();
            } else {
                return;
            }
            clearTimeout(timer);
            request.off(VerificationRequestEvent.Change, look);
        };
        request.on(VerificationRequestEvent.Change, look);
        look();
    });
}
