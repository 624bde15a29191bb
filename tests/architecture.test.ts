// Who may import whom: the direction of lib/README.md, read from the import lines.
import { assertEquals } from "@std/assert";
import { readdirSync, readFileSync } from "node:fs";
import { posix } from "node:path";
import { describe, it } from "node:test";

const root = new URL("../", import.meta.url);

/** Storeys from the ground up: a file imports (at run time) from its own storey or below. */
const storeys: readonly (readonly string[])[] = [
  ["lib/types.ts", "lib/errors.ts", "lib/format.ts", "lib/options.ts", "lib/pull.ts", "lib/std/"],
  ["lib/tensor.ts"],
  ["lib/kernels.ts"],
  ["lib/device.ts", "lib/formats/", "lib/tokenizer/"],
  ["lib/kv/store.ts", "lib/kv/slot.ts", "lib/models/"],
  ["lib/policies/policy.ts"],
  ["lib/cluster/"],
  ["lib/ops.ts"],
  ["lib/policies/"],
  ["lib/decoder.ts", "lib/recording.ts", "lib/sampling.ts", "lib/kv/", "lib/weights.ts"],
  ["lib/prefill.ts", "lib/activations.ts", "lib/save.ts", "lib/saved_session.ts", "lib/saved_file.ts"],
  ["lib/session_room.ts", "lib/session_options.ts", "lib/session_turn.ts", "lib/reading.ts", "lib/decoding.ts"],
  ["lib/session.ts"],
  ["lib/metrics/"],
  ["lib/generation.ts", "lib/handover.ts", "lib/answer_stats.ts", "lib/answers.ts", "lib/chat.ts"],
  ["lib/model.ts", "lib/calibration.ts"],
  ["lib/calibrate.ts"],
  ["lib/generate.ts"],
  ["lib/cli/"],
  ["mod.ts"],
];

const place = (file: string) =>
  storeys.findIndex((names) => names.some((name) => name.endsWith("/") ? file.startsWith(name) : file === name));

function files(folder: string): string[] {
  return readdirSync(new URL(folder, root), { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts")).map((name) =>
    `${folder}/${name}`
  );
}

/** Imports that run: `import type` says nothing about direction. */
function imports(file: string): string[] {
  const text = readFileSync(new URL(file, root), "utf8");
  return [...text.matchAll(/^(?:import|export)\s+(?!type\b)([^;]*?)from\s+"([^"]+)"/gm)]
    .filter(([, names]) => !/^\{(\s*type\s+\w+(\s+as\s+\w+)?\s*,?)+\s*\}\s*$/.test(names))
    .map(([, , from]) => from.startsWith(".") ? posix.join(posix.dirname(file), from) : from);
}

describe("the house", () => {
  it("has a storey for every file of lib/, and imports go down", () => {
    const wrong: string[] = [];
    for (const file of ["mod.ts", ...files("lib")]) {
      if (place(file) < 0) wrong.push(`${file} has no storey`);
      for (const from of imports(file).filter((from) => from.startsWith("lib/"))) {
        if (place(from) > place(file)) wrong.push(`${file} imports ${from}`);
      }
    }
    assertEquals(wrong, []);
  });

  it("opens ffi/ through device.ts alone", () => {
    const wrong = files("lib").filter((file) => file !== "lib/device.ts" && imports(file).some((from) => from.startsWith("ffi/")));
    assertEquals(wrong, []);
    for (const file of files("ffi")) {
      for (const from of imports(file)) {
        if (from.startsWith("lib/") && !["lib/types.ts", "lib/errors.ts"].includes(from)) wrong.push(`${file} imports ${from}`);
      }
    }
    assertEquals(wrong, []);
  });

  it("keeps policies, and model families, apart from each other", () => {
    const shared = ["policies/policy.ts", "policies/mod.ts", "models/mod.ts", "models/load.ts"];
    for (const folder of ["lib/policies", "lib/models"]) {
      const own = files(folder).filter((file) => !shared.some((name) => file.endsWith(name)));
      const families = own.filter((file) => folder === "lib/policies" || /(llama|mistral|qwen2|qwen3)\.ts$/.test(file));
      for (const file of families) assertEquals(imports(file).filter((from) => families.includes(from)), [], file);
    }
  });

  it("lets policies see neither device nor library", () => {
    for (const file of files("lib/policies")) {
      assertEquals(imports(file).filter((from) => from === "lib/device.ts" || from.startsWith("ffi/")), [], file);
    }
  });

  it("has examples that import recallkv by its name", () => {
    for (const file of files("examples")) {
      assertEquals(imports(file).filter((from) => !/^(recallkv(\/\w+)?|node:[\w/]+)$/.test(from)), [], file);
      const lines = readFileSync(new URL(file, root), "utf8").split("\n").length;
      assertEquals(lines < 60, true, `${file} has ${lines} lines`);
    }
  });
});
