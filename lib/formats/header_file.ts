/** A model file open for reading its header: reads that stay inside the file, and a look at what it is. */
import { type FileHandle, open, stat } from "node:fs/promises";
import { count } from "../format.ts";
import { FormatError } from "./checkpoint.ts";
import { impostorOf } from "./impostors.ts";

export class HeaderFile {
  private constructor(readonly path: string, readonly size: number, private readonly handle: FileHandle) {}

  /** Opens a file. Errors: FormatError when it is not there, no file, or something else that was saved under a model's name. */
  static async open(path: string): Promise<HeaderFile> {
    const refuse = (error: Error & { code?: string }): never => {
      throw new FormatError(path, error.code === "ENOENT" ? "it is not there" : error.message);
    };
    const found = await stat(path).catch(refuse);
    if (!found.isFile()) throw new FormatError(path, "it is no regular file"); // to open a pipe would be to wait for its writer
    const handle = await open(path, "r").catch(refuse);
    try {
      const file = new HeaderFile(path, found.size, handle);
      const impostor = impostorOf(new TextDecoder("latin1").decode(await file.read(0, Math.min(file.size, 256))));
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
