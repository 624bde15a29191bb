/** Model families by the model_type of their config. */
import type { Family } from "./family.ts";
import { llama } from "./llama.ts";
import { mistral } from "./mistral.ts";
import { qwen2 } from "./qwen2.ts";
import { qwen3 } from "./qwen3.ts";

export const families: Readonly<Record<string, Family>> = { llama, mistral, qwen2, qwen3 };
