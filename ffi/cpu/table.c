/* table.c: the op table of one instruction set. */
#include "cpu.h"
#include "linear.h"

#define KERNEL(name, fault, whole) [RKV_OP_##name] = {RKV_FN(rkv_##name##_pieces), RKV_FN(rkv_##name##_run), fault, whole}

const rkv_cpu RKV_FN(rkv_cpu) = {
  .name = RKV_STRING(RKV_ISA),
  .packed_bytes = RKV_FN(rkv_packed_bytes),
  .kernels = {
    KERNEL(pack, NULL, 0),
    KERNEL(rotations, NULL, 0),
    KERNEL(embed, NULL, 0),
    KERNEL(attn_in, "a slot has no room for another row (raise capacity)", 0),
    KERNEL(attn_out, NULL, 0),
    KERNEL(queries, NULL, 0),
    KERNEL(head, NULL, 0),
    KERNEL(greedy, NULL, 0),
    KERNEL(advance, NULL, 0),
    KERNEL(tally, NULL, 0),
    KERNEL(penalize, NULL, 0),
    KERNEL(sample, NULL, 0),
    KERNEL(likeliest, NULL, 0),
    KERNEL(copy, NULL, 0),
    KERNEL(attend_chunk, NULL, 0),
    KERNEL(attend, NULL, 0),
    KERNEL(seed_centroids, NULL, 0),
    KERNEL(assign, NULL, 0),
    KERNEL(group, NULL, 0),
    KERNEL(centroid_means, NULL, 0),
    KERNEL(permute_rows, NULL, 1),     /* half permuted rows could not be put back */
    KERNEL(centroid_scores, NULL, 0),
    KERNEL(topk, NULL, 0),
    KERNEL(fill_budget, NULL, 0),
    KERNEL(gather_rows, NULL, 0),
    KERNEL(set_tail, NULL, 0),
    KERNEL(attend_estimates, NULL, 0),
    KERNEL(radius, NULL, 0),
    KERNEL(fill_whole, NULL, 0),
    KERNEL(page_bounds, NULL, 0),
    KERNEL(page_scores, NULL, 0),
    KERNEL(attention_mass, NULL, 0),
    KERNEL(mass_rates, NULL, 0),
    KERNEL(pool_scores, NULL, 0),
    KERNEL(keep, NULL, 0),
    KERNEL(compact, NULL, 1),          /* nor could half compacted ones */
    KERNEL(pick_rows, NULL, 1),
    KERNEL(evict, NULL, 1),
    KERNEL(project_rows, NULL, 0),
    KERNEL(latent_scores, NULL, 0),
    KERNEL(trim_index, NULL, 0),
    KERNEL(reconstruct, NULL, 0),
    KERNEL(channel_mass, NULL, 0),
    KERNEL(pick_channels, NULL, 0),
  },
};
