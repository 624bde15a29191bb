/** A hub on loopback, with as much of its interface as pulling asks for. */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface Hub {
  readonly url: string;
  /** What was asked for, as "GET path bytes=…". */
  readonly asked: string[];
  /** Bytes after which the next download breaks off. */
  breakAfter: number | null;
  close(): Promise<void>;
}

/** `lie`: names of files whose bytes are not those that the listing tells. */
export function serveHub(repository: string, files: Readonly<Record<string, Uint8Array>>, lie: readonly string[] = []): Promise<Hub> {
  const asked: string[] = [];
  const hub = { asked, breakAfter: null as number | null };
  const listing = Object.entries(files).map(([path, bytes]) => {
    const oid = createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
    const lfs = bytes.length > 1000 &&
      { lfs: { oid: createHash("sha256").update(bytes).digest("hex"), size: bytes.length, pointerSize: 9 } };
    return { type: "file", path, size: bytes.length, oid, ...lfs };
  });
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    asked.push([request.method, request.url, request.headers.range].filter(Boolean).join(" "));
    const path = new URL(request.url!, "http://x").pathname;
    if (path.startsWith(`/api/models/${repository}/tree/main`)) {
      response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(listing));
      return;
    }
    const name = decodeURIComponent(path.slice(`/${repository}/resolve/main/`.length));
    const bytes = path.startsWith(`/${repository}/resolve/main/`) ? files[name] : undefined;
    if (!bytes) {
      response.writeHead(404).end();
      return;
    }
    const from = Number(/bytes=(\d+)-/.exec(request.headers.range ?? "")?.[1] ?? 0);
    const rest = lie.includes(name) ? bytes.map((byte) => byte ^ 1).subarray(from) : bytes.subarray(from);
    const some = rest.subarray(0, hub.breakAfter ?? rest.length);
    hub.breakAfter = null;
    response.writeHead(from > 0 ? 206 : 200, { "content-length": some.length }).end(some);
  };
  const server = createServer(answer);
  return new Promise((resolve) =>
    server.listen(0, "127.0.0.1", () => {
      const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
      const close = () =>
        new Promise<void>((closed) => {
          server.close(() => closed());
          server.closeAllConnections();
        });
      resolve(Object.assign(hub, { url, close }));
    })
  );
}
