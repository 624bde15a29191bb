/** What `generate` and `chat` have in common: the model, its cache, and how tokens are chosen. */
import type { AnswerOptions } from "../answers.ts";
import type { LoadOptions } from "../model.ts";
import { policies } from "../policies/mod.ts";
import type { Policy } from "../policies/policy.ts";
import type { SessionOptions } from "../session.ts";
import { numeric, oneOf, Usage, whole } from "./usage.ts";

export const answeringOptions = [
  "model",
  "device",
  "threads",
  "kv",
  "budget",
  "kv-dtype",
  "capacity",
  "max-tokens",
  "temperature",
  "top-k",
  "top-p",
  "min-p",
  "repetition-penalty",
  "frequency-penalty",
  "presence-penalty",
  "seed",
  "stop",
] as const;

export const answeringHelp =
  `  --model PATH        a directory in Hugging Face's layout, or a .gguf file   (the model that ships with recallkv)
  --device KIND       auto, cpu or cuda                                        (auto)
  --threads N         width of the CPU pool                                    (all cores)
  --kv POLICY         full, clusterKV, quest, slidingWindow, snapKV, h2o, …    (full)
  --budget N          rows read per head and step: a number or a fraction      (1024, or the policy's own)
  --kv-dtype TYPE     dtype of the KV rows: f32, f16, bf16 or q8               (f16)
  --capacity N        most tokens of the whole text
  --max-tokens N      most tokens to generate                                  (256)
  --temperature T     0: the likeliest token; else how freely one is drawn     (0)
  --top-k N --top-p P --min-p P                          which tokens are drawn from
  --repetition-penalty X --frequency-penalty X --presence-penalty X
  --seed N            the same seed gives the same text
  --stop TEXT         end before this text`;

type Values = Record<string, string | undefined>;

export function loadOptions(values: Values): LoadOptions {
  return {
    device: oneOf<"auto" | "cpu" | "cuda">("device", values.device, ["auto", "cpu", "cuda"]),
    threads: whole("threads", values.threads, 1),
  };
}

export function cacheOptions(values: Values): Pick<SessionOptions, "kv" | "kvDtype" | "capacity"> {
  return {
    kv: policy(values.kv, values.budget),
    kvDtype: oneOf("kv-dtype", values["kv-dtype"], ["f32", "f16", "bf16", "q8"]),
    capacity: whole("capacity", values.capacity, 1),
  };
}

export function samplingOptions(values: Values): AnswerOptions {
  const given: AnswerOptions = {
    maxTokens: whole("max-tokens", values["max-tokens"], 1),
    temperature: numeric("temperature", values.temperature, 0, 1000),
    topK: whole("top-k", values["top-k"], 0),
    topP: numeric("top-p", values["top-p"], 0, 1),
    minP: numeric("min-p", values["min-p"], 0, 1),
    repetitionPenalty: numeric("repetition-penalty", values["repetition-penalty"], 0.01, 100),
    frequencyPenalty: numeric("frequency-penalty", values["frequency-penalty"], -100, 100),
    presencePenalty: numeric("presence-penalty", values["presence-penalty"], -100, 100),
    seed: whole("seed", values.seed, 0),
    stop: values.stop,
  };
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
}

function policy(name: string | undefined, budget: string | undefined): Policy {
  const kv = oneOf("kv", name, Object.keys(policies) as (keyof typeof policies)[]) ?? "full";
  const rows = budget !== undefined && /^\d+$/.test(budget) ? Number(budget) : budget;
  if (rows === undefined) return policies[kv]();
  if (kv === "full" || kv === "pyramidInfer") throw new Usage(`--budget means nothing with --kv ${kv}, want another policy`);
  if (kv !== "slidingWindow") return policies[kv]({ budget: rows });
  if (typeof rows !== "number") throw new Usage(`--budget is "${rows}", want a whole number of rows with --kv slidingWindow`);
  return policies.slidingWindow({ window: rows });
}
