/** Models from a hub: the only code that touches the network. What was begun is gone on with; size and hash are checked. */
import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, rename, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type ListFileEntry, listFiles } from "@huggingface/hub";
import { count } from "./format.ts";
import { nearest } from "./options.ts";
import type { OnProgress } from "./types.ts";

export interface PullOptions {
  /** One file of the repository; its only .gguf file, or all that a model in Hugging Face's layout needs, unless said. */
  file?: string;
  /** The folder to write to; "." for one file, the repository's name for a layout, unless said. */
  to?: string;
  /** A branch, tag or commit; "main" unless said. */
  revision?: string;
  /** The hub's address. */
  hub?: string;
  signal?: AbortSignal;
  onProgress?: OnProgress;
}

const ATTEMPTS = 4;
const layout =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|model\.safetensors\.index)\.json$|^chat_template\.jinja$|^[\w.-]+\.safetensors$/;

/**
 * Downloads files of "OWNER/NAME"; returns their paths. Files that are there already, whole and right, are left as they are.
 * Errors: RangeError for a name or file that is none; Error for what the network or the hub refuses, and for bytes that are not the file's.
 */
export async function pull(repository: string, options: PullOptions = {}): Promise<string[]> {
  const { file, revision = "main", hub = "https://huggingface.co", signal, onProgress } = options;
  if (!/^[\w.-]+\/[\w.-]+$/.test(repository)) throw new RangeError(`Cannot pull "${repository}": want OWNER/NAME`);
  const chosen = choose(repository, await entries(repository, revision, hub, signal), file);
  const folder = options.to ?? (chosen.length === 1 ? "." : repository.split("/")[1]);
  const total = chosen.reduce((sum, { size }) => sum + size, 0);
  let before = 0;
  const paths: string[] = [];
  for (const entry of chosen) {
    const path = join(folder, entry.path.split("/").at(-1)!);
    const url = `${hub}/${repository}/resolve/${encodeURIComponent(revision)}/${entry.path.split("/").map(encodeURIComponent).join("/")}`;
    const tell = (done: number) => onProgress?.({ stage: "pull", done: before + done, total, unit: "bytes" });
    await download(url, path, entry, tell, signal);
    before += entry.size;
    paths.push(path);
  }
  return paths;
}

async function entries(repository: string, revision: string, hub: string, signal: AbortSignal | undefined): Promise<ListFileEntry[]> {
  const found: ListFileEntry[] = [];
  try {
    const ask: typeof fetch = Object.assign((input: RequestInfo | URL, init?: RequestInit) => fetch(input, { ...init, signal }), fetch);
    for await (const entry of listFiles({ repo: repository, revision, hubUrl: hub, recursive: true, fetch: ask })) {
      if (entry.type === "file") found.push(entry);
    }
  } catch (error) {
    signal?.throwIfAborted();
    throw new Error(`Cannot list the files of ${repository} at ${hub}: ${(error as Error).message}`, { cause: error });
  }
  return found;
}

function choose(repository: string, all: readonly ListFileEntry[], file: string | undefined): ListFileEntry[] {
  const names = all.map(({ path }) => path);
  if (file !== undefined) {
    const one = all.find(({ path }) => path === file);
    if (one) return [one];
    const near = nearest(file, names);
    throw new RangeError(
      `Cannot pull "${file}" of ${repository}: there is no such file, want ${near ? `"${near}"` : `one of ${names.join(", ")}`}`,
    );
  }
  const whole = all.filter(({ path }) => layout.test(path));
  if (whole.some(({ path }) => path === "config.json") && whole.some(({ path }) => path.endsWith(".safetensors"))) return whole;
  const packed = all.filter(({ path }) => path.endsWith(".gguf"));
  if (packed.length === 1) return packed;
  const wanted = packed.length > 0
    ? `a FILE, one of ${packed.map(({ path }) => path).join(", ")}`
    : "a repository with .gguf or .safetensors";
  throw new RangeError(`Cannot pull ${repository}: it has ${packed.length} .gguf files and no layout of .safetensors, want ${wanted}`);
}

/** The hash that the hub knows a file by: SHA-256 of large files, git's SHA-1 of small ones. */
function hashOf(entry: ListFileEntry): { hash: Hash; wanted: string } {
  if (entry.lfs) return { hash: createHash("sha256"), wanted: entry.lfs.oid };
  return { hash: createHash("sha1").update(`blob ${entry.size}\0`), wanted: entry.oid ?? "" };
}

async function download(
  url: string,
  path: string,
  entry: ListFileEntry,
  tell: (done: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const part = `${path}.part`;
  await mkdir(dirname(path), { recursive: true });
  if (await sizeOf(path) === entry.size && await isRight(path, entry)) return tell(entry.size);
  for (let attempt = 1;; attempt++) {
    try {
      await goOn(url, part, entry, tell, signal);
      break;
    } catch (error) {
      signal?.throwIfAborted();
      const done = await sizeOf(part);
      if (attempt < ATTEMPTS && !(error instanceof RangeError)) continue;
      throw new Error(
        `Cannot pull ${path}: ${(error as Error).message} (${count(done)} of ${count(entry.size)} bytes are there; run it again to go on)`,
        {
          cause: error,
        },
      );
    }
  }
  if (!await isRight(part, entry)) {
    await rm(part);
    throw new Error(`Cannot pull ${path}: its bytes do not have the hash ${hashOf(entry).wanted} that the hub gives (they were removed)`);
  }
  await rename(part, path);
}

/** Fetches what a part still lacks. */
async function goOn(
  url: string,
  part: string,
  entry: ListFileEntry,
  tell: (done: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  let done = await sizeOf(part);
  if (done === entry.size) return tell(done);
  if (done > entry.size) done = 0;
  const response = await fetch(url, { signal, headers: done > 0 ? { Range: `bytes=${done}-` } : {} });
  if (!response.ok || !response.body) {
    await response.body?.cancel();
    const sentence = `the hub answers ${response.status} ${response.statusText}`;
    throw response.status < 500 ? new RangeError(sentence) : new Error(sentence);
  }
  if (response.status !== 206) done = 0;
  const file = await open(part, done > 0 ? "a" : "w");
  try {
    for await (const bytes of response.body) {
      if (done + bytes.length > entry.size) throw new RangeError(`the hub sends more than the ${count(entry.size)} bytes it told`);
      await file.write(bytes);
      done += bytes.length;
      tell(done);
    }
  } finally {
    await file.close();
  }
  if (done < entry.size) throw new Error("the connection ended");
}

async function isRight(path: string, entry: ListFileEntry): Promise<boolean> {
  const { hash, wanted } = hashOf(entry);
  for await (const bytes of createReadStream(path)) hash.update(bytes as Uint8Array);
  return hash.digest("hex") === wanted;
}

async function sizeOf(path: string): Promise<number> {
  return (await stat(path).catch(() => null))?.size ?? 0;
}
