// Every field of a config that changes the result is honoured or refused by name; damaged directories say which file and why.
import { assert, assertAlmostEquals, assertEquals, assertRejects } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { RecallError } from "../../lib/errors.ts";
import { FormatError } from "../../lib/formats/checkpoint.ts";
import { load } from "../../lib/model.ts";
import { readModel } from "../../lib/models/load.ts";
import { directoryOf } from "../golden/tiny/directory.ts";
import type { DirectoryCase, Family } from "../golden/tiny/shapes.ts";
import { scratch } from "../support/scratch.ts";

type Files = Map<string, Uint8Array>;

const files = scratch();
const made = new Map<string, Files>();
let folders = 0;

function tiny(one: Partial<DirectoryCase> & { family: Family }): Files {
  const whole: DirectoryCase = { name: "tiny", dtype: "F32", ...one };
  const key = JSON.stringify(whole);
  if (!made.has(key)) made.set(key, directoryOf(whole));
  return new Map(made.get(key));
}

/** Writes the files of a tiny model with some fields of its config changed (undefined takes a field away). */
function changed(from: Files, fields: Record<string, unknown>, file = "config.json"): string {
  const config = { ...JSON.parse(new TextDecoder().decode(from.get(file))), ...fields };
  return files.folder(`model-${folders++}`, new Map(from).set(file, new TextEncoder().encode(JSON.stringify(config))));
}

const without = (from: Files, name: string): string => {
  from.delete(name);
  return files.folder(`model-${folders++}`, from);
};

describe("a config", () => {
  it("is honoured field by field", async () => {
    const { shape, weights } = await readModel(changed(tiny({ family: "llama" }), {}));
    const { layers, hidden, heads, kvHeads, headDim, intermediate, vocab, normEps, trainedContext, bos, eos, addBos } = shape;
    assertEquals({ layers, hidden, heads, kvHeads, headDim }, { layers: 2, hidden: 256, heads: 4, kvHeads: 2, headDim: 64 });
    assertEquals({ intermediate, vocab, normEps, trainedContext }, { intermediate: 512, vocab: 2048, normEps: 1e-5, trainedContext: 1024 });
    assertEquals({ bos, eos, addBos }, { bos: 2041, eos: [2046, 2042], addBos: true });
    assertEquals(weights.output, null);
    assertAlmostEquals(shape.rope.inverseFrequencies[31], 1e4 ** (-62 / 64), 1e-12);
  });

  const refusals: [family: Family, fields: Record<string, unknown>, ...words: string[]][] = [
    ["llama", { model_type: "mamba" }, 'model_type is "mamba", supported:', "llama"],
    ["llama", { model_type: undefined }, "model_type is undefined"],
    ["llama", { hidden_act: "gelu" }, 'hidden_act is "gelu"', "silu"],
    ["llama", { mlp_bias: true }, "mlp_bias is true"],
    ["llama", { pretraining_tp: 2 }, "pretraining_tp is 2"],
    ["llama", { sliding_window: 128 }, "config field sliding_window (128)"],
    ["llama", { attention_multiplier: 0.5 }, "attention_multiplier is 0.5"],
    ["llama", { logits_scaling: 8 }, "logits_scaling is 8"],
    ["llama", { final_logit_softcapping: 30 }, "config field final_logit_softcapping (30)"],
    ["llama", { partial_rotary_factor: 0.5 }, "config field partial_rotary_factor"],
    ["llama", { quantization_config: { bits: 4 } }, "config field quantization_config"],
    ["llama", { num_key_value_heads: 3 }, "num_attention_heads is 4, want a multiple of num_key_value_heads (3)"],
    ["llama", { num_hidden_layers: 0 }, "num_hidden_layers is 0"],
    ["llama", { num_hidden_layers: 3 }, "it has no tensor model.layers.2."],
    ["llama", { num_hidden_layers: 1 }, "has no place in llama with 1 layers"],
    ["llama", { hidden_size: "256" }, 'hidden_size is "256"'],
    ["llama", { hidden_size: 512 }, "input_layernorm.weight is [256], want [512]"],
    ["llama", { head_dim: 32 }, "self_attn.q_proj.weight is [256, 256], want [128, 256]"],
    ["llama", { head_dim: 63 }, "head_dim is 63, want an even number"],
    ["llama", { intermediate_size: 511 }, "mlp.gate_proj.weight is [512, 256], want [511, 256]"],
    ["llama", { vocab_size: 2047 }, "model.embed_tokens.weight is [2,048, 256], want [2,047, 256]"],
    ["llama", { vocab_size: -1 }, "vocab_size is -1"],
    ["llama", { rms_norm_eps: 0 }, "rms_norm_eps is 0"],
    ["llama", { rms_norm_eps: undefined }, "rms_norm_eps is undefined"],
    ["llama", { tie_word_embeddings: false }, "it has no tensor lm_head.weight"],
    ["llama", { tie_word_embeddings: "yes" }, 'tie_word_embeddings is "yes"'],
    ["llama", { max_position_embeddings: undefined }, "max_position_embeddings is undefined"],
    ["llama", { rope_theta: -1 }, "rope_theta is -1"],
    ["llama", { rope_theta: "1e4" }, 'rope_theta is "1e4"'],
    ["llama", { rope_scaling: { rope_type: "longrope" } }, 'rope_scaling type is "longrope"', "llama3"],
    ["llama", { rope_scaling: { rope_type: "linear" } }, "rope_scaling.factor is undefined"],
    ["llama", { rope_scaling: { rope_type: "llama3", factor: 8 } }, "rope_scaling.low_freq_factor is undefined"],
    ["llama", { rope_scaling: { rope_type: "linear", factor: 2, mscale: 0.7 } }, "rope_scaling.mscale"],
    ["llama", { rope_scaling: 4 }, "rope_scaling is 4"],
    ["llama", { rope_scaling: { rope_type: "yarn", factor: 8, truncate: 1 } }, "rope_scaling.truncate is 1"],
    ["mistral", { layer_types: ["full_attention"] }, "layer_types", "want one word for each of 3 layers"],
    ["mistral", { layer_types: ["full_attention", "full_attention", "linear_attention"] }, 'layer_types names "linear_attention"'],
    ["mistral", { sliding_window: "wide", layer_types: null, use_sliding_window: true }, "use_sliding_window"],
    ["mistral", { sliding_window: "128" }, 'sliding_window is "128"'],
    [
      "llama",
      { rope_parameters: { rope_type: "linear", factor: 2 }, rope_scaling: { rope_type: "linear", factor: 4 } },
      "but rope_scaling is",
    ],
    ["llama", { rope_scaling: { rope_type: "linear", type: "yarn", factor: 2 } }, 'rope_type is "linear", but type is "yarn"'],
    [
      "llama",
      { rope_theta: 1e4, rope_parameters: { rope_type: "default", rope_theta: 1e6 } },
      "rope_theta is 10000, but rope_theta beside",
    ],
    ["qwen2", { use_sliding_window: true, max_window_layers: {}, sliding_window: 64 }, "max_window_layers is {}"],
    ["qwen2", { use_mrope: true }, "use_mrope is true"],
    ["qwen2", { use_sliding_window: true, max_window_layers: 1, sliding_window: 0 }, "sliding_window is 0"],
    ["qwen3", { attention_bias: true }, "attention_bias is true"],
    ["qwen3", { hidden_act: "gelu_tanh" }, "hidden_act"],
    ["llama", { bos_token_id: "<s>" }, 'bos_token_id is "<s>"'],
    ["llama", { bos_token_id: 2048 }, "bos_token_id is 2048"],
  ];
  for (const [family, fields, ...words] of refusals) {
    it(`is refused with ${JSON.stringify(fields)} (${family})`, async () => {
      const path = changed(tiny({ family }), fields);
      for (const word of words) await assertRejects(() => readModel(path), FormatError, word);
    });
  }

  it("gives each layer its own window", async () => {
    const windows = async (family: Family, fields: Record<string, unknown>) =>
      (await readModel(changed(tiny({ family }), fields))).shape.window;
    const mixed = ["sliding_attention", "full_attention", "sliding_attention"];
    assertEquals(await windows("mistral", { sliding_window: 128 }), [128, 128, 128]);
    assertEquals(await windows("mistral", { sliding_window: null }), [null, null, null]);
    assertEquals(await windows("mistral", { sliding_window: undefined }), [4096, 4096, 4096]); // as transformers fills it in
    assertEquals(await windows("mistral", { sliding_window: 128, layer_types: mixed }), [128, null, 128]);
    assertEquals(await windows("qwen2", { sliding_window: 128 }), [null, null, null]);
    assertEquals(await windows("qwen2", { use_sliding_window: true, sliding_window: 128, max_window_layers: 1 }), [null, 128, 128]);
    assertEquals(await windows("qwen3", { use_sliding_window: true, sliding_window: 64, max_window_layers: 2 }), [null, null, 64]);
  });

  it("ends a text at each token that generation_config.json names", async () => {
    const { shape } = await readModel(changed(tiny({ family: "llama" }), { eos_token_id: [2042, 2046] }, "generation_config.json"));
    assertEquals(shape.eos, [2042, 2046]);
  });

  it("takes rope_parameters of transformers 5 for rope_scaling of 4", async () => {
    const parameters = { rope_type: "linear", factor: 4, rope_theta: 1e4 };
    const four = await readModel(changed(tiny({ family: "llama", rope: "linear" }), {}));
    const five = await readModel(changed(tiny({ family: "llama" }), { rope_parameters: parameters, rope_theta: undefined }));
    assertEquals(five.shape.rope, four.shape.rope);
    assertAlmostEquals(four.shape.rope.inverseFrequencies[0], 0.25);
  });
});

describe("a directory", () => {
  for (const name of ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]) {
    it(`is refused without ${name}`, async () => {
      const path = without(tiny({ family: "llama" }), name);
      await assertRejects(() => readModel(path), FormatError, name);
    });
  }

  const contents: [content: string, words: string][] = [
    ["{", "its content is not JSON"],
    [" ", "its content is not JSON, for it is empty"],
    ["null", "its content is no JSON object"],
    ["[1]", "its content is no JSON object"],
    [
      "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 17209920\n",
      "it is a Git LFS pointer, want the file itself (17,209,920",
    ],
    ["<!DOCTYPE html><html></html>", "it is a web page"],
  ];
  for (const name of ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]) {
    it(`is refused when ${name} is not what its name says`, async () => {
      for (const [content, words] of contents) {
        const path = files.folder(`model-${folders++}`, tiny({ family: "llama" }).set(name, new TextEncoder().encode(content)));
        await assertRejects(() => readModel(path), FormatError, `Cannot load "${name}": ${words}`);
      }
    });
  }

  it("is refused when it is not there, with the folder that was looked into", async () => {
    await assertRejects(() => readModel("/nowhere/model"), FormatError, '"model": there is no such file or directory in /nowhere');
  });

  it("that has a GGUF file instead is refused with its name", async () => {
    const path = files.folder(`model-${folders++}`, { "b.gguf": "x", "a.gguf": "x" });
    await assertRejects(
      () => readModel(path),
      FormatError,
      "it has no config.json, want a directory in Hugging Face's layout (or name its file a.gguf)",
    );
  });

  it("may name its template in a file of its own", async () => {
    const path = files.folder(
      `model-${folders++}`,
      tiny({ family: "llama" }).set("chat_template.jinja", new TextEncoder().encode("{{ bos_token }}")),
    );
    assertEquals((await readModel(path)).chat?.source, "{{ bos_token }}");
  });

  it("begins texts with BOS where its tokenizer or its template does, and nowhere else", async () => {
    const from = tiny({ family: "qwen2" });
    const json = JSON.parse(new TextDecoder().decode(from.get("tokenizer.json")));
    const adds = async (processor: unknown, config: Record<string, unknown>) => {
      const folder = new Map(from).set("tokenizer.json", new TextEncoder().encode(JSON.stringify({ ...json, post_processor: processor })));
      return (await readModel(changed(folder, { chat_template: "{{ messages }}", ...config }, "tokenizer_config.json"))).shape.addBos;
    };
    const template = { type: "TemplateProcessing", single: [{ SpecialToken: { id: "<|bos|>", type_id: 0 } }, { Sequence: { id: "A" } }] };
    assertEquals(await adds(null, {}), false);
    assertEquals(await adds(null, { add_bos_token: true }), true);
    assertEquals(await adds(null, { chat_template: "{{- bos_token }}{{ messages }}" }), true);
    assertEquals(await adds({ type: "Sequence", processors: [template] }, {}), true);
  });
});

describe("a file", () => {
  const shipped = fileURLToPath(new URL("../../models/mini/model-q8_0.gguf", import.meta.url));

  it("is a GGUF file whatever its name says", async () => {
    const path = files.file("sha256-6a0746a1ec1a", readFileSync(shipped));
    assertEquals((await readModel(path)).shape, (await readModel(shipped)).shape);
  });

  const refusals: [name: string, content: string, words: string][] = [
    ["notes.txt", "hello", "it is no GGUF file, want one, or a directory"],
    ["none.bin", "", "it is no GGUF file"],
    ["model.safetensors", "hello", "it is one file of a model, want its directory"],
  ];
  for (const [name, content, words] of refusals) {
    it(`called ${name} is refused`, async () => {
      await assertRejects(() => readModel(files.file(name, content)), FormatError, `Cannot load "${name}": ${words}`);
    });
  }
});

it("weights that are no numbers give an error, not a token", async () => {
  const from = tiny({ family: "llama" });
  const poisoned = from.get("model.safetensors")!.slice();
  poisoned.fill(0xff, poisoned.length - 256 * 4); // the last norm: every hidden state, and so every logit, is NaN
  using model = await load(files.folder(`model-${folders++}`, from.set("model.safetensors", poisoned)), { device: "cpu" });
  using session = model.session({ capacity: 16 });
  await session.prefill([1, 2, 3]);
  assert((await session.logits()).every(Number.isNaN));
  for (const ahead of [false, true]) {
    await assertRejects(() => session.decode({ ahead }).next(), RecallError, "no logit of slot 0 is a number");
    assertEquals(session.tokens(), [1, 2, 3]);
    assert(session.rows().every((rows) => rows === 3));
  }
});
