/** `--help` for a program whose manual is the comment that it begins with. */
import { readFileSync } from "node:fs";
import process from "node:process";
import { fileURLToPath } from "node:url";

/** Prints the manual of the module at `url` and ends, where the command line asks for it. */
export function manual(url: string): void {
  if (!process.argv.slice(2).some((argument) => argument === "--help" || argument === "-h")) return;
  const [, comment] = /^\/\*\*\n([\s\S]*?)\n \*\//.exec(readFileSync(fileURLToPath(url), "utf8"))!;
  console.log(comment.replace(/^ \* ?/gm, ""));
  process.exit(0);
}
