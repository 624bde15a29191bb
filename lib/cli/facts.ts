/** Documents with facts in them, drawn from a seed: what the demo asks about. */
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { LoadedModel } from "../model.ts";

/** Word lists that the shipped models were trained on (facts.json beside the weights). */
interface Words {
  readonly adjectives: readonly string[];
  readonly nouns: readonly string[];
  readonly names: readonly string[];
  readonly cities: readonly string[];
  readonly things: readonly string[];
  readonly jobs: readonly string[];
  readonly numbers: readonly string[];
}

export interface Fact {
  /** As it stands in the document, and as the answer should be. */
  readonly statement: string;
  readonly question: string;
}

export interface FactDocument {
  readonly text: string;
  readonly facts: readonly Fact[];
}

type Random = () => number;

/** Uniform numbers in [0, 1) that depend on the seed alone (mulberry32). */
function random(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Takes a random element out of a list. */
function draw<T>(list: T[], next: Random): T {
  return list.splice(Math.floor(next() * list.length), 1)[0];
}

/** `count` facts of mixed kinds whose keys share no word. */
function drawFacts(words: Words, count: number, next: Random): Fact[] {
  const [adjectives, nouns, names, cities, things, jobs] = [
    words.adjectives,
    words.nouns,
    words.names,
    words.cities,
    words.things,
    words.jobs,
  ]
    .map((list) => [...list]);
  const kinds: (() => Fact)[] = [
    () => {
      const [number, key] = [words.numbers[Math.floor(next() * words.numbers.length)], `${draw(adjectives, next)} ${draw(nouns, next)}`];
      const value = 10_000 + Math.floor(next() * 90_000);
      return { statement: `The ${number} for the ${key} is ${value}.`, question: `What is the ${number} for the ${key}?` };
    },
    () => {
      const name = draw(names, next);
      return { statement: `${name} lives in ${draw(cities, next)}.`, question: `Where does ${name} live?` };
    },
    () => {
      const name = draw(names, next);
      return { statement: `${name} carries ${draw(things, next)}.`, question: `What does ${name} carry?` };
    },
    () => {
      const name = draw(names, next);
      const job = draw(jobs, next);
      return { statement: `${name} works as ${/^[aeiou]/.test(job) ? "an" : "a"} ${job}.`, question: `What does ${name} work as?` };
    },
  ];
  return Array.from({ length: count }, (_, i) => (i % 2 === 0 ? kinds[0] : kinds[1 + Math.floor(next() * 3)])());
}

/**
 * Prose with facts between its sentences, at random places, until `tokens` tokens are full.
 * `lengths`: tokens of each sentence with the space before it, and of each fact.
 */
function writeDocument(
  prose: readonly string[],
  facts: readonly Fact[],
  tokens: number,
  length: (text: string) => number,
  next: Random,
): FactDocument {
  let room = tokens - facts.reduce((sum, { statement }) => sum + length(` ${statement}`), 0);
  const sentences: string[] = [];
  for (const sentence of prose) {
    room -= length(` ${sentence}`);
    if (room < 0) break;
    sentences.push(sentence);
  }
  const places = facts.map((fact) => ({ fact, place: Math.floor(next() * (sentences.length + 1)) })).sort((a, b) => b.place - a.place);
  for (const { fact, place } of places) sentences.splice(place, 0, fact.statement);
  return { text: sentences.join(" "), facts };
}

/** Word lists and prose of a shipped model. */
async function readDemo(directory: string): Promise<{ words: Words; prose: readonly (readonly string[])[] }> {
  const [words, prose] = await Promise.all(
    ["facts.json", "prose.json"].map(async (name) => JSON.parse(await readFile(join(directory, name), "utf8"))),
  );
  return { words, prose };
}

/**
 * Documents of `tokens` tokens with `facts` facts in each, drawn from the seed. The prose of a shipped model serves again, with other facts,
 * where more documents are wanted than there are.
 */
export async function writeDocuments(
  { path, tokenizer }: LoadedModel,
  { seed, documents, facts, tokens }: { seed: number; documents: number; facts: number; tokens: number },
): Promise<FactDocument[]> {
  const { words, prose } = await readDemo(dirname(path));
  const next = random(seed);
  const length = (text: string) => tokenizer.encode(text).length;
  return Array.from(
    { length: documents },
    (_, i) => writeDocument(prose[i % prose.length], drawFacts(words, facts, next), tokens, length, next),
  );
}
