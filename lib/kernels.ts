/**
 * Every op as TypeScript sees it, one sentence each; ffi/recallkv.h is the manual (shapes, formulas, errors, sources). A `Kernels`
 * enqueues: nothing here can wait, read or allocate, so a policy's step that tries to does not type-check.
 */
import type { Tensor } from "./tensor.ts";

/** A bundle of handles that ops take beside tensors: a layer's weights, a model's ends, a layer's KV rows. */
export interface Bundle<Kind extends string> {
  /** The library's number for it. */
  readonly handle: number;
  /** What it bundles. */
  readonly kind: Kind;
}
/** Weights of a layer. */
export type LayerHandle = Bundle<"layer">;
/** What lies around the layers. */
export type ModelHandle = Bundle<"model">;
/** KV rows of a layer. */
export type RowsHandle = Bundle<"rows">;

/** `slot` of an op that serves a step: row i belongs to slot i. */
export const STEP = -1;

/** How `poolScores` joins the scores around a row. */
export const pool = { mean: 0, max: 1, chunk: 2 } as const;

/** Rows [begin, begin + rows) of one slot become clusters [cluster, cluster + clusters): `[slot, begin, rows, cluster, clusters]`. */
export type Run = Int32Array;

/** A tensor that may be left out. */
export type Optional = Tensor | null;

/** The ops. Each enqueues and returns at once. */
export interface Kernels {
  /** Cosines and sines of the rotary embedding for `count` positions, shared by all layers of a step or chunk. */
  rotations(rotations: Tensor, position: Tensor, frequencies: Tensor, factor: number, count: number): void;
  /** Rows of the embedding table. */
  embed(x: Tensor, model: ModelHandle, token: Tensor, active: Optional, count: number): void;
  /** Norm, q/k/v products, rotation, append to the KV rows. */
  attnIn(
    q: Tensor,
    rows: RowsHandle,
    x: Tensor,
    layer: LayerHandle,
    rotations: Tensor,
    position: Tensor,
    work: Tensor,
    slot: number,
    count: number,
  ): void;
  /** The queries that a layer would make of `x`; nothing is appended. */
  queries(q: Tensor, x: Tensor, layer: LayerHandle, active: Optional, rotations: Tensor, work: Tensor, count: number): void;
  /** Output projection, residual, norm, SwiGLU, residual. */
  attnOut(x: Tensor, attended: Tensor, layer: LayerHandle, active: Optional, work: Tensor, count: number): void;
  /** Logits of rows [first, first + count). */
  head(logits: Tensor, x: Tensor, model: ModelHandle, active: Optional, work: Tensor, first: number, count: number): void;
  /** The likeliest token of rows [first, first + count) and its log-probability. */
  greedy(token: Tensor, logprob: Tensor, logits: Tensor, active: Optional, first: number, count: number): void;
  /** Counts the token that a step feeds. */
  tally(counts: Tensor, token: Tensor, active: Tensor): void;
  /** Logits after penalties and bias, where `options` (one row of numbers per slot, written between steps) ask for them. */
  penalize(
    adjusted: Tensor,
    logits: Tensor,
    counts: Tensor,
    bias: Tensor,
    active: Optional,
    options: Tensor,
    first: number,
    count: number,
  ): void;
  /** Draws the next token of rows [first, first + count): a function of logits, options and position alone. */
  sample(
    token: Tensor,
    logprob: Tensor,
    logits: Tensor,
    adjusted: Tensor,
    active: Optional,
    position: Tensor,
    options: Tensor,
    first: number,
    count: number,
  ): void;
  /** The likeliest tokens and their log-probabilities, as many as `options` say. */
  likeliest(tokens: Tensor, logprobs: Tensor, logits: Tensor, active: Optional, options: Tensor, first: number, count: number): void;
  /** position += 1 for active slots. */
  advance(position: Tensor, active: Tensor): void;
  /** Copies rows of the last dimension between tensors (single elements of rank 1). */
  copy(to: Tensor, toRow: number, from: Tensor, fromRow: number, count: number): void;
  /** Prefill attention of a chunk over all rows before and in it. */
  attendChunk(attended: Tensor, lse: Optional, q: Tensor, rows: RowsHandle, layer: LayerHandle, slot: number, count: number): void;
  /** Decode attention over sink rows, the rows of `index`, and the tail. */
  attend(
    attended: Tensor,
    lse: Optional,
    q: Tensor,
    rows: RowsHandle,
    layer: LayerHandle,
    index: Optional,
    work: Tensor,
    sink: number,
  ): void;
  /** Merges clusters that were not chosen into what `attend` gave, as one row each. */
  attendEstimates(
    attended: Tensor,
    lse: Tensor,
    q: Tensor,
    rows: RowsHandle,
    layer: LayerHandle,
    centroids: Tensor,
    means: Tensor,
    bias: Tensor,
    work: Tensor,
  ): void;
  /** Evenly spaced initial centroids of a segment. */
  seedCentroids(centroids: Tensor, labels: Tensor, moved: Tensor, keys: Tensor, run: Run): void;
  /** Labels by cosine; `moved` says whether any changed. */
  assign(labels: Tensor, moved: Tensor, keys: Tensor, centroids: Tensor, work: Tensor, run: Run): void;
  /** Groups the rows of a segment by label, stably. */
  group(order: Tensor, offsets: Tensor, labels: Tensor, moved: Optional, run: Run): void;
  /** Centroids as the raw means of their members. */
  centroidMeans(centroids: Tensor, keys: Tensor, order: Tensor, offsets: Tensor, moved: Optional, run: Run): void;
  /** How far the farthest member of each cluster lies from its centroid. */
  radius(radius: Tensor, keys: Tensor, centroids: Tensor, order: Tensor, offsets: Tensor, run: Run): void;
  /** Puts the rows of a segment into the order of `group`. */
  permuteRows(tensor: Tensor, order: Tensor, work: Tensor, run: Run): void;
  /** Ranks clusters by the attention the group would pay to one of their tokens. */
  centroidScores(
    scores: Tensor,
    q: Tensor,
    centroids: Tensor,
    radius: Optional,
    offsets: Tensor,
    count: Tensor,
    active: Tensor,
    scale: number,
    bound: number,
  ): void;
  /** Candidates by descending score. */
  topk(order: Tensor, scores: Tensor, active: Tensor): void;
  /** Rows of the best clusters until the budget is full. */
  fillBudget(index: Tensor, order: Tensor, offsets: Tensor, active: Tensor): void;
  /** Rows of the best clusters that fit whole, and ln(size) of those that were left out. */
  fillWhole(index: Tensor, bias: Tensor, order: Tensor, offsets: Tensor, count: Tensor, active: Tensor): void;
  /** Channel-wise least and largest key of each page that rows [begin, begin + count) touch. */
  pageBounds(bounds: Tensor, rows: RowsHandle, page: number, slot: number, begin: number, count: number): void;
  /** Ranks pages by the best logit that their bounds allow. */
  pageScores(scores: Tensor, q: Tensor, bounds: Tensor, rows: RowsHandle, scale: number, page: number, sink: number): void;
  /** Copies chosen rows together, as f32. */
  gatherRows(to: Tensor, from: Tensor, index: Tensor): void;
  /** Moves the tail of every active slot to its last `width` rows. */
  setTail(rows: RowsHandle, sink: number, width: number): void;
  /** Adds the attention that queries pay to the rows they see. */
  attentionMass(
    mass: Tensor,
    q: Tensor,
    lse: Tensor,
    weights: Optional,
    rows: RowsHandle,
    layer: LayerHandle,
    slot: number,
    count: number,
    first: number,
  ): void;
  /** Mass divided by how many positions could see the row. */
  massRates(rates: Tensor, mass: Tensor, rows: RowsHandle, slot: number): void;
  /** Pools scores over neighbouring rows [begin, end) of a slot; `mode` is one of `pool`. */
  poolScores(pooled: Tensor, scores: Tensor, slot: number, begin: number, end: number, kernel: number, mode: number): void;
  /** Which rows to keep: [0, begin), the `count` best of [begin, end), [end, rowEnd). */
  keep(keep: Tensor, scores: Tensor, slot: number, begin: number, end: number, count: number, rowEnd: number): void;
  /** Moves the kept rows of a slot to the front, which then holds `count` rows. */
  compact(rows: RowsHandle, also: Optional, keep: Tensor, slot: number, count: number): void;
  /** Moves the kept rows of a tensor of the block (hidden states, positions) to the front. */
  pickRows(tensor: Tensor, keep: Tensor, slot: number, count: number): void;
  /** Drops the row of least score of every slot that holds more than `budget` rows. */
  evict(rows: RowsHandle, mass: Tensor, scores: Tensor, sink: number, recent: number, budget: number): void;
  /** Takes the newest keys to fewer channels, their rotation undone where one is given. */
  projectRows(latents: Tensor, rows: RowsHandle, rotations: Optional, basis: Tensor, slot: number, count: number): void;
  /** Ranks the rows between sink and tail in fewer channels. */
  latentScores(
    scores: Tensor,
    q: Tensor,
    latents: Tensor,
    basis: Tensor,
    rotations: Optional,
    rows: RowsHandle,
    scale: number,
    sink: number,
  ): void;
  /** Shortens an index to as many entries as score within `alpha` of the best, on average over heads. */
  trimIndex(index: Tensor, scores: Tensor, active: Tensor, alpha: number): void;
  /** Keys of chosen rows from their latents, rotated to their positions. */
  reconstruct(keys: Tensor, latents: Tensor, basis: Tensor, index: Tensor, rotations: Optional, rows: RowsHandle): void;
  /** Adds up what queries weigh in each channel of a basis. */
  channelMass(mass: Tensor, q: Tensor, basis: Tensor, slot: number, count: number): void;
  /** A slot's basis from chosen channels of another. */
  pickChannels(to: Tensor, basis: Tensor, order: Tensor, slot: number): void;
}

/** Names of all ops, for binding them to the library; a test holds this list against the header. */
export const opNames = [
  "rotations",
  "embed",
  "attnIn",
  "queries",
  "attnOut",
  "head",
  "greedy",
  "tally",
  "penalize",
  "sample",
  "likeliest",
  "advance",
  "copy",
  "attendChunk",
  "attend",
  "seedCentroids",
  "assign",
  "group",
  "centroidMeans",
  "permuteRows",
  "centroidScores",
  "topk",
  "fillBudget",
  "gatherRows",
  "setTail",
  "attendEstimates",
  "radius",
  "fillWhole",
  "pageBounds",
  "pageScores",
  "attentionMass",
  "massRates",
  "poolScores",
  "keep",
  "compact",
  "pickRows",
  "evict",
  "projectRows",
  "latentScores",
  "trimIndex",
  "reconstruct",
  "channelMass",
  "pickChannels",
] as const satisfies readonly (keyof Kernels)[];
