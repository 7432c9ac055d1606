// What the clients write to their logs, kept to be shown when something goes wrong.

import { format } from "node:util";

import { logger as sdk } from "matrix-js-sdk/lib/logger.js";

const KEPT = 300;
const lines = [];

const write =
    (level, name) =>
    (...message) => {
        lines.push(`${new Date().toISOString().slice(11, 23)} ${level} ${name}: ${format(...message)}`.slice(0, 2000));
        if (lines.length > KEPT) lines.shift();
    };

// Parts of the library do not use the logger that a client is given.
sdk.methodFactory = (level) => write(level, "matrix-js-sdk");
sdk.rebuild();

/** A logger as matrix-js-sdk wants it. */
export function logger(name) {
    const levels = ["trace", "debug", "info", "warn", "error"].map((level) => [level, write(level, name)]);
    return { ...Object.fromEntries(levels), getChild: (child) => logger(`${name} ${child}`) };
}

export function lastLines() {
    return lines.join("\n");
}
