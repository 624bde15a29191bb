/** The other end of peer.ts. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Command } from "./peer.ts";

export class Peer {
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(
    folder: string,
    model: string,
    threads: number,
    context: number,
  ) {
    const script = fileURLToPath(new URL("peer.ts", import.meta.url));
    this.#process = spawn(process.execPath, [
      script,
      folder,
      model,
      String(threads),
      String(context),
    ], { stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#process.stdout! })
      [Symbol.asyncIterator]();
  }

  /** Starts llama.cpp; returns it and what it calls itself. */
  static async start(
    folder: string,
    model: string,
    threads: number,
    context: number,
  ): Promise<[Peer, string]> {
    const peer = new Peer(folder, model, threads, context);
    return [peer, await peer.#answer() as string];
  }

  async ask<T = unknown>(command: Command): Promise<T> {
    this.#process.stdin!.write(`${JSON.stringify(command)}\n`);
    return await this.#answer() as T;
  }

  async #answer(): Promise<unknown> {
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done) {
        throw new Error(
          "Cannot compare: the process with llama.cpp has ended, want node-llama-cpp installed in bench/ (or --peer FOLDER)",
        );
      }
      if (value.startsWith('{"answer":')) return JSON.parse(value).answer;
    }
  }

  [Symbol.dispose](): void {
    this.#process.stdin!.end();
    this.#process.kill();
  }
}
