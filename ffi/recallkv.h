/* recallkv.h: the C ABI of recallkv, and its manual. The only header TypeScript knows (ffi/symbols.ts is compared with it).
 *
 * Handles are positive int32_t (place and generation); 0 means "none" where a prototype allows it. A handle knows dtype and shape.
 * Every function returns 0 (or a positive handle, job or count) or a negative code; the sentence that says what was found and what
 * was wanted is read with rkv_why right after the refusal, on the same thread. The library never prints, exits or aborts.
 *
 * Ops only enqueue: they never wait, allocate or read device memory on the host. They run in call order, perhaps later, on the queue
 * of the device that owns their first argument. Inside a recording, ops are noted on a tape instead of run, and no host number may
 * need to change from replay to replay: what changes lives in tensors.
 *
 * Order of arguments: outputs, inputs, state, scalars. Shapes are row-major, the last dimension contiguous. Words:
 *   slots     sequences served by one call          rows       places in the KV tensor; capacity of them per (slot, kvHead)
 *   heads     query heads; group = heads / kvHeads   index      chosen rows, i32[slots, kvHeads, budget], valid ones first, then -1
 * A decode op takes one row per slot and skips slots whose `active` is 0. A prefill op takes `count` rows of one slot. Ops that serve
 * both take (slot, count): slot >= 0 is a chunk of that slot, slot == RKV_STEP is a step in which row i belongs to slot i. */
#ifndef RECALLKV_H
#define RECALLKV_H
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RKV_ABI 1

#if defined(_WIN32)
#define RKV_API __declspec(dllexport)
#else
#define RKV_API __attribute__((visibility("default")))
#endif

/* What a negative return value means. */
#define RKV_SHAPE (-1)     /* a tensor has another shape than wanted */
#define RKV_DTYPE (-2)     /* a tensor or weight has another dtype than wanted */
#define RKV_STALE (-3)     /* a handle names nothing, or something that was closed */
#define RKV_RANGE (-4)     /* a number lies outside what is allowed */
#define RKV_MEMORY (-5)    /* not enough memory: needed and free are in the sentence */
#define RKV_FILE (-6)      /* a file cannot be opened, mapped, or is too short */
#define RKV_RECORDING (-7) /* not allowed while recording a step */
#define RKV_DEVICE (-8)    /* no such device on this machine, or its driver failed */
#define RKV_POISONED (-9)  /* an earlier op of this arena failed while executing; rkv_fault tells which */
#define RKV_CANCELLED (-10)/* cancelled by rkv_cancel */
#define RKV_LIMIT (-11)    /* a table or the queue is full */

/* dtypes of tensors. RKV_Q8 rows are headDim signed bytes followed by one f32 scale. */
#define RKV_F32 0
#define RKV_F16 1
#define RKV_BF16 2
#define RKV_I32 3
#define RKV_U32 4
#define RKV_Q8 5

/* Types of weights, as files hold them. */
#define RKV_WEIGHT_F32 0
#define RKV_WEIGHT_F16 1
#define RKV_WEIGHT_BF16 2
#define RKV_WEIGHT_Q8_0 3
#define RKV_WEIGHT_Q4_0 4
#define RKV_WEIGHT_Q4_K 5
#define RKV_WEIGHT_Q5_K 6
#define RKV_WEIGHT_Q6_K 7
#define RKV_WEIGHT_Q4_1 8
#define RKV_WEIGHT_Q5_0 9
#define RKV_WEIGHT_Q5_1 10
#define RKV_WEIGHT_TYPES 11

#define RKV_STEP (-1)
#define RKV_CPU 0
#define RKV_CUDA 1

/* ---- the library ------------------------------------------------------------------------------------------------------------- */

/* The ABI number of this library: RKV_ABI of the header it was built from. */
RKV_API int32_t rkv_abi(void);

/* Copies the sentence of this thread's last refused call, UTF-8 without NUL. Returns its length, at most `bytes`. */
RKV_API int32_t rkv_why(uint8_t *text, uint32_t bytes);

/* Names of the CPU instruction sets this machine can run, best first, separated by spaces ("avx512bf16 avx512 avx2 baseline").
 * A place in this list is the `isa` of rkv_open. Returns the length. */
RKV_API int32_t rkv_isas(uint8_t *text, uint32_t bytes);


/* ---- devices, memory, files ----------------------------------------------------------------------------------------------------- */

/* Added to the threads of rkv_open: each stays on a core of its own, of those that the process may use. */
#define RKV_PINNED 0x10000

/* Opens a device. kind: RKV_CPU or RKV_CUDA. threads: width of the CPU pool, 0 = all cores. isa: place in rkv_isas, 0 = best.
 * Returns a device. Errors: RKV_DEVICE, RKV_RANGE, RKV_MEMORY. */
RKV_API int32_t rkv_open(int32_t kind, int32_t threads, int32_t isa);

/* Read end of the pipe on which a device's finished jobs arrive as pairs (int32 job, int32 code). Errors: RKV_STALE. */
RKV_API int32_t rkv_results(int32_t device);

/* Blocks until jobs have finished; fills pairs[2 * 64] with (job, code). Returns the number of pairs. `results` is what rkv_results
 * gave, and not the device: this runs on a thread of its own, and the device may be closed before it begins. Errors: RKV_STALE. */
RKV_API int32_t rkv_wait(int32_t results, int32_t *pairs);

/* One line about a device: "cpu avx512bf16, 2 threads". Returns the length. Errors: RKV_STALE. */
RKV_API int32_t rkv_describe(int32_t device, uint8_t *text, uint32_t bytes);

/* Memory of a device in bytes: sizes[0] all, sizes[1] free now. Errors: RKV_STALE. */
RKV_API int32_t rkv_device_memory(int32_t device, int64_t *sizes);

/* Reserves address space for tensors, weights and tapes that live and die together; it costs no memory until rows are committed.
 * Returns an arena. Errors: RKV_STALE, RKV_RANGE, RKV_MEMORY. */
RKV_API int32_t rkv_arena(int32_t device, int64_t reserve);

/* Memory of an arena in bytes: sizes[0] reserved, sizes[1] used by tensors and weights, sizes[2] committed. Errors: RKV_STALE. */
RKV_API int32_t rkv_arena_memory(int32_t arena, int64_t *sizes);

/* A tensor of zeros: shape[rank], rank 1 to 5. Small tensors (up to 1 MiB) are committed at once, larger ones by rkv_commit.
 * Returns a tensor. Errors: RKV_STALE, RKV_SHAPE, RKV_DTYPE, RKV_MEMORY, RKV_RECORDING. */
RKV_API int32_t rkv_tensor(int32_t arena, int32_t dtype, const int32_t *shape, int32_t rank);

/* Commits memory for `rows` rows (second-to-last dimension) of every plane of one slot (RKV_STEP: of all slots; the first dimension);
 * what was committed stays as it is. Checked against the memory that is free. Errors: RKV_STALE, RKV_RANGE, RKV_MEMORY, RKV_RECORDING. */
RKV_API int32_t rkv_commit(int32_t tensor, int32_t slot, int32_t rows);

/* Enqueued: gives back the whole pages of rows [row, capacity) of one slot's planes; what they held is lost (reads as zeros).
 * Errors: RKV_STALE, RKV_RANGE, RKV_RECORDING. */
RKV_API int32_t rkv_release(int32_t tensor, int32_t slot, int32_t row);

/* Enqueued: copies `bytes` bytes of host memory to a tensor from element `offset` on; the host memory is read during the call.
 * Errors: RKV_STALE, RKV_RANGE, RKV_RECORDING, RKV_LIMIT. */
RKV_API int32_t rkv_write(int32_t tensor, int32_t offset, const uint8_t *data, uint32_t bytes);

/* Enqueued: takes `count` elements of a tensor from element `offset` on. Returns a job; when it has arrived, rkv_take brings the
 * bytes. Errors: RKV_STALE, RKV_RANGE, RKV_RECORDING, RKV_MEMORY. */
RKV_API int32_t rkv_read(int32_t tensor, int32_t offset, int32_t count);

/* Copies what a finished rkv_read took, once, and forgets it. Returns the number of bytes. Errors: RKV_STALE, RKV_RANGE. */
RKV_API int32_t rkv_take(int32_t job, uint8_t *data, uint32_t bytes);

/* Enqueued: a job that finishes when everything before it has; its code is 0, RKV_POISONED or RKV_CANCELLED. Returns the job.
 * Errors: RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_fence(int32_t arena);

/* Sets or clears an arena's cancel flag. While set, its ops end at the next piece and later ones are skipped. Errors: RKV_STALE. */
RKV_API int32_t rkv_cancel(int32_t arena, int32_t on);

/* Copies the sentence that says what poisoned an arena. Returns its length, 0 when nothing did. Errors: RKV_STALE. */
RKV_API int32_t rkv_fault(int32_t arena, uint8_t *text, uint32_t bytes);

/* What the clock of an arena adds up. RKV_CLOCK_OPS: the time of each op. On a CPU that costs two looks at the clock an op; on a GPU steps are
 * then run op by op and waited for, so their times are true and their sum is longer than a step. RKV_CLOCK_REPLAYS: what starting a recorded
 * step takes of the host's time, on a GPU; steps run as they do. */
#define RKV_CLOCK_OPS 1
#define RKV_CLOCK_REPLAYS 2

/* Starts the clock of an arena, or stops it (on = 0): then it costs nothing. Errors: RKV_STALE, RKV_MEMORY, RKV_RANGE. */
RKV_API int32_t rkv_clock(int32_t arena, int32_t on);

/* Fills times[2 * n] with (runs, nanoseconds) of each op since the clock first went, those of ops that have ended (await a fence before);
 * replays come last. Returns n, at most 64. Errors: RKV_STALE. */
RKV_API int32_t rkv_times(int32_t arena, int64_t *times);

/* Copies the name of op number `op` of rkv_times ("attn_in", last "replay"). Returns its length. Errors: RKV_RANGE. */
RKV_API int32_t rkv_op_name(int32_t op, uint8_t *text, uint32_t bytes);

/* Closes a device, arena, file or tape; the free is enqueued, so nothing is freed under a running op. Closing an arena closes all it
 * holds. Errors: RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_close(int32_t handle);

/* Maps a file for reading. path: UTF-8, `bytes` long. Returns a file. Errors: RKV_FILE. */
RKV_API int32_t rkv_file(const uint8_t *path, uint32_t bytes);

/* Enqueued: fills `count` elements of a tensor, from element `offset` on, with the bytes of a mapped file from byte `at` on, and sums what
 * has arrived: element `first` of sums is the CRC-32C (RFC 3720) of the first 16 KiB, and so on, the last one of what is left.
 *   sums[n]  u32  out  of the same device
 * The file may be closed at once: closing waits in the queue. Errors: RKV_STALE, RKV_RANGE, RKV_DTYPE, RKV_FILE, RKV_DEVICE,
 * RKV_RECORDING, RKV_LIMIT. */
RKV_API int32_t rkv_load_rows(int32_t sums, int32_t first, int32_t tensor, int32_t offset, int32_t count, int32_t file, int64_t at);

/* The same sums of host memory; sums has room for one of each 16 KiB. Returns how many there are. */
RKV_API int32_t rkv_checksums(uint32_t *sums, const uint8_t *data, uint32_t bytes);

/* ---- weights -------------------------------------------------------------------------------------------------------------------- */

/* Enqueued: packs a matrix [rows, cols] (row-major in the file, `type` RKV_WEIGHT_*) for products, or, with rows == 1, keeps it as an
 * f32 vector. The file may be closed at once: closing waits in the queue. rotated > 0: rows are those of `rotated` heads whose RoPE
 * pairs are adjacent (the llama architecture in GGUF); they are put back into halves. Offsets and sizes are checked against the file.
 * Returns a weight. Errors: RKV_STALE, RKV_RANGE, RKV_DTYPE, RKV_FILE, RKV_MEMORY, RKV_RECORDING. */
RKV_API int32_t rkv_weight(int32_t arena, int32_t file, int64_t offset, int32_t type, int32_t rows, int32_t cols, int32_t rotated);

/* Bundles the weights of one decoder layer.
 *   weights[15]: attnNorm, q, k, v, o, qBias, kBias, vBias, oBias, qNorm, kNorm, ffnNorm, gate, up, down; 0 = the model has none;
 *                all 0: a layer for attention alone, which rkv_attn_in, rkv_queries and rkv_attn_out refuse
 *   sizes[5]: heads, kvHeads, headDim, window (0 = none: rows nearer than `window` positions are seen), ropeDim (even, <= headDim)
 *   numbers[3]: norm epsilon, softmax scale, logit soft cap (0 = none)
 * Returns a layer. Errors: RKV_STALE, RKV_SHAPE, RKV_RANGE. */
RKV_API int32_t rkv_layer(int32_t arena, const int32_t *weights, const int32_t *sizes, const double *numbers);

/* Bundles what lies around the layers. output == 0: tied to embed. Returns a model.
 * Errors: RKV_STALE, RKV_SHAPE. */
RKV_API int32_t rkv_model(int32_t arena, int32_t embed, int32_t output_norm, int32_t output, double eps);

/* Bundles the KV rows of one layer with the step state that speaks of them.
 *   tensors[7]: keys and values [slots, kvHeads, capacity, headDim] (f32, f16, bf16 or q8), rowPosition i32[slots, kvHeads, capacity],
 *               rowEnd and tailBegin i32[layers, slots], active i32[slots],
 *               attended i32[layers, slots, 8]: four 64-bit counters of rows that rkv_attend has read, summed over KV heads (with an
 *               index per head: over heads / group): sink, index, tail, estimates
 *   layer: which row of rowEnd, tailBegin and attended
 * Returns rows. Errors: RKV_STALE, RKV_SHAPE, RKV_DTYPE, RKV_RANGE. */
RKV_API int32_t rkv_rows(int32_t arena, const int32_t *tensors, int32_t layer);

/* ---- recording a step ------------------------------------------------------------------------------------------------------------ */

/* From here to rkv_record_end, ops of this arena are noted, not run. Errors: RKV_STALE, RKV_RECORDING, RKV_POISONED. */
RKV_API int32_t rkv_record(int32_t arena);

/* Ends the recording. Returns a tape. Errors: RKV_STALE, RKV_RECORDING, RKV_MEMORY. */
RKV_API int32_t rkv_record_end(int32_t arena);

/* Enqueued: runs the ops of a tape, in order; nothing of it enters TypeScript. Errors: RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_replay(int32_t tape);

/* ---- ops: decoder ---------------------------------------------------------------------------------------------------------------- */

/* Cosines and sines of the rotary embedding, shared by all layers of a step or chunk.
 *   rotations[n, 2, ropeDim/2]   f32  out   cos, then sin
 *   position[n]                  i32  in
 *   frequencies[ropeDim/2]       f32  in    inverse frequencies, scaling included
 * angle = position * frequency in f64; factor multiplies both (YaRN's attention factor, else 1). count rows are made.
 * Source: RoFormer (arXiv 2104.09864). Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_rotations(int32_t rotations, int32_t position, int32_t frequencies, float factor, int32_t count);

/* Rows of the embedding table.
 *   x[n, hidden]   f32  out
 *   token[n]       i32  in    0 <= token < vocab (an id outside gives a row of NaN, so that it cannot go unseen)
 *   active[slots]  i32  in    0 = none: every row
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_embed(int32_t x, int32_t model, int32_t token, int32_t active, int32_t count);

/* First half of a layer: norm, q/k/v products, biases or q/k norms, rotation, append to the KV rows.
 *   q[n, heads, headDim]         f32  out   rotated
 *   rows                         inout      n rows appended from rowEnd on, for a step one per active slot; rowEnd moves on
 *   x[n, hidden]                 f32  in    residual stream
 *   rotations[n, 2, ropeDim/2]   f32  in
 *   position[n]                  i32  in    goes to rowPosition
 *   work[>= count * (hidden + 2 * kvHeads * headDim)]  f32  scratch
 * h = x / rms(x) * attnNorm;  q = rot(norm(Wq h + bq)), k = rot(norm(Wk h + bk)), v = Wv h + bv
 * A row that would lie past capacity is dropped and poisons the arena. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_attn_in(int32_t q, int32_t rows, int32_t x, int32_t layer, int32_t rotations, int32_t position, int32_t work,
                            int32_t slot, int32_t count);

/* The queries that a layer would make of x: rkv_attn_in's first third. Nothing is appended.
 *   q[n, heads, headDim]        f32  out   rotated
 *   x[n, hidden]                f32  in
 *   active[slots]               i32  in    0 = none: every row
 *   rotations[n, 2, ropeDim/2]  f32  in
 *   work[>= count * hidden]     f32  scratch
 * Source: InfiniGen (arXiv 2406.19707) 4.3, which asks a layer's queries of the input before it. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE,
 * RKV_STALE. */
RKV_API int32_t rkv_queries(int32_t q, int32_t x, int32_t layer, int32_t active, int32_t rotations, int32_t work, int32_t count);

/* Second half of a layer: output projection, residual, norm, SwiGLU, residual.
 *   x[n, hidden]                 f32  inout
 *   attended[n, heads, headDim]  f32  in
 *   active[slots]                i32  in    0 = none: every row
 *   work[>= count * (hidden + 2 * intermediate)]  f32  scratch
 * x += Wo attended + bo;  h = x / rms(x) * ffnNorm;  x += Wdown (silu(Wgate h) * (Wup h))
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_attn_out(int32_t x, int32_t attended, int32_t layer, int32_t active, int32_t work, int32_t count);

/* Logits of rows [first, first + count).
 *   logits[n, vocab]  f32  out
 *   x[n, hidden]      f32  in
 *   active[slots]     i32  in    0 = none: every row
 *   work[>= count * hidden]  f32  scratch
 * logits = Wout (x / rms(x) * outputNorm). Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_head(int32_t logits, int32_t x, int32_t model, int32_t active, int32_t work, int32_t first, int32_t count);

/* The likeliest token of rows [first, first + count), ties to the lower id; NaN never wins, and a row without a number gives -1.
 *   token[n]    i32  out
 *   logprob[n]  f32  out   log softmax of it
 *   logits[n, vocab] f32 in;  active[slots] i32 in (0 = every row)
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_greedy(int32_t token, int32_t logprob, int32_t logits, int32_t active, int32_t first, int32_t count);

/* ---- sampling. Numbers of options[n, RKV_SAMPLING] f32, one row per slot, written between steps: ---------------------------------- */
#define RKV_SAMPLING 12
#define RKV_TEMPERATURE 0 /* 0: the likeliest */
#define RKV_TOP_K 1       /* 0: all */
#define RKV_TOP_P 2       /* 1: all */
#define RKV_MIN_P 3       /* 0: all */
#define RKV_REPETITION 4  /* 1: none */
#define RKV_FREQUENCY 5   /* 0: none */
#define RKV_PRESENCE 6    /* 0: none */
#define RKV_SEED_HIGH 7   /* the upper and lower 16 bits of a seed */
#define RKV_SEED_LOW 8
#define RKV_LIKELIEST 9   /* how many rkv_likeliest finds */
#define RKV_ADJUSTS 10    /* 1: rkv_penalize has something to do, and rkv_sample chooses from what it gave */

/* Counts the token that a step feeds: counts[s, token[s]] += 2 for active slots.
 *   counts[slots, vocab]  i32  inout   2 * times generated, + 1 where the prompt has the token
 *   token[slots]          i32  in      an id outside is not counted
 *   active[slots]         i32  in
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_tally(int32_t counts, int32_t token, int32_t active);

/* Logits of rows [first, first + count) after penalties and bias; rows whose options say RKV_ADJUSTS 0 are left alone.
 *   adjusted[n, vocab]       f32  out
 *   logits[n, vocab]         f32  in
 *   counts[n, vocab]         i32  in    as rkv_tally
 *   bias[n, vocab]           f32  in    -inf forbids a token
 *   active[slots]            i32  in    0 = none: every row
 *   options[n, RKV_SAMPLING] f32  in
 * x = logit; where count > 0: x = x > 0 ? x / repetition : x * repetition;
 * where g = count / 2 (rounded down) > 0: x -= frequency * g + presence;  adjusted = x + bias.
 * Source: repetition: CTRL (arXiv 1909.05858) 4.1. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_penalize(int32_t adjusted, int32_t logits, int32_t counts, int32_t bias, int32_t active, int32_t options,
                             int32_t first, int32_t count);

/* Draws the next token of rows [first, first + count).
 *   token[n]                 i32  out   -1 where no logit is a number
 *   logprob[n]               f32  out   log softmax of `logits`, as the model gave it: before penalties, temperature and cuts
 *   logits[n, vocab]         f32  in
 *   adjusted[n, vocab]       f32  in    what is chosen from where options say so (RKV_ADJUSTS), else logits
 *   active[slots]            i32  in    0 = none: every row
 *   position[n]              i32  in    place in the text of the token that is drawn
 *   options[n, RKV_SAMPLING] f32  in
 * Temperature 0 gives the likeliest, ties to the lower id. Else x = adjusted / temperature, weight w = floor(2^40 exp(x - max x)), and the
 * cuts, each a prefix of the order by descending x (ties to the lower id): the first topK; of these the shortest prefix whose weights
 * reach topP of their sum; of these those with x >= max x + ln(minP). Of what is left, with sum W of weights, the first id at which
 * the running sum exceeds floor(random * W / 2^64), random = the 64 bits of Philox 2x32-10 of (key seed, counter position, 0). Weights are
 * integers, so no sum depends on an order. Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011); top-p: Holtzman
 * et al. (arXiv 1904.09751); min-p: arXiv 2407.01082. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_sample(int32_t token, int32_t logprob, int32_t logits, int32_t adjusted, int32_t active, int32_t position,
                           int32_t options, int32_t first, int32_t count);

/* The likeliest tokens of rows [first, first + count), as many as options say (RKV_LIKELIEST, at most `most`), best first, ties to the
 * lower id. Places beyond that are left alone.
 *   tokens[n, most]          i32  out   -1 where there are fewer numbers
 *   logprobs[n, most]        f32  out   log softmax of logits
 *   logits[n, vocab]         f32  in
 *   active[slots]            i32  in    0 = none: every row
 *   options[n, RKV_SAMPLING] f32  in
 * most <= 64. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_likeliest(int32_t tokens, int32_t logprobs, int32_t logits, int32_t active, int32_t options, int32_t first, int32_t count);

/* position[s] += 1 for active slots. position, active: i32[slots]. Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_advance(int32_t position, int32_t active);

/* Copies `count` rows of the last dimension (single elements for rank 1); dtypes and widths must agree, tensors may not overlap.
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_copy(int32_t to, int32_t to_row, int32_t from, int32_t from_row, int32_t count);

/* ---- ops: attention -------------------------------------------------------------------------------------------------------------- */

/* Prefill attention of a chunk: query i sees rows [0, rowEnd - count + i] of its slot (causality goes by row order), less those that
 * the layer's window hides by position.
 *   attended[count, heads, headDim]  f32  out
 *   lse[count, heads]                f32  out   log-sum-exp of the scaled logits; 0 = not wanted
 *   q[count, heads, headDim]         f32  in
 *   layer                            in         scale, soft cap, window
 * attended = sum_j softmax_j(scale * q . k_j) v_j, online over fixed tiles of rows. Source: FlashAttention (arXiv 2205.14135).
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_attend_chunk(int32_t attended, int32_t lse, int32_t q, int32_t rows, int32_t layer, int32_t slot, int32_t count);

/* Decode attention of every active slot over sink rows [0, sink), the rows of `index`, and the tail [max(tailBegin, sink), rowEnd),
 * each clipped to rowEnd; the layer's window, where it has one, hides rows of the tail by position.
 *   attended[slots, heads, headDim]  f32  out
 *   lse[slots, heads]                f32  out   0 = not wanted
 *   q[slots, heads, headDim]         f32  in
 *   index[slots, kvHeads or heads, budget]  i32  in   0 = none
 *   work[>= slots * heads * pieces * (headDim + 2)]  f32  scratch; pieces = ceil(capacity / RKV_PIECE) + 2
 * An index entry outside [0, rowEnd) is skipped. Adds what was read to the rows' `attended` counters. Source: ClusterKV (arXiv 2412.03213) 3. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE,
 * RKV_STALE. */
RKV_API int32_t rkv_attend(int32_t attended, int32_t lse, int32_t q, int32_t rows, int32_t layer, int32_t index, int32_t work, int32_t sink);

/* Rows of attended positions per piece of decode attention: partial softmaxes are merged in piece order, whoever computed them. */
#define RKV_PIECE 256

/* The fourth source, after rkv_attend: a cluster that was not chosen enters as its centroid with its mean value, size times, and is
 * merged into what the rows have given by log-sum-exp. Exact where all keys of a cluster are equal.
 *   attended[slots, heads, headDim]                  f32  inout
 *   lse[slots, heads]                                f32  inout   as rkv_attend has left it
 *   q[slots, heads, headDim]                         f32  in
 *   rows, layer                                      in           active slots; scale and soft cap
 *   centroids[slots, kvHeads, maxClusters, headDim]  f32  in
 *   means[slots, kvHeads, maxClusters, headDim]      f32  in      mean values of the same members (rkv_centroid_means over values)
 *   bias[slots, kvHeads or heads, maxClusters]       f32  in      ln(size), -inf for clusters that take no part (rkv_fill_whole)
 *   work[>= slots * heads * ceil(maxClusters / RKV_PIECE) * (headDim + 2)]  f32  scratch
 * logit of cluster c = cap(scale * q . centroids[c]) + bias[c]. Adds the clusters to the rows' counter of estimates.
 * Source: RetroInfer (arXiv 2505.02922) 4.1. Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_attend_estimates(int32_t attended, int32_t lse, int32_t q, int32_t rows, int32_t layer, int32_t centroids,
                                     int32_t means, int32_t bias, int32_t work);

/* ---- ops: clustering. They run between steps, over a segment of one slot, all its KV heads at once. -------------------------------
 * run[5] = { slot, begin, rows, cluster, clusters }: rows [begin, begin + rows) become clusters [cluster, cluster + clusters).
 * moved[slots, kvHeads] i32: 1 while labels of that head still change; ops that take it skip heads that are at rest. */

/* Evenly spaced initial centroids, and moved = 1: centroid c = keys[begin + floor((c + 0.5) * rows / clusters)]; labels = -1.
 *   centroids[slots, kvHeads, maxClusters, headDim]  f32  out
 *   labels[slots, kvHeads, capacity]                 i32  out
 *   moved[slots, kvHeads]                            i32  out
 *   keys[slots, kvHeads, capacity, headDim]          any rows dtype  in
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_seed_centroids(int32_t centroids, int32_t labels, int32_t moved, int32_t keys, const int32_t *run);

/* Labels by cosine, ties to the lower id, relative to run.cluster (0 .. clusters - 1); moved = whether any label changed.
 *   labels, moved as above  inout;  keys, centroids in
 *   work[>= kvHeads * (clusters + ceil(rows / RKV_PIECE))]  f32  scratch
 * label = argmax_c key . centroid_c / |centroid_c|  (|centroid| = 0 counts as cosine 0; a NaN key goes to 0).
 * Source: ClusterKV 3.2. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_assign(int32_t labels, int32_t moved, int32_t keys, int32_t centroids, int32_t work, const int32_t *run);

/* Groups the rows of a segment by label, stably.
 *   order[slots, kvHeads, capacity]          i32  out   order[begin + i] = the row that comes i-th
 *   offsets[slots, kvHeads, maxClusters + 1] i32  out   members of cluster c are order[offsets[c] .. offsets[c + 1])
 *   labels in;  moved in, 0 = none: every head
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_group(int32_t order, int32_t offsets, int32_t labels, int32_t moved, const int32_t *run);

/* Centroids as the raw means of their members, summed in f32, in row order; an empty cluster keeps its centroid. Offsets are cut to the
 * run, and an entry of order that names no row of it counts as its first.
 *   centroids inout;  keys, order, offsets in;  moved in, 0 = none: every head
 * Source: ClusterKV 3.2. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_centroid_means(int32_t centroids, int32_t keys, int32_t order, int32_t offsets, int32_t moved, const int32_t *run);

/* How far the farthest member, told as by rkv_centroid_means, lies from its centroid (L2); 0 for an empty cluster. After the last
 * rkv_centroid_means, before rows move.
 *   radius[slots, kvHeads, maxClusters]              f32  out
 *   keys, centroids, order, offsets                  in   as above
 * Source: ArkVale (NeurIPS 2024). Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_radius(int32_t radius, int32_t keys, int32_t centroids, int32_t order, int32_t offsets, const int32_t *run);

/* Puts rows into the order of rkv_group: row begin + i becomes what row order[begin + i] was. Never cancelled half-way.
 *   tensor[slots, kvHeads, capacity, width] or [slots, kvHeads, capacity]  any dtype  inout
 *   work[>= kvHeads * rows * row bytes / 4]  f32  scratch
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_permute_rows(int32_t tensor, int32_t order, int32_t work, const int32_t *run);

/* ---- ops: selection, each step --------------------------------------------------------------------------------------------------- */

/* Ranks clusters by how much of the group's attention they would draw, no size weight.
 *   scores[slots, kvHeads or heads, maxClusters]     f32  out  -inf from count on, and for clusters without members
 *   q[slots, heads, headDim]                         f32  in   after rotation
 *   centroids[slots, kvHeads, maxClusters, headDim]  f32  in
 *   radius[slots, kvHeads, maxClusters]              f32  in   of rkv_radius; 0 = taken as 0
 *   offsets[slots, kvHeads, maxClusters + 1]         i32  in
 *   count[slots]                                     i32  in   clusters in use
 *   active[slots]                                    i32  in
 * u[s,g,c] = q[s,g] . centroids[s,h,c] + bound * |q[s,g]| * radius[s,h,c]  (bound 1: no member can have a larger logit)
 * scores[s,h,c] = sum over g of group(h):  softmax_c( scale * u[s,g,c] );  with heads rows (perHead): u. A u that is no number: -inf.
 * Source: RetroInfer (arXiv 2505.02922) 4.2; ClusterKV 3.3; the bound: ArkVale (NeurIPS 2024). Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE,
 * RKV_STALE. */
RKV_API int32_t rkv_centroid_scores(int32_t scores, int32_t q, int32_t centroids, int32_t radius, int32_t offsets, int32_t count,
                                    int32_t active, float scale, float bound);

/* Order of candidates by score: descending, ties to the lower id, -inf and NaN left out, then -1.
 *   order[slots, n, k]       i32  out
 *   scores[slots, n, width]  f32  in    k <= width
 *   active[slots]            i32  in
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_topk(int32_t order, int32_t scores, int32_t active);

/* Rows of the best clusters until the budget is full; the last cluster is trimmed to its first rows (the earliest positions).
 *   index[slots, n, budget]                   i32  out
 *   order[slots, n, k]                        i32  in   cluster ids, best first, then -1
 *   offsets[slots, kvHeads, maxClusters + 1]  i32  in   rows are in cluster order: cluster c is rows [offsets[c], offsets[c + 1])
 *   active[slots]                             i32  in
 * Source: ClusterKV 3.3. Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_fill_budget(int32_t index, int32_t order, int32_t offsets, int32_t active);

/* As rkv_fill_budget, but a cluster is taken whole or not at all: one that does not fit is passed over, the next is tried.
 *   index[slots, n, budget]                   i32  out
 *   bias[slots, n, maxClusters]               f32  out  ln(size) of clusters that were not taken; -inf for those that were, that have no
 *                                                       members, or lie from count on
 *   order[slots, n, k]                        i32  in   cluster ids, best first, then -1
 *   offsets[slots, kvHeads, maxClusters + 1]  i32  in
 *   count[slots], active[slots]               i32  in
 * Source: RetroInfer (arXiv 2505.02922) 4.1. Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_fill_whole(int32_t index, int32_t bias, int32_t order, int32_t offsets, int32_t count, int32_t active);

/* The box around the keys of each page: channel-wise least and largest. Page p is rows [p * page, (p + 1) * page) as far as they are held.
 * Remakes, between steps, every page that rows [begin, begin + count) touch. A NaN is passed over.
 *   bounds[slots, kvHeads, maxPages, 2, headDim]  f32, or the keys' f16 or bf16  out   least, then largest; maxPages >= capacity / page
 *   rows                                          in
 * Source: Quest (arXiv 2406.10774) 3.2. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_page_bounds(int32_t bounds, int32_t rows, int32_t page, int32_t slot, int32_t begin, int32_t count);

/* Ranks pages by the best logit that their box allows.
 *   scores[slots, kvHeads or heads, maxPages]  f32  out  -inf for pages that do not lie within [sink, tailBegin)
 *   q[slots, heads, headDim]                   f32  in
 *   bounds                                     in   of rkv_page_bounds
 *   rows                                       in   active slots, and where the tail begins
 * u = sum_j max(q_j least_j, q_j largest_j); scores[s,h,p] = sum over g of group(h): softmax_p( scale * u ); with heads rows: u
 * Source: Quest 3.3. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_page_scores(int32_t scores, int32_t q, int32_t bounds, int32_t rows, float scale, int32_t page, int32_t sink);

/* Copies chosen rows together: to[s, h, i] = from[s, h, index[s, h, i]], f32; rows of -1 are zeros.
 *   to[slots, kvHeads, budget, width] f32 out;  from[slots, kvHeads, capacity, width] any rows dtype in;  index i32 in
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_gather_rows(int32_t to, int32_t from, int32_t index);

/* Moves the tail of every active slot: tailBegin = max(tailBegin, sink, rowEnd - width). Source: StreamingLLM (arXiv 2309.17453).
 * Errors: RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_set_tail(int32_t rows, int32_t sink, int32_t width);

/* ---- ops: giving rows back --------------------------------------------------------------------------------------------------------
 * mass[slots, n, capacity] f32: attention that a row has drawn; n is kvHeads or heads, heads that share a row are summed. */

/* Adds the attention probabilities of queries to the rows they see. One pass, because their log-sum-exp is known.
 *   mass[slots, n, capacity]  f32  inout
 *   q[count, heads, headDim]  f32  in     of a chunk that was just attended (slot >= 0), or of a step (slot == RKV_STEP, count = slots)
 *   lse[count, heads]         f32  in     of rkv_attend_chunk or rkv_attend
 *   weights[count]            f32  in     factor of each query; 0 = 1
 *   rows, layer               in
 * mass[s, head's row, j] += weight_i * exp(scale * q_i . k_j - lse_i), for queries i from `first` on, in order, and rows j up to their own. A
 * step's query sees every row held: for policies whose steps attend them all. The sum is the same to the bit however a prompt is chunked.
 * Source: H2O (arXiv 2306.14048), SnapKV (arXiv 2404.14469). Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_attention_mass(int32_t mass, int32_t q, int32_t lse, int32_t weights, int32_t rows, int32_t layer, int32_t slot,
                                   int32_t count, int32_t first);

/* Mass by the number of positions that could see the row: rates[s, n, j] = mass[s, n, j] / (newest position - position of j + 1), for the
 * rows of a slot, or of all active slots (RKV_STEP). Source: kvpress, ObservedAttention.
 *   rates[slots, n, capacity] f32 out;  mass as above, in;  rows in
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_mass_rates(int32_t rates, int32_t mass, int32_t rows, int32_t slot);

/* How rkv_pool_scores joins the scores around row i of [begin, end). */
#define RKV_POOL_MEAN 0  /* sum of rows i - kernel / 2 to i + kernel / 2, divided by kernel: rows outside count as 0 */
#define RKV_POOL_MAX 1   /* the largest of them */
#define RKV_POOL_CHUNK 2 /* mean of i's chunk: rows are cut into chunks of kernel, the last may be shorter */

/* Pools scores over neighbouring rows of a slot, between steps; rows outside [begin, end) stay as they are.
 *   pooled[slots, m, capacity]  f32  out   m divides n: n / m neighbouring rows of scores are summed first
 *   scores[slots, n, capacity]  f32  in    another tensor than pooled
 * kernel is odd, but for chunks; at most 4096. Source: SnapKV 4.1; ChunkKV (arXiv 2502.00299) 3.
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_pool_scores(int32_t pooled, int32_t scores, int32_t slot, int32_t begin, int32_t end, int32_t kernel, int32_t mode);

/* Which rows of a slot to keep, ascending: [0, begin), the `count` best of [begin, end) (ties to the lower row; -inf and NaN come last, but
 * count), [end, rowEnd); then -1. Between steps.
 *   keep[slots, n, k]           i32  out   k >= begin + count + rowEnd - end
 *   scores[slots, n, capacity]  f32  in
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_keep(int32_t keep, int32_t scores, int32_t slot, int32_t begin, int32_t end, int32_t count, int32_t row_end);

/* Moves the first `count` kept rows of a slot to the front, between steps: row i becomes row keep[i]; rowEnd = count, and tailBegin not
 * beyond. Keys, values and positions move; positions stay what they were in the text. Never cancelled half-way.
 *   rows                              inout
 *   also[slots, kvHeads, capacity]    f32  inout   0 = none; moves along, and is 0 behind the kept rows
 *   keep[slots, kvHeads or 1, k]      i32  in      ascending; 1: the same for all heads
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_compact(int32_t rows, int32_t also, int32_t keep, int32_t slot, int32_t count);

/* The same for what belongs to a block and not to rows: hidden states, positions. Row i becomes row keep[slot, 0, i], for i < count.
 *   tensor[n, width] or [n]  any dtype  inout
 *   keep[slots, m, k]        i32        in      ascending
 * Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE, RKV_RECORDING. */
RKV_API int32_t rkv_pick_rows(int32_t tensor, int32_t keep, int32_t slot, int32_t count);

/* Drops one row per KV head of every active slot that holds more than `budget`: the one of least score (ties to the lower row, -inf and NaN
 * first) among rows from `sink` on that are `recent` or more positions older than the newest; without any, the newest. The newest row
 * takes its place, so from here on the order of rows says nothing of their age; rowEnd - 1. For a step, after attention.
 *   rows                             inout
 *   mass[slots, kvHeads, capacity]   f32  inout   moves along
 *   scores[slots, kvHeads, capacity] f32  in      mass itself, or rates of it
 * Source: H2O (arXiv 2306.14048) 4. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_evict(int32_t rows, int32_t mass, int32_t scores, int32_t sink, int32_t recent, int32_t budget);

/* ---- ops: keys in fewer channels --------------------------------------------------------------------------------------------------
 * latents[slots, m, capacity, r] f32, f16 or bf16: a row's key in r channels, for each KV head (m = kvHeads) or all heads joined (m = 1).
 * basis[slots or 1, m, kvHeads / m * headDim, r] f32: one for each slot, or one for all. */

/* Takes the last `count` rows of a slot, or the newest row of every active slot (slot == RKV_STEP, count = slots), to fewer channels.
 *   latents                      out
 *   rows                         in
 *   rotations[n, 2, ropeDim/2]   f32  in   row i's rotation (of a step: slot i's) is undone first; 0 = keys as they are
 *   basis                        in
 * latents[s, h, row] = key . basis[s, h], key being the keys of the heads that share h, side by side
 * Source: SALS (arXiv 2510.24273) 4.1, InfiniGen (arXiv 2406.19707) 4.3. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_project_rows(int32_t latents, int32_t rows, int32_t rotations, int32_t basis, int32_t slot, int32_t count);

/* Ranks the rows between sink and tail by their latents.
 *   scores[slots, n, capacity]     f32  out  -inf outside [sink, tailBegin)
 *   q[slots, heads, headDim]       f32  in
 *   latents                        in
 *   basis                          in        its channels are the first ones of the latents: fewer than those are allowed
 *   rotations[slots, 2, ropeDim/2] f32  in   undone in the queries first; 0 = none
 *   rows                           in        active slots, where the tail begins
 * u_g = (q_g . basis) . latents[row]; n = kvHeads: sum over the group of softmax_row( scale * u_g ); n = heads: u_g; joined latents (m = 1)
 * have n = 1: the sum of u_g over all heads. capacity is at most 131,072.
 * Source: SALS 4.2, InfiniGen 4.3. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_latent_scores(int32_t scores, int32_t q, int32_t latents, int32_t basis, int32_t rotations, int32_t rows, float scale,
                                  int32_t sink);

/* Shortens an index whose entries come best first: how many entries score above their head's best less alpha is counted for each head, and
 * all heads of a slot keep as many as that is on average (rounded, halves up); then -1.
 *   index[slots, n, budget]   i32  inout
 *   scores[slots, n, width]   f32  in     of what the index holds
 *   active[slots]             i32  in
 * Source: InfiniGen 4.3. Errors: RKV_SHAPE, RKV_DTYPE, RKV_STALE. */
RKV_API int32_t rkv_trim_index(int32_t index, int32_t scores, int32_t active, float alpha);

/* Brings chosen keys back from their latents, rotated to where they stood; zeros for entries that name no row.
 *   keys[slots, kvHeads, budget, headDim]  f32  out
 *   latents, basis                         in
 *   index[slots, m, budget]                i32  in
 *   rotations[positions, 2, ropeDim/2]     f32  in   of every position; 0 = keys were not turned back (a position beyond stays unrotated)
 *   rows                                   in        positions, active slots
 * keys = rot( basis . latent ). Source: SALS 4.3. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_reconstruct(int32_t keys, int32_t latents, int32_t basis, int32_t index, int32_t rotations, int32_t rows);

/* Adds up what queries weigh in each channel: mass[slot, h, c] += sum over queries i and heads g of group(h) of |(q[i, g] . basis[h])_c|.
 *   mass[slots, kvHeads, channels]                          f32  inout
 *   q[count, heads, headDim]                                f32  in
 *   basis[slots or 1, kvHeads, headDim, channels]           f32  in
 * Source: InfiniGen 4.2. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_channel_mass(int32_t mass, int32_t q, int32_t basis, int32_t slot, int32_t count);

/* A basis of a slot from chosen channels of another: to[slot, h, :, c] = basis[h, :, order[slot, h, c]]; zeros where order is -1.
 *   to[slots, m, width, r]                  f32  out
 *   basis[slots or 1, m, width, channels]   f32  in
 *   order[slots, m, r]                      i32  in   of rkv_topk
 * Source: InfiniGen 4.2. Errors: RKV_SHAPE, RKV_DTYPE, RKV_RANGE, RKV_STALE. */
RKV_API int32_t rkv_pick_channels(int32_t to, int32_t basis, int32_t order, int32_t slot);

#ifdef __cplusplus
}
#endif
#endif
