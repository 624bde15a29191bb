/** recallkv demo: questions about documents just read, with the full cache, a sliding window, and ClusterKV at a small budget. */
import { writeFile } from "node:fs/promises";
import { load, type LoadedModel, shippedModel } from "../model.ts";
import { attendedRows, bytesPerRow } from "../metrics/attended.ts";
import { clusterKV } from "../policies/cluster_kv.ts";
import { full } from "../policies/full.ts";
import type { Policy } from "../policies/policy.ts";
import { slidingWindow } from "../policies/sliding_window.ts";
import type { Session } from "../session.ts";
import { drawFacts, type FactDocument, random, readDemo, writeDocument } from "./facts.ts";

export interface DemoOptions {
  /** Draws facts and their places. */
  seed: number;
  documents: number;
  /** Where to write the table as JSON. */
  json?: string;
  print: (line: string) => void;
}

export interface DemoRow {
  policy: string;
  budget: number;
  tokensPerCluster: number | null;
  exempt: number[];
  attended: { sink: number; index: number; tail: number };
  bytesPerStep: number;
  tokensPerSecond: number;
  right: number;
}

const FACTS = 6;
const CONTEXT = 1900;
const ANSWER = 40;

/** Runs the demo, prints it, and returns what `--json` writes. */
export async function demo(
  { seed, documents: wanted, json, print }: DemoOptions,
): Promise<{ model: string; context: number; n: number; rows: DemoRow[] }> {
  using model = await load(shippedModel());
  const documents = await writeDocuments(model, seed, wanted);
  const n = documents.length * FACTS;
  print(`${documents.length} documents of about ${CONTEXT} tokens, ${FACTS} facts in each, on ${model.device.description}.`);
  print(`Each document is read once per policy; its questions are then read through the policy itself. For example:`);
  print(`  ${documents[0].facts[0].question}  ->  ${documents[0].facts[0].statement}\n`);

  const sink = 16;
  const eighth = Math.round(CONTEXT / 8);
  const budget = eighth - sink - 16; // about 16 rows of question and answer are in the tail
  const rows: DemoRow[] = [];
  const run = async (policy: Policy, about: Pick<DemoRow, "tokensPerCluster" | "exempt">) => {
    const row = { ...await ask(model, documents, policy, print), ...about };
    rows.push(row);
    return row;
  };
  const windowAs = ({ attended }: DemoRow) => slidingWindow({ window: Math.round(attended.sink + attended.index + attended.tail) - 4 });
  const plain = { tokensPerCluster: null, exempt: [] };
  await run(full(), plain);
  const close = await run(clusterKV({ budget, tokensPerCluster: 16, exempt: [] }), { tokensPerCluster: 16, exempt: [] });
  await run(windowAs(close), plain);
  const paper = await run(clusterKV({ budget }), { tokensPerCluster: 80, exempt: [0, 1] });
  await run(windowAs(paper), plain);

  const table = { model: "nano", context: CONTEXT, n, rows };
  for (const line of format(table)) print(line);
  if (json) await writeFile(json, JSON.stringify(table, null, 2) + "\n");
  return table;
}

async function writeDocuments(model: LoadedModel, seed: number, wanted: number): Promise<FactDocument[]> {
  const { words, prose } = await readDemo(model.path);
  if (wanted < 1 || wanted > prose.length) throw new RangeError(`Cannot run ${wanted} documents: want 1 to ${prose.length}`);
  const next = random(seed);
  const length = (text: string) => model.tokenizer.encode(text).length;
  return prose.slice(0, wanted).map((sentences) => writeDocument(sentences, drawFacts(words, FACTS, next), CONTEXT, length, next));
}

/** Reads every document under a policy, asks its questions, and counts the answers whose text is right. */
async function ask(
  model: LoadedModel,
  documents: readonly FactDocument[],
  policy: Policy,
  print: (line: string) => void,
): Promise<Omit<DemoRow, "tokensPerCluster" | "exempt">> {
  const { tokenizer } = model;
  using session = model.session({ kv: policy });
  const before = await session.attended();
  let [right, generated, seconds, asked] = [0, 0, 0, 0];
  for (const { text, facts } of documents) {
    session.reset();
    await session.prefill([...special(model, "<|bos|>"), ...tokenizer.encode(text)]);
    const document = session.mark();
    for (const { question, statement } of facts) {
      const prompt = [
        ...special(model, "<|user|>"),
        ...tokenizer.encode(question),
        ...special(model, "<|end|>"),
        ...special(model, "<|assistant|>"),
      ];
      await session.prefill(prompt, { query: "sparse" });
      const began = performance.now();
      const answer: number[] = [];
      for await (const { token } of session.decode({ maxTokens: ANSWER })) answer.push(token);
      seconds += (performance.now() - began) / 1000;
      generated += answer.length - 1;
      const said = tokenizer.decode(answer).trim();
      if (said === statement) right++;
      asked++;
      session.rewind(document);
    }
    if (asked % 30 === 0) print(`  ${policy.name}: ${right} of ${asked} right`);
  }
  const attended = attendedRows(session, before, await session.attended());
  const bytesPerStep = Math.round(attended.total * bytesPerRow(session) + selected(session));
  return { policy: policy.name, budget: session.budget, attended, bytesPerStep, tokensPerSecond: generated / seconds, right };
}

function selected(session: Session): number {
  return session.selectBytes();
}

function special({ tokenizer }: LoadedModel, text: string): number[] {
  return tokenizer.encode(text, { special: true });
}

/** The table, in lines. */
export function format({ n, rows }: { n: number; rows: readonly DemoRow[] }): string[] {
  const head = ["policy", "clusters of", "exempt", "budget", "rows read", "sink", "index", "tail", "KiB/step", "tokens/s", "right"];
  const body = rows.map((row) => {
    const { sink, index, tail } = row.attended;
    const figures = [sink + index + tail, sink, index, tail].map((value) => value.toFixed(1));
    const exempt = row.exempt.length ? row.exempt.join(",") : "none";
    return [
      row.policy,
      row.tokensPerCluster === null ? "-" : String(row.tokensPerCluster),
      row.policy === "clusterKV" ? exempt : "-",
      row.budget ? String(row.budget) : "-",
      ...figures,
      (row.bytesPerStep / 1024).toFixed(0),
      row.tokensPerSecond.toFixed(0),
      `${row.right} of ${n}`,
    ];
  });
  const widths = head.map((_, i) => Math.max(...[head, ...body].map((cells) => cells[i].length)));
  const line = (cells: readonly string[]) => cells.map((cell, i) => i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join("  ");
  return [
    "",
    line(head),
    line(widths.map((width) => "-".repeat(width))),
    ...body.map(line),
    "",
    "Rows read: per head and step, means over all layers, exempt ones included.",
  ];
}
