/**
 * Everything that must hold of the CUDA device, in one run that counts: `bun run tests/cuda/check.ts [--seconds N] [group or text ...]`.
 * --seconds: small ones first, and none is begun after so long: what a checker of memory or races makes slow then ends. Ends with 0 when all
 * holds, with 1 when something does not, and with 2 where there is no CUDA device.
 */
import process from "node:process";
import { parseArgs } from "node:util";
import { checks, cuda } from "./checks.ts";

const { values: { seconds }, positionals: wanted } = parseArgs({
  args: process.argv.slice(2),
  options: { seconds: { type: "string" } },
  allowPositionals: true,
});
const chosen = checks.filter(({ group, name }) => wanted.length === 0 || wanted.some((text) => group === text || name.includes(text)));
if (seconds !== undefined) {
  const sizes = new Map(chosen.map((check) => [check, check.size?.() ?? Infinity]));
  chosen.sort((a, b) => sizes.get(a)! < sizes.get(b)! ? -1 : 1);
}
const device = await cuda().catch((error: Error) => error);
if (device instanceof Error) {
  console.log(`${device.message}: ${chosen.length} checks skipped`);
  process.exit(2);
}
console.log(device.description);
const until = performance.now() + 1000 * Number(seconds ?? Infinity);
const counts = new Map<string, { passed: number; failed: number; left: number }>();
for (const { group, name, run } of chosen) {
  const count = counts.get(group) ?? { passed: 0, failed: 0, left: 0 };
  counts.set(group, count);
  if (performance.now() > until) {
    count.left++;
    continue;
  }
  try {
    await run();
    count.passed++;
  } catch (error) {
    count.failed++;
    console.log(`FAILED ${group}: ${name}\n  ${(error as Error).message.replaceAll(/\s+/g, " ").slice(0, 300)}`);
  }
}
for (const [group, { passed, failed, left }] of counts) {
  console.log(`${group}: ${passed} passed, ${failed} failed${left > 0 ? `, ${left} not begun` : ""}`);
}
process.exit([...counts.values()].some(({ failed }) => failed > 0) ? 1 : 0);
