/** What people find on their disk under a model's name, told from its first bytes. */
import { count } from "../format.ts";

/** What a file is that begins with `head` (as Latin-1) and what was wanted, or null when it may be what its name says. */
export function impostorOf(head: string): string | null {
  if (head.startsWith("version https://git-lfs.github.com/spec/")) {
    const size = /\bsize (\d+)/.exec(head)?.[1];
    const real = size === undefined ? "the file itself" : `the file itself (${count(Number(size))} bytes)`;
    return `it is a Git LFS pointer, want ${real}: git lfs pull fetches it`;
  }
  if (/^\s*<(!doctype|!--|html|head|body|script|\?xml)/i.test(head)) {
    return "it is a web page that was saved in place of the file, want what is behind the download link";
  }
  if (head.startsWith("PK\x03\x04")) {
    return "it is a zip archive (as the checkpoints of PyTorch are), want GGUF or safetensors";
  }
  return null;
}
