// Serves a built web client, with a configuration that names the homeserver of this run.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
};

/** Serves the files of a folder at a free port of loopback; `config` is what is served as /config.json. Answers the address. */
export async function serve(folder, config) {
    const server = createServer(async (request, response) => {
        const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
        const name = path.endsWith("/") ? "index.html" : path;
        try {
            const body = path === "/config.json" ? JSON.stringify(config) : await readFile(join(folder, name));
            response.writeHead(200, { "Content-Type": TYPES[extname(name)] ?? "application/octet-stream" }).end(body);
        } catch {
            response.writeHead(404).end();
        }
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return `http://localhost:${server.address().port}`;
}
