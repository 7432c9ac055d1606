// Cross-signing, secret storage and the key backup of a device.

import assert from "node:assert/strict";

/** What a first device does: keys of the person, the recovery key, and a backup. */
export async function setUpSecrets(device) {
    // The first upload of such keys needs no password.
    await device.crypto.bootstrapCrossSigning({ authUploadDeviceSigningKeys: (makeRequest) => makeRequest(null) });
    const key = await device.crypto.createRecoveryKeyFromPassphrase();
    device.person.recoveryKey = device.recoveryKey = key.encodedPrivateKey;
    await device.crypto.bootstrapSecretStorage({
        createSecretStorageKey: async () => key,
        setupNewSecretStorage: true,
        setupNewKeyBackup: true,
    });
    await device.until("the secrets", () => hasSecrets(device));
    await device.until("secret storage", () => device.crypto.isSecretStorageReady());
    device.recoveryKey = undefined; // It is written down, and not kept.
}

/** Whether a device has the private keys of cross-signing and of the backup. */
export async function hasSecrets(device) {
    const { privateKeysCachedLocally: keys } = await device.crypto.getCrossSigningStatus();
    const crossSigning = keys.masterKey && keys.selfSigningKey && keys.userSigningKey;
    return (
        crossSigning &&
        (await device.crypto.getSessionBackupPrivateKey()) &&
        (await device.crypto.getActiveSessionBackupVersion())
    );
}

/** Waits until every key that the device has is in the backup. */
export async function backUpAll(device) {
    await device.until("the backup of all keys", async () => {
        const { count } = await device.client.http.authedRequest("GET", "/room_keys/version");
        return count === (await device.crypto.exportRoomKeys()).length;
    });
}

/** Gives a new device all secrets by the recovery key. */
export async function useRecoveryKey(device) {
    device.recoveryKey = device.person.recoveryKey;
    assert(await device.crypto.userHasCrossSigningKeys(device.userId, true));
    await device.crypto.bootstrapCrossSigning({});
    await device.crypto.loadSessionBackupPrivateKeyFromSecretStorage();
    await device.crypto.checkKeyBackupAndEnable();
    assert(await hasSecrets(device));
}

export async function restoreFromBackup(device) {
    const { imported, total } = await device.crypto.restoreKeyBackup();
    assert(total > 0, "the backup is empty");
    assert.equal(imported, total, "some of the backup could not be imported");
}
