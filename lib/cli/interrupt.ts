/** Ctrl-C: once ends what is under way, twice ends the program. */
import process from "node:process";

/** A signal that Ctrl-C aborts with `reason`; `end` gives Ctrl-C back. (`once` is no help: Deno does not listen for it.) */
export function interruptible(reason?: unknown): { readonly signal: AbortSignal; end(): void } {
  const stop = new AbortController();
  const interrupt = () => stop.signal.aborted ? process.exit(130) : stop.abort(reason);
  process.on("SIGINT", interrupt);
  return { signal: stop.signal, end: () => void process.off("SIGINT", interrupt) };
}
