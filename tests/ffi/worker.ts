/** A worker of workers.test.ts: opens a device of its own and keeps it busy with jobs whose results it checks. */
import { open } from "../../lib/device.ts";

declare const self: { onmessage: ((event: { data: number }) => void) | null; postMessage(message: unknown): void };

self.onmessage = async ({ data: seed }) => {
  try {
    const device = await open("cpu", { threads: 2 });
    let wrong = 0;
    for (let round = 0; round < 20; round++) {
      using arena = device.arena(1 << 20);
      const [from, to] = [arena.tensor("i32", [64]), arena.tensor("i32", [64])];
      for (let i = 0; i < 20; i++) {
        from.write(new Int32Array(64).fill(seed + i));
        device.kernels.copy(to, 0, from, 0, 64);
        const [read, fence] = await Promise.all([to.read(), arena.fence()]);
        if (!fence || !Array.from(read).every((value) => value === seed + i)) wrong++;
      }
    }
    device[Symbol.dispose]();
    self.postMessage({ wrong });
  } catch (error) {
    self.postMessage({ error: String(error) });
  }
};
