/** A model file open for reading its header: reads that stay inside the file, and the name of what was saved in its place. */
import { type FileHandle, open } from "node:fs/promises";
import { count } from "../format.ts";
import { FormatError } from "./checkpoint.ts";

export class HeaderFile {
  private constructor(readonly path: string, readonly size: number, private readonly handle: FileHandle) {}

  /** Opens a file. Errors: FormatError when it is not there, no file, or a page or pointer that was saved instead of a model. */
  static async open(path: string): Promise<HeaderFile> {
    const handle = await open(path, "r").catch((error) => {
      throw new FormatError(path, error.code === "ENOENT" ? "it is not there" : String(error.message));
    });
    try {
      const stat = await handle.stat();
      if (!stat.isFile()) throw new FormatError(path, "it is no file");
      const file = new HeaderFile(path, stat.size, handle);
      const impostor = nameOf(new TextDecoder("latin1").decode(await file.read(0, Math.min(file.size, 256))));
      if (impostor) throw new FormatError(path, impostor);
      return file;
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** Bytes [begin, begin + length), which must lie inside the file. */
  async read(begin: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    if (begin + length > this.size) {
      throw new FormatError(
        this.path,
        `its header goes on at byte ${count(begin + length)} but the file has ${count(this.size)} (was it cut?)`,
      );
    }
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const { bytesRead } = await this.handle.read(bytes, done, length - done, begin + done);
      if (bytesRead === 0) throw new FormatError(this.path, `it ended at byte ${count(begin + done)} while it was read`);
      done += bytesRead;
    }
    return bytes;
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

/** What people find on their disk under a model's name. */
function nameOf(head: string): string | null {
  if (head.startsWith("version https://git-lfs.github.com/spec/")) {
    const size = /\bsize (\d+)/.exec(head)?.[1];
    const real = size === undefined ? "the model itself" : `the model itself (${count(Number(size))} bytes)`;
    return `it is a Git LFS pointer, want ${real}: git lfs pull fetches it`;
  }
  if (/^\s*<(!doctype|html|head|\?xml)/i.test(head)) {
    return "it is a web page that was saved in place of the model, want the file behind its download link";
  }
  return null;
}
