/* recall.cu: a step's attention over the clusters that its own queries choose, from what the layer's products leave to what they attend, as one
 * kernel: the ops attn_in (behind its products), centroid_scores, topk, fill_budget and attend, to the bit. Each KV head of a slot is a cluster of
 * blocks, which share the centroids, then the rows; teams of four warps take pieces as kernel_decode's blocks do. In a step these ops have little to
 * do each. What runs once is not unrolled here: with 130 KB of code a third of the time went by waiting for instructions. */
#include "choice.cuh"
#include "decode.cuh"
#include "heads.cuh"

/* KV heads of a slot that have read its rowEnd; 0 between launches. */
__device__ int have_read[RKV_TICKETS];

/* grid: KV heads, each a cluster; slots. slices: of the softmax's sums, as kernel_centroid_scores would have blocks. room: words of shared memory that
 * the choice takes. shared: the choice and the centroids under way; when rows are chosen, in their place the teams' rings; the index behind them.
 * What can be asked for before the kernel in front has ended is: it wrote neither counts nor rowEnd. */
template <int DTYPE, int DIM, int SETS>
DEVICE void recall(const rkv_heads &x, const rkv_rows_data &kv, const rkv_layer_data &layer, const rkv_centroid_scores_args &a, const rkv_topk_args &t,
                   const rkv_fill_budget_args &f, const rkv_attend_args &at, int slices, int room, int *fault) {
  constexpr int TEAMS = RKV_RECALL_TEAMS(SETS), RINGS = TEAMS * RKV_DECODE_SHARED(DIM), LINE = DIM * 4, HERE = TEAMS * RKV_DECODE_WARPS;
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ __align__(16) float heads[4 * SETS + 2][DIM], rotation[DIM]; /* the group's queries, then the key and the value */
  __shared__ query_halves<DIM, SETS> queries;
  __shared__ team_room<SETS> rooms[TEAMS];
  __shared__ float2 parts[4 * SETS * 8], all[4 * SETS];
  __shared__ int sums[48];
  const int slot = blockIdx.y, rank = cluster_rank(), ranks = cluster_ranks(), group = layer.heads / layer.kv_heads, budget = f.index.shape[2];
  const int held = __ldcg(kv.row_end + slot), tail_begin = __ldcg(kv.tail_begin + slot), position = __ldcg(x.position + slot), is_active = kv.active[slot];
  const float angle = THREAD < layer.rope_dim ? __ldcg(x.rotations + (int64_t)slot * layer.rope_dim + THREAD) : 0;
  const int head = blockIdx.x / ranks, clusters = a.scores.shape[2], count = ((const int *)a.count.data)[slot], plane = slot * kv.kv_heads + head;
  const int64_t before = (int64_t)plane * clusters;
  const score_of s = {head, slot, group, most(0, least(clusters, count)), (const int *)a.offsets.data + before + plane, (const float *)a.centroids.data + before * DIM,
                      a.radius.data ? (const float *)a.radius.data + before : NULL, heads[0], (float *)a.scores.data + before};
  if (!is_active) return;
  const choice c = choice_of(s, slices, (int *)shared);
  /* Centroids come by turns, of four for each warp, as centroid_logits takes them. */
  const int turns = (RINGS - 4 * room) / (HERE * 4 * LINE), step = 4 * HERE;
  const unsigned stage = shared_address(shared) + 4 * room + WARP * turns * 4 * LINE;
  const auto copy_centroids = [&](int first) {
    int which = first + WARP * 4 + LANE * 16 / LINE;
    const float *from = s.centroids + (int64_t)which * DIM + LANE * 4 % DIM;
#pragma unroll 1
    for (int turn = 0; turn < turns && which - LANE * 16 / LINE < c.end; turn++, which += step, from += step * DIM)
#pragma unroll
      for (int i = 0; i < 4 * LINE / 512; i++)
        if (which + i * 512 / LINE < c.end) copy_sixteen(stage + turn * 4 * LINE + i * 512 + LANE * 16, from + i * 128);
    copies_end();
  };
  copy_centroids(c.begin);
  begin_choice(c, s);
  if (THREAD < layer.rope_dim) rotation[THREAD] = angle;
  const int is_room = held < kv.capacity;
  int *index = (int *)(shared + RINGS), *to_index = (int *)f.index.data + (int64_t)plane * budget;
  const plan p = plan_with(at, kv, layer, slot, head, held + is_room, tail_begin, position, index);
  __syncthreads();
  cluster_arrive();
  begin();
  const auto number = [&](int i) { return i < group ? head * group + i : layer.heads + (i - group) * layer.kv_heads + head; };
  const int made = rank == 0 && is_room ? group + 2 : group; /* the row is the first block's */
#pragma unroll 1
  for (int i = WARP; i < made; i += WARPS) make_head(heads[i], DIM, x, layer, slot, number(i), rotation);
  __syncthreads();
  cluster_wait(); /* all are there */
#pragma unroll 1
  for (int first = c.begin; first < c.end; first += turns * step) {
    if (first > c.begin) copy_centroids(first);
    copies_wait<0>();
    __syncwarp();
    centroid_logits<8>(s.q, s.queries, [&](int turn, int, int d) { return shared_float4(stage + (turn * 4 + LANE / 8) * LINE + d * 4); }, s.radius, a.bound, c.offsets, first,
                       least(c.end, first + turns * step), DIM, [&](int g, int i, float logit) { put_logit(c, g, i, logit); });
    __syncwarp();
  }
  if (WARP < made - group) keep_row(heads[group + WARP], DIM, DTYPE, kv, slot, held, position, head, WARP);
  cluster_arrive();
  clear_scores(a, s);
  split_queries<DTYPE, DIM, SETS>(queries, heads[0], group, WARPS);
  cluster_wait(); /* logits, the new row, rowEnd read by all */
  choose_rows(c, s, a.scale, t, f, parts, all, sums, [&](int i, int row) {
    index[i] = row;
    if (rank == 0) to_index[i] = row;
  });
  __syncthreads();
  const auto leave = [&] { /* nobody waits for it */
#pragma unroll 1
    for (int i = WARP; i < group; i += RKV_DECODE_WARPS) keep_query(heads[i], DIM, x, layer, slot, number(i));
    if (THREAD != 0) return;
    if (!is_room) *(volatile int *)fault = 1;
    if (atomicAdd(have_read + slot, 1) < kv.kv_heads - 1) return;
    have_read[slot] = 0;
    kv.row_end[slot] = held + is_room;
  };
  const int team = WARP / RKV_DECODE_WARPS, warp = WARP % RKV_DECODE_WARPS;
#pragma unroll 1
  for (int piece = team * ranks + rank; piece < p.pieces; piece += TEAMS * ranks) {
    attend_piece<DTYPE, DIM, SETS>(at, kv, layer, p, piece, 1 + team, warp, shared + team * RKV_DECODE_SHARED(DIM), rooms[team], queries, [&] {
      if (piece == 0) leave();
    });
    team_sync(1 + team); /* the rings are free */
  }
  cluster_sync(); /* the pieces' sums */
#pragma unroll 1
  for (int i = rank + WARP * ranks; i < group; i += WARPS * ranks) {
    const int64_t row = (int64_t)slot * layer.heads + p.head + i;
    merge_head<DIM>((float *)at.attended.data + row * DIM, at.lse.data ? (float *)at.lse.data + row : NULL, (const float *)at.work.data + row * pieces_at_most(at, kv) * (DIM + 2), p.pieces);
  }
}

#define RECALL(name, dtype, dim, sets)                                                                                                                      \
  KERNEL __launch_bounds__(32 * RKV_DECODE_WARPS * RKV_RECALL_TEAMS(sets), 1)                                                                               \
      kernel_recall_##name(const __grid_constant__ rkv_heads x, const __grid_constant__ rkv_rows_data kv, const __grid_constant__ rkv_layer_data layer,     \
                           const __grid_constant__ rkv_centroid_scores_args a, const __grid_constant__ rkv_topk_args t,                                     \
                           const __grid_constant__ rkv_fill_budget_args f, const __grid_constant__ rkv_attend_args at, int slices, int room, int *fault) {  \
    recall<dtype, dim, sets>(x, kv, layer, a, t, f, at, slices, room, fault);                                                                               \
  }
RECALL(bf16_64, RKV_BF16, 64, 1)
RECALL(bf16_128, RKV_BF16, 128, 1)
RECALL(f16_64, RKV_F16, 64, 1)
RECALL(f16_128, RKV_F16, 128, 1)
/* groups of five to eight heads */
RECALL(wide_bf16_64, RKV_BF16, 64, 2)
RECALL(wide_bf16_128, RKV_BF16, 128, 2)
RECALL(wide_f16_64, RKV_F16, 64, 2)
RECALL(wide_f16_128, RKV_F16, 128, 2)
