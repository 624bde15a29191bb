/**
 * Writes model files with seeded random weights, for engines that want files.
 *
 *     bun tests/golden/tiny/make.ts all FOLDER        every GGUF file and directory of the golden files (see shapes.ts)
 *     bun tests/golden/tiny/make.ts nano FILE.gguf    models/nano, its weights widened to F32
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { directoryOf } from "./directory.ts";
import { ggufOf, nanoGguf } from "./gguf.ts";
import { directoryCases, ggufCases } from "./shapes.ts";

const [what, to] = process.argv.slice(2);
if (what === "nano" && to) writeFileSync(to, nanoGguf());
else if (what === "all" && to) {
  mkdirSync(join(to, "gguf"), { recursive: true });
  for (const one of ggufCases) writeFileSync(join(to, "gguf", `${one.name}.gguf`), ggufOf(one)[0]);
  for (const one of directoryCases) {
    mkdirSync(join(to, one.name), { recursive: true });
    for (const [name, bytes] of directoryOf(one)) writeFileSync(join(to, one.name, name), bytes);
  }
} else throw new TypeError(`Cannot start: wanted "all FOLDER" or "nano FILE.gguf", found "${process.argv.slice(2).join(" ")}"`);
