import { freemem } from "node:os";
import process from "node:process";
import { count } from "../format.ts";
import type { TensorSpan } from "../formats/checkpoint.ts";
import { readModel } from "../models/load.ts";
import { rowBytes } from "../tensor.ts";
import type { KvDType } from "../types.ts";
import { options, Usage } from "./usage.ts";

/** What `--json` prints. */
export interface Inspection {
  readonly family: string;
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly intermediate: number;
  readonly vocab: number;
  readonly trainedContext: number;
  readonly parameters: number;
  /** Bytes of the weights, by type. */
  readonly weights: Record<string, number>;
  /** Bytes that one token's rows take, by dtype of the rows. */
  readonly kvBytesPerToken: Record<KvDType, number>;
  /** Tokens whose rows in 16 bits fit beside the weights into the memory that is free now. */
  readonly largestContext: number;
  readonly chatTemplate: boolean;
}

/** `recallkv inspect FILE|DIR [--json]`: headers alone are read, no weight is. */
export async function runInspect(args: readonly string[]): Promise<void> {
  const { switches, rest } = options(args, { string: [], boolean: ["json"] });
  if (rest.length !== 1) throw new Usage(`inspect takes one file or directory, found ${rest.length}`);
  const found = await inspect(rest[0]);
  process.stdout.write(switches.json ? `${JSON.stringify(found)}\n` : `${lines(found).join("\n")}\n`);
}

/** Errors: FormatError for files that are damaged or not supported. */
export async function inspect(path: string): Promise<Inspection> {
  const { shape, weights: { embed, outputNorm, output, layers }, chat } = await readModel(path);
  const spans = [embed, outputNorm, output, ...layers.flatMap((layer) => Object.values(layer) as (TensorSpan | null)[])];
  const weights: Record<string, number> = {};
  let parameters = 0;
  for (const span of spans) {
    if (!span) continue;
    weights[span.type] = (weights[span.type] ?? 0) + span.bytes;
    parameters += span.shape.reduce((product, extent) => product * extent, 1);
  }
  const rows = (dtype: KvDType) => shape.layers * shape.kvHeads * (2 * rowBytes(dtype, shape.headDim) + 4);
  const kvBytesPerToken = { f32: rows("f32"), f16: rows("f16"), bf16: rows("bf16"), q8: rows("q8") };
  const free = freemem() - Object.values(weights).reduce((sum, bytes) => sum + bytes, 0);
  const { family, hidden, heads, kvHeads, headDim, intermediate, vocab, trainedContext } = shape;
  const sizes = { family, layers: shape.layers, hidden, heads, kvHeads, headDim, intermediate, vocab, trainedContext };
  const largestContext = Math.max(0, Math.floor(free / kvBytesPerToken.f16));
  return { ...sizes, parameters, weights, kvBytesPerToken, largestContext, chatTemplate: chat !== null };
}

function lines(found: Inspection): string[] {
  const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
  const { kvBytesPerToken: kv } = found;
  return [
    `family           ${found.family}`,
    `parameters       ${count(found.parameters)}`,
    `layers           ${found.layers} of hidden ${count(found.hidden)}, feed-forward ${count(found.intermediate)}`,
    `attention        ${found.heads} heads, ${found.kvHeads} KV heads, head width ${found.headDim}`,
    `vocabulary       ${count(found.vocab)}${found.chatTemplate ? ", with a chat template" : ", no chat template"}`,
    `weights          ${Object.entries(found.weights).map(([type, bytes]) => `${type} ${megabytes(bytes)}`).join(", ")}`,
    `trained context  ${count(found.trainedContext)} tokens`,
    `KV rows          ${count(kv.f16)} bytes a token in 16 bits (f32 ${count(kv.f32)}, q8 ${count(kv.q8)})`,
    `fits here        ${count(found.largestContext)} tokens in 16 bits beside the weights, by the memory that is free now`,
  ];
}
