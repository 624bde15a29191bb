/** recallkv demo: questions about long documents just read, with the full cache, ClusterKV at small budgets, and sliding windows. */
import { load, type LoadedModel, shippedModel } from "../model.ts";
import { attendedRows, bytesPerRow } from "../metrics/attended.ts";
import { clusterKV } from "../policies/cluster_kv.ts";
import { full } from "../policies/full.ts";
import type { Policy } from "../policies/policy.ts";
import { slidingWindow } from "../policies/sliding_window.ts";
import type { Attended, Session } from "../session.ts";
import { answer, documentTokens, questionTokens } from "./asking.ts";
import { type Fact, writeDocuments } from "./facts.ts";

export interface DemoOptions {
  /** Draws facts and their places. */
  seed: number;
  documents: number;
  print: (line: string) => void;
}

export interface DemoRow {
  policy: string;
  budget: number;
  tokensPerCluster: number | null;
  bound: number | null;
  /** Layers in which every row is read. */
  exempt: readonly number[];
  /** Rows read per head and step, by source: means over all layers. */
  attended: { sink: number; index: number; tail: number };
  bytesPerStep: number;
  tokensPerSecond: number;
  right: number;
}

export interface DemoTable {
  model: string;
  seed: number;
  context: number;
  n: number;
  /** Mean time to read a document, every row attended. */
  prefillSeconds: number;
  rows: DemoRow[];
}

const FACTS = 40;
const CONTEXT = 12_000;

/** A row of the table while it is being filled. */
interface Entry {
  readonly about: Pick<DemoRow, "tokensPerCluster" | "bound">;
  readonly policy: () => Policy;
  right: number;
  generated: number;
  seconds: number;
  budget: number;
  attended: DemoRow["attended"];
  bytesPerStep: number;
}

/** Runs the demo, prints it, and returns what `--json` prints. */
export async function demo({ seed, documents: wanted, print }: DemoOptions): Promise<DemoTable> {
  using model = await load(shippedModel());
  const documents = await writeDocuments(model, { seed, documents: wanted, facts: FACTS, tokens: CONTEXT });
  const n = documents.length * FACTS;
  print(`${documents.length} documents of about ${CONTEXT} tokens, ${FACTS} facts in each, on ${model.device.description}.`);
  print("Each document is read once; its questions are then read and answered through each policy. For example:");
  print(`  ${documents[0].facts[0].question}  ->  ${documents[0].facts[0].statement}\n`);

  const [sixteenth, thirtySecond] = [CONTEXT / 16, CONTEXT / 32];
  const clusters = (budget: number, tokensPerCluster: number, bound = 0) =>
    entry(() => clusterKV({ budget, tokensPerCluster, bound, exempt: [] }), { tokensPerCluster, bound });
  const pairs = [clusters(sixteenth, 16), clusters(thirtySecond, 16)];
  const plain = { tokensPerCluster: null, bound: null };
  const windows = pairs.map((pair) => entry(() => slidingWindow({ window: readBy(pair) - 4 }), plain)); // as many rows as its pair read
  const [wide, narrow] = pairs;
  const entries = [
    entry(full, plain),
    wide,
    clusters(sixteenth, 80),
    windows[0],
    narrow,
    clusters(thirtySecond, 80),
    clusters(thirtySecond, 16, 0.3),
    windows[1],
  ];

  let prefillSeconds = 0;
  for (const [i, { text, facts }] of documents.entries()) {
    using source = model.session({ capacity: CONTEXT + 512 });
    const began = performance.now();
    await source.prefill(documentTokens(model, text));
    prefillSeconds += (performance.now() - began) / 1000 / documents.length;
    for (const one of entries) await ask(model, source, facts, one);
    print(`  document ${i + 1}: ${entries.map(({ right }) => right).join(", ")} of ${(i + 1) * FACTS} right`);
  }

  const rows = entries.map(({ about, policy, right, generated, seconds, budget, attended, bytesPerStep }) => ({
    policy: policy().name,
    budget,
    ...about,
    exempt: (policy().options?.exempt ?? []) as readonly number[],
    attended,
    bytesPerStep,
    tokensPerSecond: generated / seconds,
    right,
  }));
  const table = { model: "mini", seed, context: CONTEXT, n, prefillSeconds, rows };
  for (const line of format(table)) print(line);
  return table;
}

function entry(policy: () => Policy, about: Entry["about"]): Entry {
  return { about, policy, right: 0, generated: 0, seconds: 0, budget: 0, attended: { sink: 0, index: 0, tail: 0 }, bytesPerStep: 0 };
}

/** Rows read per head and step. */
function readBy({ attended: { sink, index, tail } }: Entry): number {
  return Math.round(sink + index + tail);
}

/** Asks about the document that `source` has read, through a policy, and counts the answers whose text is right. */
async function ask(model: LoadedModel, source: Session, facts: readonly Fact[], entry: Entry): Promise<void> {
  using session = model.session({ kv: entry.policy(), capacity: source.capacity });
  await session.adopt(source);
  const document = session.mark();
  const before = await session.attended();
  for (const { question, statement } of facts) {
    await session.prefill(questionTokens(model, question), { query: "sparse" });
    const { text, tokens, seconds } = await answer(model, session);
    entry.seconds += seconds;
    entry.generated += tokens.length - 1;
    if (text === statement) entry.right++;
    session.rewind(document);
  }
  note(entry, session, before, await session.attended());
}

/** What the last document cost; documents are alike. */
function note(entry: Entry, session: Session, before: Attended, after: Attended): void {
  const { sink, index, tail, total } = attendedRows(session, before, after);
  entry.budget = session.budget;
  entry.attended = { sink, index, tail };
  entry.bytesPerStep = Math.round(total * bytesPerRow(session) + session.selectBytes());
}

/** The table, in lines. */
export function format({ n, context, prefillSeconds, rows }: DemoTable): string[] {
  const head = ["policy", "tokens per cluster", "bound", "budget", "rows read", "KiB/step", "tokens/s", "right"];
  const body = rows.map((
    { policy, tokensPerCluster, bound, budget, attended: { sink, index, tail }, bytesPerStep, tokensPerSecond, right },
  ) => [
    policy,
    tokensPerCluster === null ? "-" : String(tokensPerCluster),
    bound === null ? "-" : String(bound),
    budget ? String(budget) : "-",
    (sink + index + tail).toFixed(0),
    (bytesPerStep / 1024).toFixed(0),
    tokensPerSecond.toFixed(0),
    `${right} of ${n}`,
  ]);
  const widths = head.map((_, i) => Math.max(...[head, ...body].map((cells) => cells[i].length)));
  const line = (cells: readonly string[]) => cells.map((cell, i) => i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i])).join("  ");
  return [
    "",
    line(head),
    line(widths.map((width) => "-".repeat(width))),
    ...body.map(line),
    "",
    `Rows read: per head and step, no layer exempt. Reading a document of ${context} tokens took ${prefillSeconds.toFixed(1)} s.`,
    "Many like facts are the hard case: at 1/32 of the context most of them look alike from a cluster's mean; a bound on the farthest",
    "member (one number per cluster) tells them apart.",
  ];
}
