/** The shipped nano model, loaded once per device setting; and text for it to read. */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { load, type LoadedModel } from "../../lib/model.ts";
import { open } from "../../lib/device.ts";

const directory = fileURLToPath(new URL("../../models/nano", import.meta.url));
const loaded = new Map<string, Promise<LoadedModel>>();

export function nano(options: { threads?: number; isa?: string } = {}): Promise<LoadedModel> {
  const name = JSON.stringify(options);
  let model = loaded.get(name);
  if (!model) loaded.set(name, model = open("cpu", options).then((device) => load(directory, { device })));
  return model;
}

/** The first `count` tokens of a document of prose, with `<|bos|>` first. */
export async function proseTokens(count: number, document = 0): Promise<number[]> {
  const { tokenizer } = await nano();
  const prose = JSON.parse(await readFile(`${directory}/prose.json`, "utf8")) as string[][];
  const tokens = [...tokenizer.encode("<|bos|>", { special: true }), ...tokenizer.encode(prose[document].join(" "))];
  if (tokens.length < count) throw new RangeError(`document ${document} has ${tokens.length} tokens, want ${count}`);
  return tokens.slice(0, count);
}
