/**
 * Everything that must hold of the CUDA device, in one run that counts: `bun run tests/cuda/check.ts [group or text ...]`.
 * Ends with 0 when all holds, with 1 when something does not, and with 2 where there is no CUDA device.
 */
import process from "node:process";
import { checks, cuda } from "./checks.ts";

const wanted = process.argv.slice(2);
const chosen = checks.filter(({ group, name }) => wanted.length === 0 || wanted.some((text) => group === text || name.includes(text)));
const device = await cuda().catch((error: Error) => error);
if (device instanceof Error) {
  console.log(`${device.message}: ${chosen.length} checks skipped`);
  process.exit(2);
}
console.log(device.description);
const counts = new Map<string, { passed: number; failed: number }>();
for (const { group, name, run } of chosen) {
  const count = counts.get(group) ?? { passed: 0, failed: 0 };
  counts.set(group, count);
  try {
    await run();
    count.passed++;
  } catch (error) {
    count.failed++;
    console.log(`FAILED ${group}: ${name}\n  ${(error as Error).message.replaceAll(/\s+/g, " ").slice(0, 300)}`);
  }
}
for (const [group, { passed, failed }] of counts) console.log(`${group}: ${passed} passed, ${failed} failed`);
process.exit([...counts.values()].some(({ failed }) => failed > 0) ? 1 : 0);
