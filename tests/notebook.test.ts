// The notebook, executed headless: by Jupyter with Deno's kernel where Jupyter is installed, else cell after cell as one Deno module. Whoever
// runs the tests: a notebook's kernel is Deno.
import { assert, assertEquals, assertLess, assertStringIncludes } from "@std/assert";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { fileURLToPath } from "node:url";

const examples = fileURLToPath(new URL("../examples/", import.meta.url));
const tool = fileURLToPath(new URL("../scripts/tool.sh", import.meta.url));
const jupyter = "/usr/bin/jupyter-nbconvert";

type Bundle = Record<string, string | string[]>;
interface Notebook {
  readonly cells: readonly {
    cell_type: string;
    source: string[];
    outputs?: { data?: Bundle }[];
  }[];
}
const notebook: Notebook = JSON.parse(readFileSync(join(examples, "recall.ipynb"), "utf8"));

function run(command: string, args: readonly string[], env: Record<string, string> = {}): string {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: examples, encoding: "utf8", env: { ...process.env, ...env } });
  assertEquals(status, 0, `${command} ${args.join(" ")}\n${stdout}\n${stderr}`);
  return stdout;
}

/** What the cells display, each a bundle of one text by its type. (Not what they print: a kernel may lose that of a cell which ends at once.) */
function withKernel(folder: string): Bundle[] {
  const home = { HOME: folder, JUPYTER_DATA_DIR: join(folder, ".local/share/jupyter") };
  run("sh", [tool, "deno", "jupyter", "--install"], home);
  run(jupyter, [
    "--to",
    "notebook",
    "--execute",
    "--ExecutePreprocessor.iopub_timeout=60",
    "recall.ipynb",
    "--output",
    join(folder, "out.ipynb"),
  ], home);
  const { cells }: Notebook = JSON.parse(readFileSync(join(folder, "out.ipynb"), "utf8"));
  return cells.flatMap(({ outputs = [] }) => outputs.map(({ data = {} }) => data));
}

function asModule(folder: string): Bundle[] {
  const shown = join(folder, "shown.json");
  const cells = notebook.cells.filter(({ cell_type }) => cell_type === "code").map(({ source }) => source.join(""));
  const file = join(examples, `.notebook-${process.pid}.ts`); // beside the notebook: paths and names resolve as they do there
  const kernel = "const shown: object[] = [];\nconst display = (bundle: object, _: object) => void shown.push(bundle);";
  const end = `await Deno.writeTextFile(${JSON.stringify(shown)}, JSON.stringify(shown));`;
  writeFileSync(file, [kernel, ...cells, end].join("\n").replaceAll("Deno.jupyter.display(", "display("));
  try {
    run("sh", [tool, "deno", "run", "-A", "--no-check", file]);
    return JSON.parse(readFileSync(shown, "utf8"));
  } finally {
    rmSync(file);
  }
}

describe("examples/recall.ipynb", () => {
  it("runs from top to bottom, and shows what it says", { timeout: 600_000 }, () => {
    const folder = mkdtempSync(join(tmpdir(), "recallkv-notebook-"));
    try {
      const bundles = existsSync(jupyter) ? withKernel(folder) : asModule(folder);
      const shown = (type: string) => bundles.flatMap((bundle): string | string[] => bundle[type] ?? "").join("");
      const text = shown("text/markdown");
      const svg = shown("image/svg+xml");
      assertStringIncludes(text, "> Clara lives in Porto.");
      const covered = new Map(
        [...text.matchAll(/\| (\w+) \| (\d+) \| \d+ \| ([\d.]+) % \|/g)].map(([, policy, budget, mass]) => [policy + budget, Number(mass)]),
      );
      assertEquals(covered.size, 12);
      for (const policy of ["clusterKV", "quest", "slidingWindow"]) assertLess(covered.get(`${policy}64`)!, covered.get(`${policy}512`)!);
      assertLess(covered.get("slidingWindow512")!, covered.get("clusterKV512")!);
      assert(svg.startsWith("<svg"));
      assertEquals(svg.match(/<circle/g)?.length, 12);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("is kept without outputs", () => {
    assertEquals(notebook.cells.flatMap(({ outputs = [] }) => outputs), []);
  });
});
