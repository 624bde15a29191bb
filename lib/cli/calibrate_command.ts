import process from "node:process";
import { calibrate } from "../calibrate.ts";
import { calibrationPath, saveCalibration } from "../calibration.ts";
import { load } from "../model.ts";
import { interruptible } from "./interrupt.ts";
import { showProgress } from "./progress.ts";
import { options, textOf, Usage, whole } from "./usage.ts";

/** `recallkv calibrate MODEL TEXT [--tokens N] [--out FILE]` */
export async function runCalibrate(args: readonly string[]): Promise<void> {
  const { values, rest } = options(args, { string: ["tokens", "out"], boolean: [] });
  if (rest.length !== 2) throw new Usage(`calibrate takes a model and a text file, found ${rest.length} of them`);
  const [path, text] = rest;
  const most = whole("tokens", values.tokens, 1) ?? 4096;
  const stop = interruptible();
  const progress = showProgress(process.stderr.isTTY === true);
  try {
    const { signal } = stop;
    using model = await load(path, { signal, onProgress: progress });
    const tokens = model.tokenizer.encode(await textOf(text), { bos: model.shape.addBos });
    const calibration = await calibrate(model, tokens.slice(0, Math.min(most, model.shape.trainedContext)), {
      signal,
      onProgress: progress,
    });
    const out = values.out ?? calibrationPath(path);
    await saveCalibration(out, calibration);
    process.stdout.write(`${out}\n`);
  } finally {
    progress.end();
    stop.end();
  }
}
