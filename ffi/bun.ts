/** The library through bun:ffi. */
import { dlopen, type FFITypeOrString } from "bun:ffi";
import { read } from "node:fs";
import process from "node:process";
import { type ArgumentOf, type Backend, type Functions, symbols } from "./symbols.ts";

const kinds: Record<keyof ArgumentOf, FFITypeOrString> = { i32: "i32", u32: "u32", f32: "f32", f64: "f64", i64: "i64", buf: "ptr" };

export const backend: Backend = {
  environment: (name) => process.env[name],
  open(path) {
    const table = Object.fromEntries(
      Object.entries(symbols).map(([name, [returns, ...args]]) => [name, { args: args.map((kind) => kinds[kind]), returns }]),
    );
    const fn = dlopen(path, table).symbols as unknown as Functions<typeof symbols>;
    return {
      fn,
      waiter(results, jobs) {
        // Bun has no call that waits beside the event loop; its own file thread reads the pipe, so no native thread enters JavaScript.
        const pairs = new Int32Array(128);
        let reading = false;
        const next = () => {
          reading = true;
          read(results, pairs, 0, pairs.byteLength, null, (error, bytes) => {
            reading = false;
            if (error || bytes === 0) return jobs.lost();
            for (let i = 0; i < bytes / 4; i += 2) jobs.arrived(pairs[i], pairs[i + 1]);
            if (jobs.areAwaited() && !reading) next();
          });
        };
        return () => {
          if (!reading) next();
        };
      },
    };
  },
};
