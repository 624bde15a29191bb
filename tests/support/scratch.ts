/** A folder of files for one test file; it goes when the tests have run. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";

export interface Scratch {
  /** Writes a file and gives its path. */
  file(name: string, content: Uint8Array | string): string;
  /** Writes a folder of files and gives its path; objects become JSON. */
  folder(name: string, files: ReadonlyMap<string, Uint8Array> | Record<string, unknown>): string;
}

export function scratch(): Scratch {
  const root = mkdtempSync(join(tmpdir(), "recallkv-files-"));
  after(() => rmSync(root, { recursive: true, force: true }));
  const file = (name: string, content: Uint8Array | string): string => {
    writeFileSync(join(root, name), content);
    return join(root, name);
  };
  return {
    file,
    folder(name, files) {
      mkdirSync(join(root, name), { recursive: true });
      const entries = files instanceof Map ? [...files] : Object.entries(files);
      for (const [part, content] of entries) {
        if (content === undefined) continue;
        const raw = content instanceof Uint8Array || typeof content === "string";
        file(join(name, part), raw ? content : JSON.stringify(content));
      }
      return join(root, name);
    },
  };
}
