/**
 * The reference device: every op of ffi/recallkv.h once, over plain arrays, in f64, written for reading. It shares nothing with lib/, so
 * that it can judge it; it is judged itself by identities and by golden files (tests/reference.test.ts).
 */
import * as attention from "./attention_ops.ts";
import { assign, centroidMeans, group, permuteRows, seedCentroids } from "./cluster_ops.ts";
import * as latent from "./latent_ops.ts";
import * as layer from "./layer_ops.ts";
import * as policy from "./policy_ops.ts";
import { likeliest, penalize, sample, tally } from "./sample_ops.ts";
import * as select from "./select_ops.ts";

export const reference = {
  ...layer,
  tally,
  penalize,
  sample,
  likeliest,
  ...attention,
  seedCentroids,
  assign,
  group,
  centroidMeans,
  permuteRows,
  ...select,
  ...policy,
  ...latent,
};
export type Op = keyof typeof reference;
