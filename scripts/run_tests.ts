/**
 * Runs every test under Bun, then under Deno, and closes with the true counts of both. Arguments name what to run:
 * files or folders of tests/, and `--only TEXT` for tests whose name has TEXT (`npm test -- --only centroidScores`).
 */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";

interface Outcome {
  passed: number;
  failed: number;
  skipped: string[];
  code: number;
}

const root = new URL("..", import.meta.url).pathname;
const args = process.argv.slice(2);
const at = args.indexOf("--only");
const only = at < 0 ? undefined : args.splice(at, 2)[1];
const places = args.length > 0 ? args : ["tests"];
const scratch = mkdtempSync(join(tmpdir(), "recallkv-tests-"));

/** Each runner writes JUnit: one <testcase> per test, groups not counted, so that both count alike. */
function read(report: string, code: number): Outcome {
  if (!existsSync(report)) { // a file that cannot be imported ends some runners before they write
    console.log(`Cannot count tests: the runner ended with ${code} and wrote no report`);
    return { passed: 0, failed: 1, skipped: [], code };
  }
  const text = readFileSync(report, "utf8");
  const cases = [...text.matchAll(/<testcase\b([^>]*?)(\/>|>([\s\S]*?)<\/testcase>)/g)].map(([, head, , body = ""]) => ({ head, body }));
  const name = (head: string) => /\bname="([^"]*)"/.exec(head)?.[1] ?? "?";
  const groups = new Set(cases.flatMap(({ head }) => [...name(head).matchAll(/ &gt; /g)].map(({ index }) => name(head).slice(0, index))));
  const leaves = cases.filter(({ head }) => !groups.has(name(head)));
  const skipped = leaves.filter(({ body }) => /<skipped/.test(body));
  const failed = leaves.filter(({ body }) => /<(failure|error)/.test(body));
  return {
    passed: leaves.length - skipped.length - failed.length,
    failed: failed.length || (code === 0 ? 0 : 1), // what went wrong outside of any test
    skipped: skipped.map(({ head }) => name(head)),
    code,
  };
}

function run(tool: string, toolArgs: readonly string[]): Promise<number> {
  return new Promise((resolve) => {
    const child = spawn("sh", [join(root, "scripts/tool.sh"), tool, ...toolArgs], { cwd: root, stdio: "inherit" });
    child.on("exit", (code) => resolve(code ?? 1));
  });
}

function close(runner: string, { passed, failed, skipped }: Outcome): void {
  console.log(`${runner}: ${passed} passed, ${failed} failed${skipped.length ? `, ${skipped.length} skipped` : ""}`);
}

const bunReport = join(scratch, "bun.xml");
const filter = only === undefined ? [] : ["--test-name-pattern", only.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")];
const bun = await run("bun", [
  "test",
  ...filter,
  "--reporter=junit",
  `--reporter-outfile=${bunReport}`,
  "--only-failures",
  "--timeout=120000", // what starts processes takes as long as a busy machine needs; Deno sets no limit either
  ...places.map((place) => `./${place}`),
])
  .then((code) => read(bunReport, code));
const denoReport = join(scratch, "deno.xml");
const denoFilter = only === undefined ? [] : ["--filter", only];
const deno = await run("deno", [
  "test",
  "--allow-ffi",
  "--allow-read",
  "--allow-write",
  "--allow-env",
  "--allow-run",
  "--allow-sys",
  "--allow-net=127.0.0.1", // a hub of the tests' own
  "--no-check",
  "--reporter=dot",
  `--junit-path=${denoReport}`,
  "--import-map=lib/std/import_map.json",
  ...denoFilter,
  ...places,
]).then((code) => read(denoReport, code)); // deno-fmt-ignore
rmSync(scratch, { recursive: true });

console.log();
const skipped = deno.skipped.map( // both skip alike, and these names say their group
  (name) => name.replaceAll("&apos;", "'").split(" &gt; "),
);
for (const [group, ...rest] of skipped.filter((name, i) => skipped.findIndex(([other]) => other === name[0]) === i)) {
  const alike = skipped.filter(([other]) => other === group).length;
  console.log(`skipped: ${[group, ...rest].join(" > ")}${alike > 1 ? ` and ${alike - 1} more of ${group}` : ""}`);
}
close("bun", bun);
close("deno", deno);
process.exitCode = bun.code === 0 && deno.code === 0 && bun.failed + deno.failed === 0 && bun.passed > 0 && deno.passed > 0 ? 0 : 1;
