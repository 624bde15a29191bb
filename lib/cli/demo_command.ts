import process from "node:process";
import { demo } from "./demo.ts";
import { options, Usage, whole } from "./usage.ts";

/** `recallkv demo [--seed N] [--documents N] [--json]` */
export async function runDemo(args: readonly string[]): Promise<void> {
  const { values, switches, rest } = options(args, { string: ["seed", "documents"], boolean: ["json"] });
  if (rest.length > 0) throw new Usage(`demo takes no "${rest[0]}"`);
  const seed = whole("seed", values.seed, 0) ?? 1;
  const documents = whole("documents", values.documents, 1) ?? 2;
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  const table = await demo({ seed, documents, print: switches.json ? () => {} : print });
  if (switches.json) print(JSON.stringify(table, null, 2));
}
