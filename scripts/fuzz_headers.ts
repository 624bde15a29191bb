/**
 * Mutated headers of GGUF and safetensors through their parsers: `sh scripts/tool.sh bun run scripts/fuzz_headers.ts [--count N] [--seed N]`.
 * A parser may read a header, want more of it, or refuse it with a FormatError; anything else, a second on one header, or memory that grows
 * ends the run with the header in hexadecimal. The same seed gives the same headers.
 */
import process from "node:process";
import { parseArgs } from "@std/cli/parse-args";
import { FormatError } from "../lib/formats/checkpoint.ts";
import { parseGguf } from "../lib/formats/gguf.ts";
import { spansOf } from "../lib/formats/safetensors.ts";
import { ggufFile, value } from "../tests/formats/gguf_file.ts";

const args = parseArgs(process.argv.slice(2), { string: ["count", "seed"] });
const count = Number(args.count ?? 1_000_000);
const seed = Number(args.seed ?? 1);
/** Most bytes of heap that parsing small headers may add, garbage included. */
const MOST_HEAP = 512 << 20;

const gguf = ggufFile({
  metadata: [
    ["general.architecture", value.string("llama")],
    ["general.alignment", value.u32(32)],
    ["llama.rope.freq_base", value.f32(10000)],
    ["tokenizer.ggml.tokens", value.strings(["a", "b", "Ġc"])],
    ["tokenizer.ggml.token_type", value.i32s([1, 1, 3])],
    ["tokenizer.ggml.add_bos_token", value.bool(true)],
    ["split.count", value.u16(1)],
    ["a.long", value.u64(2n ** 60n)],
  ],
  tensors: [
    { name: "token_embd.weight", dims: [64, 3], type: 0, offset: 0 },
    { name: "blk.0.attn_q.weight", dims: [64, 64], type: 8, offset: 768 },
  ],
  data: 8192,
});
const safetensors = new TextEncoder().encode(JSON.stringify({
  __metadata__: { format: "pt" },
  "model.embed_tokens.weight": { dtype: "F32", shape: [3, 64], data_offsets: [0, 768] },
  "model.norm.weight": { dtype: "BF16", shape: [64], data_offsets: [768, 896] },
}));

/** xorshift32. */
let state = seed * 2654435761 >>> 0 || 1;
function below(n: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % n;
}

const interesting = [0n, 1n, 0x7fn, 0x80n, 0xffn, 0x7fffffffn, 0x80000000n, 0xffffffffn, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

function mutated(from: Uint8Array): Uint8Array {
  let bytes = from.slice();
  for (let rounds = 1 + below(4); rounds > 0; rounds--) {
    const at = below(Math.max(1, bytes.length));
    switch (below(6)) {
      case 0:
        bytes[at] ^= 1 << below(8);
        break;
      case 1:
        bytes[at] = below(256);
        break;
      case 2:
        if (at + 8 <= bytes.length) new DataView(bytes.buffer).setBigUint64(at, interesting[below(interesting.length)], true);
        break;
      case 3:
        if (at + 4 <= bytes.length) new DataView(bytes.buffer).setUint32(at, Number(interesting[below(8)]), true);
        break;
      case 4:
        bytes = bytes.slice(0, at);
        break;
      default:
        bytes.copyWithin(at, below(Math.max(1, bytes.length)), bytes.length);
    }
  }
  return bytes;
}

const formats: [name: string, seed: Uint8Array, parse: (bytes: Uint8Array) => void][] = [
  ["GGUF", gguf, (bytes) => void parseGguf("fuzz.gguf", 0, bytes, bytes.length)],
  ["safetensors", safetensors, (bytes) => void spansOf("fuzz.safetensors", 0, new TextDecoder().decode(bytes), 8, 8 + 896)],
];

function fail(format: string, bytes: Uint8Array, what: string): never {
  console.log(`${format}: ${what}\n${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`);
  process.exit(1);
}

const outcomes = { read: 0, refused: 0 };
const heap = process.memoryUsage().heapUsed;
let slowest = 0;
for (let i = 0; i < count; i++) {
  const [name, from, parse] = formats[i % formats.length];
  const bytes = mutated(from);
  const began = performance.now();
  try {
    parse(bytes);
    outcomes.read++;
  } catch (error) {
    if (!(error instanceof FormatError)) fail(name, bytes, String((error as Error)?.stack ?? error));
    outcomes.refused++;
  }
  slowest = Math.max(slowest, performance.now() - began);
  if (slowest > 1000) fail(name, bytes, `it took ${slowest.toFixed(0)} ms`);
  if (i % 10_000 === 0 && process.memoryUsage().heapUsed > heap + MOST_HEAP) fail(name, bytes, "memory grows");
}
console.log(
  `${count} headers: ${outcomes.read} read or wanting more, ${outcomes.refused} refused; the slowest took ${slowest.toFixed(1)} ms`,
);
