/** A process of its own for process.test.ts: `child.ts WAY` begins long work and then ends in some way while jobs are in flight. */
import process from "node:process";
import { open } from "../../lib/device.ts";
import { slowOp } from "./support.ts";

const way = process.argv[2];
const device = await open("cpu", { threads: 2 });
const arena = device.arena(64 << 20);
const slow = await slowOp(device, arena);
for (let i = 0; i < Math.ceil(1500 / slow.each); i++) slow.enqueue();
const unawaited = () => arena.fence().catch(() => {});

switch (way) {
  case "awaits": { // the process lives until what it awaits has come
    arena.cancel(true);
    console.log(`fence ${await arena.fence()}`);
    break;
  }
  case "ends": // nobody awaits: nothing holds the process open
    break;
  case "exits":
    void unawaited();
    setTimeout(() => process.exit(0), 5);
    break;
  case "throws":
    void unawaited();
    setTimeout(() => {
      throw new Error("on purpose");
    }, 5);
    break;
  case "closes":
    arena.cancel(true);
    arena[Symbol.dispose]();
    device[Symbol.dispose]();
    break;
  default:
    throw new Error(`Cannot end: no way is called ${way}`);
}
