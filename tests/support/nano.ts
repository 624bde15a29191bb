/** The shipped nano model, loaded once per device setting; and text for it to read. */
import { Buffer } from "node:buffer";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { load, type LoadedModel } from "../../lib/model.ts";
import { isas, open } from "../../lib/device.ts";

const directory = fileURLToPath(new URL("../../models/nano", import.meta.url));
const loaded = new Map<string, Promise<LoadedModel>>();

/** Whether products with 16-bit weights round activations to BF16 here, unless another instruction set is asked for. */
export const roundsToBf16 = isas().includes("avx512bf16");

/** The model as it ships, in BF16; or the very same numbers as F32, with which every product is one of f32. */
export function nano(options: { threads?: number; isa?: string; weights?: "f32" } = {}): Promise<LoadedModel> {
  const name = JSON.stringify(options);
  let model = loaded.get(name);
  if (!model) loaded.set(name, model = made(options));
  return model;
}

async function made({ weights, ...options }: { threads?: number; isa?: string; weights?: "f32" }): Promise<LoadedModel> {
  const device = await open("cpu", options);
  if (!weights) return await load(directory, { device });
  const wide = await mkdtemp(join(tmpdir(), "recallkv-nano-"));
  try {
    await cp(directory, wide, { recursive: true });
    await writeFile(join(wide, "model.safetensors"), widened(await readFile(join(directory, "model.safetensors"))));
    return await load(wide, { device });
  } finally {
    await rm(wide, { recursive: true });
  }
}

/** A safetensors file of BF16 as one of F32. */
function widened(file: Uint8Array): Uint8Array {
  const begin = 8 + Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, begin))) as Record<string, { dtype: string; data_offsets: number[] }>;
  for (const [name, tensor] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (tensor.dtype !== "BF16") throw new TypeError(`${name} is ${tensor.dtype}, want BF16`);
    Object.assign(tensor, { dtype: "F32", data_offsets: tensor.data_offsets.map((offset) => 2 * offset) });
  }
  const json = JSON.stringify(header), head = new TextEncoder().encode(json + " ".repeat(-json.length & 7));
  const words = Uint32Array.from(new Uint16Array(new Uint8Array(file.subarray(begin)).buffer), (half) => half << 16);
  const length = new Uint8Array(BigUint64Array.of(BigInt(head.length)).buffer);
  return Buffer.concat([length, head, new Uint8Array(words.buffer)]);
}

/** The first `count` tokens of a document of prose, with `<|bos|>` first. */
export async function proseTokens(count: number, document = 0): Promise<number[]> {
  const { tokenizer } = await nano();
  const prose = JSON.parse(await readFile(`${directory}/prose.json`, "utf8")) as string[][];
  const tokens = [...tokenizer.encode("<|bos|>", { special: true }), ...tokenizer.encode(prose[document].join(" "))];
  if (tokens.length < count) throw new RangeError(`document ${document} has ${tokens.length} tokens, want ${count}`);
  return tokens.slice(0, count);
}
