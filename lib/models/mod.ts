/** Model families by the model_type of their config. */
import type { Family } from "./family.ts";
import { llama } from "./llama.ts";

export const families: Readonly<Record<string, Family>> = { llama };
