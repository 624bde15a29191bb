/**
 * Policies side by side, on documents of the shipped model: `npm run compare -- [--documents 5] [--context 4000] [--seed 1] [--only "NAME;NAME"]
 * [--json FILE]`. Each document hides 40 facts; each question is read and answered through the policy. What a policy covers of exact
 * attention is measured on its own queries, at two steps of every eighth question.
 */
import { writeFileSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "@std/cli/parse-args";
import { answer, documentTokens, questionTokens } from "../lib/cli/asking.ts";
import { type FactDocument, writeDocuments } from "../lib/cli/facts.ts";
import { attendedRows, bytesPerRow } from "../lib/metrics/attended.ts";
import {
  calibrate,
  chunkKV,
  clusterKV,
  type Fidelity,
  fidelity,
  full,
  h2o,
  infiniGen,
  load,
  type LoadedModel,
  type Mark,
  type Policy,
  Probe,
  pyramidInfer,
  quest,
  sals,
  type Session,
  slidingWindow,
  snapKV,
} from "../mod.ts";
import { manual } from "./manual.ts";

manual(import.meta.url);
const FACTS = 40;
const args = parseArgs(process.argv.slice(2), {
  string: ["documents", "context", "seed", "only", "json"],
});
const [count, context, seed] = [
  Number(args.documents ?? 5),
  Number(args.context ?? 4000),
  Number(args.seed ?? 1),
];

interface Row {
  policy: string;
  share: string;
  /** Read per head and step, means over all layers; `fidelity.rows` leaves out layers that the policy exempts. */
  rows: number;
  bytesPerStep: number;
  fidelity: Fidelity;
  right: number;
  /** Questions that the full cache answered and this policy did not, and the other way round. */
  lost: number;
  gained: number;
}

using model = await load();
const documents = await writeDocuments(model, {
  seed,
  documents: count,
  facts: FACTS,
  tokens: context,
});
const other = (await writeDocuments(model, {
  seed: seed + 1000,
  documents: 1,
  facts: 0,
  tokens: 4000,
}))[0];
const { skew, projection } = await calibrate(
  model,
  documentTokens(model, other.text),
);

const none = { exempt: [] };
const policies: [name: string, of: (budget: number) => Policy][] = [
  ["clusterKV, 80 per cluster", (budget) => clusterKV({ budget, ...none })],
  [
    "clusterKV, 16",
    (budget) => clusterKV({ budget, tokensPerCluster: 16, ...none }),
  ],
  [
    "clusterKV, 16, per head",
    (budget) => clusterKV({ budget, tokensPerCluster: 16, perHead: true, ...none }),
  ],
  [
    "clusterKV, 16, bound 0.3",
    (budget) => clusterKV({ budget, tokensPerCluster: 16, bound: 0.3, ...none }),
  ],
  [
    "clusterKV, 16, bound 0.3, estimate",
    (budget) =>
      clusterKV({
        budget,
        tokensPerCluster: 16,
        bound: 0.3,
        estimate: true,
        ...none,
      }),
  ],
  ["quest", (budget) => quest({ budget, ...none })],
  ["quest, by group", (budget) => quest({ budget, perHead: false, ...none })],
  ["infiniGen", (budget) => infiniGen({ skew, budget })],
  ["sals", (budget) => sals({ projection, budget, ...none })],
  ["snapKV", (budget) => snapKV({ budget })],
  ["chunkKV", (budget) => chunkKV({ budget })],
  ["h2o", (budget) => h2o({ budget })],
  ["slidingWindow", (window) => slidingWindow({ window })],
];

/** A session that has read a document and holds every row. */
interface Everything {
  readonly probe: Probe;
  readonly session: Session;
  readonly read: Mark;
}

const options = { capacity: context + 512, kvDtype: "f32" as const };
const witnesses: Everything[] = [];
for (const { text } of documents) {
  const probe = new Probe(full());
  const session = model.session({ ...options, kv: probe.policy });
  await session.prefill(documentTokens(model, text));
  witnesses.push({ probe, session, read: session.mark() });
}

const rows: Row[] = [];
const yardstick = await run("full", "1", full);
for (const [name, of] of policies) {
  if (!isWanted(name)) continue;
  for (const share of [32, 16, 8]) {
    await run(name, `1/${share}`, () => of(Math.round(context / share)));
  }
}
if (isWanted("pyramidInfer")) {
  await run("pyramidInfer", "-", () => pyramidInfer());
}
if (args.json) {
  writeFileSync(
    args.json,
    JSON.stringify(
      {
        model: "mini",
        seed,
        context,
        documents: count,
        n: count * FACTS,
        rows,
      },
      null,
      2,
    ) + "\n",
  );
}

function isWanted(name: string): boolean {
  return args.only === undefined ||
    args.only.split(";").some((part: string) => name.startsWith(part));
}

/** Runs a policy over all documents; returns which questions it answered. */
async function run(
  policy: string,
  share: string,
  of: () => Policy,
): Promise<boolean[]> {
  const right: boolean[] = [];
  const measured: Fidelity[] = [];
  let [read, bytesPerStep] = [0, 0];
  for (const [i, document] of documents.entries()) {
    const outcome = await ask(model, document, witnesses[i], of(), measured);
    right.push(...outcome.right);
    read = outcome.rows;
    bytesPerStep = outcome.bytesPerStep;
  }
  const mean = (of: keyof Fidelity) => measured.reduce((sum, one) => sum + one[of], 0) / measured.length;
  const exact = { recallRate: 1, mass: 1, error: 0, rows: read };
  const found = measured.length > 0
    ? {
      recallRate: mean("recallRate"),
      mass: mean("mass"),
      error: mean("error"),
      rows: mean("rows"),
    }
    : exact;
  const against = policy === "full" ? right : yardstick;
  const row: Row = {
    policy,
    share,
    rows: read,
    bytesPerStep,
    fidelity: found,
    right: right.filter(Boolean).length,
    lost: right.filter((ok, i) => !ok && against[i]).length,
    gained: right.filter((ok, i) => ok && !against[i]).length,
  };
  rows.push(row);
  const { mass, error, recallRate } = found;
  console.log(
    `| ${policy} | ${share} | ${found.rows.toFixed(0)} | ${(bytesPerStep / 1024).toFixed(0)} | ${mass.toFixed(3)} | ${
      recallRate.toFixed(3)
    } | ` +
      `${error.toFixed(3)} | ${row.right} of ${right.length} | -${row.lost} +${row.gained} |`,
  );
  return right;
}

async function ask(
  model: LoadedModel,
  { text, facts }: FactDocument,
  { probe: witness, session: everything, read }: Everything,
  policy: Policy,
  measured: Fidelity[],
): Promise<{ right: boolean[]; rows: number; bytesPerStep: number }> {
  const probe = new Probe(policy);
  using session = model.session({ ...options, kv: probe.policy });
  everything.rewind(read);
  await session.adopt(everything).catch((error) => {
    if (!(error instanceof TypeError)) throw error;
    return session.prefill(documentTokens(model, text)); // a policy that must see the queries of the document
  });
  const place = session.mark();
  const before = await session.attended();
  const right: boolean[] = [];
  for (const [i, { question, statement }] of facts.entries()) {
    const asked = questionTokens(model, question);
    await session.prefill(asked, { query: "sparse" });
    const measure = async (tokens: readonly number[]) => {
      everything.rewind(read);
      await everything.prefill(tokens);
      measured.push(
        await fidelity(probe, session, {
          witness: { probe: witness, session: everything },
        }),
      );
    };
    const isMeasured = i % 8 === 0 && policy.name !== "full";
    if (isMeasured) await measure(asked);
    const said = await answer(model, session);
    if (isMeasured) await measure([...asked, ...said.tokens.slice(0, -1)]);
    right.push(said.text === statement);
    session.rewind(place);
  }
  const { total } = attendedRows(session, before, await session.attended());
  return {
    right,
    rows: total,
    bytesPerStep: total * bytesPerRow(session) / 2 + session.selectBytes(),
  }; // rows as f16
}
