// calibrate(): orthonormal bases in the order of what they carry; a file that comes back; infiniGen and sals on top.
import { assert, assertAlmostEquals, assertEquals, assertGreater, assertLess, assertRejects, assertThrows } from "@std/assert";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { calibrate } from "../../lib/calibrate.ts";
import { type Calibration, LayerBases, loadCalibration, saveCalibration } from "../../lib/calibration.ts";
import { infiniGen } from "../../lib/policies/infini_gen.ts";
import { sals } from "../../lib/policies/sals.ts";
import { full } from "../../mod.ts";
import { fresh, largestDifference } from "../support/run.ts";
import { nano, proseTokens } from "../support/nano.ts";
import { scratch } from "../support/scratch.ts";

const files = scratch();
let made: Promise<Calibration> | undefined;
const calibration = () => made ??= Promise.all([nano(), proseTokens(600, 5)]).then(([model, tokens]) => calibrate(model, tokens));

/** Column a times column b of a basis [width, width]. */
function dot(basis: Float32Array, width: number, a: number, b: number): number {
  let sum = 0;
  for (let i = 0; i < width; i++) sum += basis[i * width + a] * basis[i * width + b];
  return sum;
}

describe("calibrate", () => {
  it("finds orthonormal directions", async () => {
    const { skew, projection } = await calibration();
    assertEquals([skew.shape, projection.shape], [[3, 32, 32], [96, 96]]);
    for (const layer of [0, 5]) {
      const [one, all] = [skew.at(layer, [3, 32, 32]).subarray(32 * 32, 2 * 32 * 32), projection.at(layer, [96, 96])];
      for (const [a, b] of [[0, 0], [0, 1], [7, 7], [31, 30]]) {
        assertAlmostEquals(dot(one, 32, a, b), a === b ? 1 : 0, 1e-5);
        assertAlmostEquals(dot(all, 96, a, b), a === b ? 1 : 0, 1e-5);
      }
    }
  });

  it("keeps nearly all of the logits in a third of the directions", async () => {
    const [model, prompt, { projection, skew }] = [await nano(), await proseTokens(600), await calibration()];
    const options = { capacity: 1024, kvDtype: "f32" as const };
    const want = await fresh(model, { kv: full(), ...options }, prompt, 2);
    const off = async (kv: Parameters<typeof fresh>[1]["kv"]) =>
      largestDifference((await fresh(model, { kv, ...options }, prompt, 2)).logits, want.logits);
    const all = { budget: 1024, exempt: [], rank: 1, ranked: 1 };
    assertLess(await off(sals({ projection, ...all })), 1e-3); // a rotation of keys changes nothing
    const turned = new LayerBases("projection", projection.shape, [...projection.bases].reverse());
    const third = { ...all, rank: 1 / 3 };
    assertLess(await off(sals({ projection, ...third })), 1);
    assertGreater(await off(sals({ projection: turned, ...third })), 5); // another layer's directions
    assertLess(await off(infiniGen({ skew, budget: 1024, partial: 1, alpha: Infinity })), 1e-3);
  });

  it("comes back from its file, and refuses a damaged one", async () => {
    const { skew, projection } = await calibration();
    const path = files.file("nano.calibration.safetensors", "");
    await saveCalibration(path, { skew, projection });
    const back = await loadCalibration(path);
    assertEquals(back.skew.bases, skew.bases);
    assertEquals(back.projection.bases, projection.bases);
    const cut = files.file("cut.safetensors", readFileSync(path).subarray(0, 4000));
    await assertRejects(() => loadCalibration(cut), Error, "cut.safetensors");
  });

  it("of another model is refused with both shapes", async () => {
    const model = await nano();
    const other = new LayerBases("skew", [2, 64, 64], [new Float32Array(2 * 64 * 64), new Float32Array(2 * 64 * 64)]);
    const error = assertThrows(() => model.session({ kv: infiniGen({ skew: other }) }), RangeError);
    assert(/\[2, 64, 64\].*\[3, 32, 32\]/.test(error.message), error.message);
  });

  it("wants a text of some length", async () => {
    const model = await nano();
    await assertRejects(() => calibrate(model, [1, 2, 3]), RangeError, "3 tokens");
  });
});
