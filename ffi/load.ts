/** Finds the library and opens it, once per process or worker, at first use. */
import { existsSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { backend } from "#ffi-backend";
import { RecallError } from "../lib/errors.ts";
import { ABI, type Library } from "./symbols.ts";

const platforms: Readonly<Record<string, readonly [pack: string, file: string]>> = {
  "linux-x64": ["@recallkv/linux-x64-gnu", "librecallkv.so"],
  "linux-arm64": ["@recallkv/linux-arm64-gnu", "librecallkv.so"],
  "darwin-x64": ["@recallkv/darwin-x64", "librecallkv.dylib"],
  "darwin-arm64": ["@recallkv/darwin-arm64", "librecallkv.dylib"],
};

/** Places to look: the RECALLKV_LIB variable alone where it is set, else the platform's package, else what `npm run build` made. */
function places(): string[] {
  const named = backend.environment("RECALLKV_LIB");
  if (named) return [named];
  const platform = platforms[`${process.platform}-${process.arch}`];
  if (!platform) {
    throw new RecallError(
      "RKV_DEVICE",
      "load",
      `Cannot load recallkv: there is no library for ${process.platform}-${process.arch}, want ${Object.keys(platforms).join(", ")}`,
    );
  }
  const [pack, file] = platform;
  let packaged: string[] = [];
  try {
    packaged = [fileURLToPath(import.meta.resolve(`${pack}/${file}`))];
  } catch {
    // not installed: a checkout builds its own
  }
  return [...packaged, fileURLToPath(new URL(`../zig-out/lib/${file}`, import.meta.url))];
}

export function loadLibrary(): Library {
  const tried = places();
  const path = tried.find((place) => existsSync(place));
  if (!path) {
    throw new RecallError(
      "RKV_FILE",
      "load",
      `Cannot load recallkv: its library is at none of ${tried.join(", ")} (npm run build makes it in a checkout)`,
    );
  }
  const library = opened(path);
  const abi = library.fn.rkv_abi();
  if (abi !== ABI) throw unfit(path, `has ABI ${abi}, want ${ABI}`);
  return library;
}

/** A library without a symbol of the table is another build than this TypeScript: the runtime's text says which symbol. */
function opened(path: string): Library {
  try {
    return backend.open(path);
  } catch (error) {
    throw unfit(path, `cannot be opened (${error instanceof Error ? error.message : error})`);
  }
}

function unfit(path: string, why: string): RecallError {
  return new RecallError("RKV_FILE", "load", `Cannot load recallkv: ${path} ${why}; npm run build makes it again`);
}
