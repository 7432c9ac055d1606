// The homeserver's process, which the conversation starts, ends and starts again.

import { spawn } from "node:child_process";
import { setTimeout as pause } from "node:timers/promises";

export class Server {
    /** `command` runs it in the foreground; `url` is where it then listens. */
    constructor(command, url) {
        this.command = command;
        this.url = url;
    }

    async start() {
        this.process = spawn("sh", ["-c", `exec ${this.command}`], { stdio: ["ignore", 2, 2] });
        this.ended = new Promise((resolve) => this.process.once("exit", resolve));
        const deadline = Date.now() + 60_000;
        while (!(await this.answers())) {
            if (this.process.exitCode !== null)
                throw new Error(`the server ended with status ${this.process.exitCode}`);
            if (Date.now() > deadline) throw new Error("the server did not start within a minute");
            await pause(50);
        }
    }

    async answers() {
        try {
            return (await fetch(`${this.url}/_matrix/client/versions`)).ok;
        } catch {
            return false;
        }
    }

    async stop() {
        if (this.process?.exitCode !== null) return;
        this.process.kill("SIGTERM");
        const late = pause(30_000, "late", { ref: false });
        if ((await Promise.race([this.ended, late])) === "late") {
            this.process.kill("SIGKILL");
            throw new Error("the server did not end within 30 seconds of SIGTERM");
        }
    }
}
