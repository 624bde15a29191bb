/** The case table: every op over the sizes and inputs that have broken such ops before. Tests judge devices by it. */
import { attentionCases } from "./attention.ts";
import type { Case } from "./case.ts";
import { clusterCases } from "./cluster.ts";
import { evictionCases } from "./eviction.ts";
import { latentCases } from "./latent.ts";
import { layerCases } from "./layer.ts";
import { policyCases } from "./policies.ts";
import { sampleCases } from "./sample.ts";
import { selectCases } from "./select.ts";

export const table: readonly Case[] = [
  ...layerCases,
  ...sampleCases,
  ...attentionCases,
  ...clusterCases,
  ...selectCases,
  ...policyCases,
  ...evictionCases,
  ...latentCases,
];
