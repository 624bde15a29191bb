/** The library for the rest of TypeScript: refusals become typed errors, finished jobs become promises, ops are bound by name. */
import { RecallError } from "../lib/errors.ts";
import { loadLibrary } from "./load.ts";
import { type ArgumentOf, codes, type Functions, type Library, type Spec, symbols } from "./symbols.ts";

export interface Native {
  readonly fn: Functions<typeof symbols>;
  /** Gives back what a function returned, or throws what a negative code means, with the library's sentence. */
  call(op: string, result: number): number;
  /** The code of a job of a device, when it has arrived. */
  finished(device: number, job: number): Promise<number>;
}

let opened: Native | undefined;

/** The library, opened at first use. */
export function native(): Native {
  return opened ??= bind(loadLibrary());
}

function bind(library: Library): Native {
  const { fn } = library;
  const text = new Uint8Array(512);
  const decoder = new TextDecoder();
  const queues = new Map<number, ReturnType<typeof queue>>();

  function call(op: string, result: number): number {
    if (result >= 0) return result;
    const sentence = decoder.decode(text.subarray(0, fn.rkv_why(text, text.length)));
    throw errorOf(codes[result] ?? String(result), op, sentence);
  }

  /** Jobs of one device that are awaited, and those that arrived before anybody asked. */
  function queue(device: number) {
    const awaited = new Map<number, { resolve(code: number): void; reject(error: Error): void }>();
    const early = new Map<number, number>();
    const wait = library.waiter(call("finished", fn.rkv_results(device)), {
      areAwaited: () => awaited.size > 0,
      arrived(job, code) {
        const waiting = awaited.get(job);
        if (!waiting) return void early.set(job, code);
        awaited.delete(job);
        waiting.resolve(code);
      },
      lost() {
        const error = new RecallError("RKV_DEVICE", "finished", "Cannot await jobs: the device's pipe of results has ended");
        for (const { reject } of awaited.values()) reject(error);
        awaited.clear();
      },
    });
    return (job: number): Promise<number> => {
      const code = early.get(job);
      if (code !== undefined) {
        early.delete(job);
        return Promise.resolve(code);
      }
      return new Promise((resolve, reject) => {
        awaited.set(job, { resolve, reject });
        wait();
      });
    };
  }

  return {
    fn,
    call,
    async finished(device, job) {
      let jobs = queues.get(device);
      if (!jobs) queues.set(device, jobs = queue(device));
      return await jobs(job);
    },
  };
}

/** TypeError for a wrong kind, RangeError for a wrong value, RecallError for what machine and state refuse. All carry `code` and `op`. */
function errorOf(code: string, op: string, sentence: string): Error {
  const kinds: Record<string, new (message: string) => Error> = { RKV_DTYPE: TypeError, RKV_SHAPE: RangeError, RKV_RANGE: RangeError };
  const Kind = kinds[code];
  return Kind ? Object.assign(new Kind(sentence), { code, op }) : new RecallError(code, op, sentence);
}

/** What an op takes: numbers, buffers, and things behind a handle; null is "none". */
export type OpArgument = number | ArrayBufferView | { readonly handle: number } | null;

/** Functions for ops by their TypeScript names: attnIn -> rkv_attn_in. */
export function bindOps<Name extends string>(native: Native, names: readonly Name[]): Record<Name, (...args: OpArgument[]) => void> {
  const bound = names.map((name) => {
    const symbol = `rkv_${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}` as keyof typeof symbols;
    if (!(symbol in symbols)) throw new TypeError(`Cannot bind ${name}: the library has no ${symbol}`);
    const fn = native.fn[symbol] as (...args: (number | ArrayBufferView)[]) => number;
    const [, ...kinds] = symbols[symbol] as Spec;
    return [name, (...args: OpArgument[]) => {
      if (args.length !== kinds.length) throw new TypeError(`Cannot ${name}: it has ${args.length} arguments, want ${kinds.length}`);
      native.call(name, fn(...args.map((argument, place) => plain(name, place, kinds[place], argument))));
    }];
  });
  return Object.fromEntries(bound);
}

/** What the library is given for an argument. Checked here: Bun would pass what does not fit as another number, undefined as "none". */
function plain(name: string, place: number, kind: keyof ArgumentOf, argument: OpArgument): number | ArrayBufferView {
  if (kind === "buf") {
    if (ArrayBuffer.isView(argument)) return argument;
  } else if (argument === null) {
    return 0;
  } else if (typeof argument === "number") {
    if (kind !== "i32" || (argument | 0) === argument) return argument;
    throw new RangeError(`Cannot ${name}: argument ${place + 1} is ${argument}, want a whole number of 32 bits`);
  } else if (typeof argument === "object" && "handle" in argument) {
    return argument.handle;
  }
  throw new TypeError(
    `Cannot ${name}: argument ${place + 1} is ${String(argument)}, want ${
      kind === "buf" ? "an Int32Array" : "a number or something with a handle"
    }`,
  );
}
