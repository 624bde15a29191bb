/** The library through Deno.dlopen. */
import { type ArgumentOf, type Backend, type Functions, symbols } from "./symbols.ts";

/** The part of Deno that is used here, so that the file type-checks under Bun's types as well. */
interface DenoFfi {
  dlopen(path: string, table: Record<string, unknown>): { symbols: Record<string, unknown> };
  permissions: { querySync(wanted: { name: "env"; variable: string }): { state: string } };
  env: { get(name: string): string | undefined };
}
const { dlopen, permissions, env } = (globalThis as unknown as { Deno: DenoFfi }).Deno;

const kinds: Record<keyof ArgumentOf, string> = { i32: "i32", u32: "u32", f32: "f32", f64: "f64", i64: "i64", buf: "buffer" };

export const backend: Backend = {
  // Asks first: a run without --allow-env is neither refused nor interrupted by a prompt.
  environment: (variable) => permissions.querySync({ name: "env", variable }).state === "granted" ? env.get(variable) : undefined,
  open(path) {
    const table: Record<string, unknown> = Object.fromEntries(
      Object.entries(symbols).map(([name, [result, ...args]]) => [name, { parameters: args.map((kind) => kinds[kind]), result }]),
    );
    // node:fs refuses a descriptor that it did not open: the wait is a call beside the event loop instead.
    table.wait = { name: "rkv_wait", parameters: ["i32", "buffer"], result: "i32", nonblocking: true };
    const library = dlopen(path, table).symbols;
    const wait = library.wait as (results: number, pairs: Int32Array) => Promise<number>;
    return {
      fn: library as unknown as Functions<typeof symbols>,
      waiter(results, jobs) {
        const pairs = new Int32Array(128); // held here: Deno does not keep a buffer alive during such a call
        let waiting = false;
        const loop = async () => {
          waiting = true;
          do {
            const count = await wait(results, pairs);
            if (count <= 0) jobs.lost();
            for (let i = 0; i < 2 * count; i += 2) jobs.arrived(pairs[i], pairs[i + 1]);
          } while (jobs.areAwaited());
          waiting = false;
        };
        return () => {
          if (!waiting) loop();
        };
      },
    };
  },
};
