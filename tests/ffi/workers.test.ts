// Several workers, each with a device of its own, share the library and its tables without hearing each other's results.
import { assertEquals } from "@std/assert";
import { describe, it } from "node:test";

describe("three workers at once", () => {
  it("each get their own jobs back", async () => {
    const workers = [1000, 2000, 3000].map((seed) => {
      const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
      const answer = new Promise((resolve, reject) => {
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = (event) => reject(new Error(event.message));
      });
      worker.postMessage(seed);
      return { worker, answer };
    });
    const answers = await Promise.all(workers.map(({ answer }) => answer));
    for (const { worker } of workers) worker.terminate();
    assertEquals(answers, [{ wrong: 0 }, { wrong: 0 }, { wrong: 0 }]);
  });
});
