/** The one table of what the library exports: name -> [result, ...arguments], in the order of recallkv.h (a test holds the two together). */

/** An address, opaque to TypeScript. */
export type Pointer = unknown;

/** What each kind of argument is in TypeScript. A `buf` is only read or filled during the call; 64-bit numbers are bigint in cold calls. */
export interface ArgumentOf {
  i32: number;
  u32: number;
  f32: number;
  f64: number;
  i64: bigint;
  buf: ArrayBufferView;
}
export type Spec = readonly [result: "i32", ...args: (keyof ArgumentOf)[]];
export type Table = Readonly<Record<string, Spec>>;
type Arguments<A extends readonly unknown[]> = { [K in keyof A]: A[K] extends keyof ArgumentOf ? ArgumentOf[A[K]] : never };
export type Functions<T extends Table> = {
  readonly [K in keyof T]: T[K] extends readonly ["i32", ...infer A extends readonly (keyof ArgumentOf)[]]
    ? (...args: Arguments<A>) => number
    : never;
};

export const ABI = 1;

/** What a negative result means: the names of recallkv.h. */
export const codes: Readonly<Record<number, string>> = {
  [-1]: "RKV_SHAPE",
  [-2]: "RKV_DTYPE",
  [-3]: "RKV_STALE",
  [-4]: "RKV_RANGE",
  [-5]: "RKV_MEMORY",
  [-6]: "RKV_FILE",
  [-7]: "RKV_RECORDING",
  [-8]: "RKV_DEVICE",
  [-9]: "RKV_POISONED",
  [-10]: "RKV_CANCELLED",
  [-11]: "RKV_LIMIT",
};

export const symbols = {
  rkv_abi: ["i32"],
  rkv_why: ["i32", "buf", "u32"],
  rkv_isas: ["i32", "buf", "u32"],
  rkv_open: ["i32", "i32", "i32", "i32"],
  rkv_results: ["i32", "i32"],
  rkv_wait: ["i32", "i32", "buf"],
  rkv_describe: ["i32", "i32", "buf", "u32"],
  rkv_device_memory: ["i32", "i32", "buf"],
  rkv_arena: ["i32", "i32", "i64"],
  rkv_arena_memory: ["i32", "i32", "buf"],
  rkv_tensor: ["i32", "i32", "i32", "buf", "i32"],
  rkv_commit: ["i32", "i32", "i32", "i32"],
  rkv_release: ["i32", "i32", "i32", "i32"],
  rkv_write: ["i32", "i32", "i32", "buf", "u32"],
  rkv_read: ["i32", "i32", "i32", "i32"],
  rkv_take: ["i32", "i32", "buf", "u32"],
  rkv_fence: ["i32", "i32"],
  rkv_cancel: ["i32", "i32", "i32"],
  rkv_fault: ["i32", "i32", "buf", "u32"],
  rkv_clock: ["i32", "i32", "i32"],
  rkv_times: ["i32", "i32", "buf"],
  rkv_op_name: ["i32", "i32", "buf", "u32"],
  rkv_close: ["i32", "i32"],
  rkv_file: ["i32", "buf", "u32"],
  rkv_load_rows: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i64"],
  rkv_checksums: ["i32", "buf", "buf", "u32"],
  rkv_weight: ["i32", "i32", "i32", "i64", "i32", "i32", "i32", "i32"],
  rkv_layer: ["i32", "i32", "buf", "buf", "buf"],
  rkv_model: ["i32", "i32", "i32", "i32", "i32", "f64"],
  rkv_rows: ["i32", "i32", "buf", "i32"],
  rkv_record: ["i32", "i32"],
  rkv_record_end: ["i32", "i32"],
  rkv_replay: ["i32", "i32"],
  rkv_rotations: ["i32", "i32", "i32", "i32", "f32", "i32"],
  rkv_embed: ["i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_attn_in: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_queries: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_attn_out: ["i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_head: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_greedy: ["i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_tally: ["i32", "i32", "i32", "i32"],
  rkv_penalize: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_sample: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_likeliest: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_advance: ["i32", "i32", "i32"],
  rkv_copy: ["i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_attend_chunk: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_attend: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_attend_estimates: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_seed_centroids: ["i32", "i32", "i32", "i32", "i32", "buf"],
  rkv_assign: ["i32", "i32", "i32", "i32", "i32", "i32", "buf"],
  rkv_group: ["i32", "i32", "i32", "i32", "i32", "buf"],
  rkv_centroid_means: ["i32", "i32", "i32", "i32", "i32", "i32", "buf"],
  rkv_radius: ["i32", "i32", "i32", "i32", "i32", "i32", "buf"],
  rkv_permute_rows: ["i32", "i32", "i32", "i32", "buf"],
  rkv_centroid_scores: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "f32", "f32"],
  rkv_topk: ["i32", "i32", "i32", "i32"],
  rkv_fill_budget: ["i32", "i32", "i32", "i32", "i32"],
  rkv_fill_whole: ["i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_page_bounds: ["i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_page_scores: ["i32", "i32", "i32", "i32", "i32", "f32", "i32", "i32"],
  rkv_gather_rows: ["i32", "i32", "i32", "i32"],
  rkv_set_tail: ["i32", "i32", "i32", "i32"],
  rkv_attention_mass: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_mass_rates: ["i32", "i32", "i32", "i32", "i32"],
  rkv_pool_scores: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_keep: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_compact: ["i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_pick_rows: ["i32", "i32", "i32", "i32", "i32"],
  rkv_evict: ["i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_project_rows: ["i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_latent_scores: ["i32", "i32", "i32", "i32", "i32", "i32", "i32", "f32", "i32"],
  rkv_trim_index: ["i32", "i32", "i32", "i32", "f32"],
  rkv_reconstruct: ["i32", "i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_channel_mass: ["i32", "i32", "i32", "i32", "i32", "i32"],
  rkv_pick_channels: ["i32", "i32", "i32", "i32", "i32"],
} as const satisfies Table;

/** The library as a runtime opens it. */
export interface Library {
  readonly fn: Functions<typeof symbols>;
  /** Tells of every job that arrives at `results` (a device's pipe), for as long as some are awaited. Returns what must be called when
   * a job begins to be awaited. Nothing it does holds the process open while none is. */
  waiter(results: number, jobs: Jobs): () => void;
}

/** Who awaits jobs. */
export interface Jobs {
  areAwaited(): boolean;
  arrived(job: number, code: number): void;
  /** No news will come any more. */
  lost(): void;
}

/** What bun.ts and deno.ts are. */
export interface Backend {
  /** Opens a library. Throws what the runtime says. */
  open(path: string): Library;
  /** An environment variable; undefined where it is unset, or may not be read. */
  environment(name: string): string | undefined;
}
