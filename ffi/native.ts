/** The library for the rest of TypeScript: refusals become typed errors, finished jobs become promises, ops are bound by name. */
import { RecallError } from "../lib/errors.ts";
import { loadLibrary } from "./load.ts";
import { codes, type Functions, type Library, symbols } from "./symbols.ts";

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

  /** Jobs of one device that are awaited, and those that arrived before anybody asked. */
  function queue(device: number) {
    const awaited = new Map<number, (code: number) => void>();
    const arrived = new Map<number, number>();
    const done = (job: number, code: number) => {
      const resolve = awaited.get(job);
      if (!resolve) return void arrived.set(job, code);
      awaited.delete(job);
      resolve(code);
    };
    const wait = library.waiter(device, done, () => awaited.size > 0);
    return (job: number): Promise<number> => {
      const code = arrived.get(job);
      if (code !== undefined) {
        arrived.delete(job);
        return Promise.resolve(code);
      }
      return new Promise((resolve) => {
        awaited.set(job, resolve);
        wait();
      });
    };
  }

  return {
    fn,
    call(op, result) {
      if (result >= 0) return result;
      const sentence = decoder.decode(text.subarray(0, fn.rkv_why(text, text.length)));
      throw errorOf(codes[result] ?? String(result), op, sentence);
    },
    finished(device, job) {
      let jobs = queues.get(device);
      if (!jobs) queues.set(device, jobs = queue(device));
      return jobs(job);
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
    const wanted = symbols[symbol].length - 1;
    return [name, (...args: OpArgument[]) => {
      if (args.length !== wanted) throw new TypeError(`Cannot ${name}: it has ${args.length} arguments, want ${wanted}`);
      native.call(name, fn(...args.map(plain)));
    }];
  });
  return Object.fromEntries(bound);
}

function plain(argument: OpArgument): number | ArrayBufferView {
  if (argument === null) return 0;
  return typeof argument === "object" && "handle" in argument ? argument.handle : argument;
}
