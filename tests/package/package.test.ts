// What npm would install: packed, installed without a network into an empty project, and run there under the runtime that runs the tests.
import { assert, assertEquals, assertLess } from "@std/assert";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { generate } from "../../lib/generate.ts";

const root = fileURLToPath(new URL("../../", import.meta.url));
const tool = (name: string) => ["sh", join(root, "scripts/tool.sh"), name];
const runtime = "Deno" in globalThis ? [...tool("deno"), "run", "-A", "--no-check"] : [...tool("bun"), "run"];

function run([command, ...args]: readonly string[], cwd: string): string {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: "utf8" });
  assertEquals(status, 0, `${command} ${args.join(" ")}\n${stdout}\n${stderr}`);
  return stdout;
}

/** Packages that recallkv needs, and those that they need, as folders of this checkout. */
function needed(): Record<string, string> {
  const found: Record<string, string> = {};
  const visit = (name: string) => {
    const path = join(root, "node_modules", name, "package.json");
    if (found[name] !== undefined || !existsSync(path)) return;
    found[name] = `file:${dirname(path)}`;
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(path, "utf8"));
    for (const other of Object.keys({ ...dependencies, ...optionalDependencies })) visit(other);
  };
  Object.keys(JSON.parse(readFileSync(join(root, "package.json"), "utf8")).dependencies).forEach(visit);
  return found;
}

/** Bytes of a folder; what is linked into it counts. */
function bytesOf(path: string): number {
  if (!statSync(path).isDirectory()) return statSync(path).size;
  return readdirSync(path).reduce((sum, name) => name === "mini" ? sum : sum + bytesOf(join(path, name)), 0);
}

const script = `
import { clusterKV, generate } from "recallkv";
import { kmeans, open } from "recallkv/kernels";
import { allocateClusters } from "recallkv/cluster";
const { tokens } = await generate("Once the storm had passed,", { maxTokens: 5 });
using device = await open("cpu");
using vectors = device.from(Float32Array.of(0, 1, 0, 2, 3, 0, 4, 0), [1, 1, 4, 2]);
const labels: Int32Array = await kmeans(device, vectors, { clusters: 2 }).labels.read();
console.log(JSON.stringify([tokens.length, Array.from(labels), typeof allocateClusters, clusterKV().name]));
`;

describe("the package", () => {
  const folder = mkdtempSync(join(tmpdir(), "recallkv-package-"));
  const project = join(folder, "project");
  after(() => rmSync(folder, { recursive: true }));
  const limit = { timeout: 600_000 };

  it("installs without a network", limit, () => {
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    run([...tool("bun"), "run", join(root, "scripts/pack.ts"), folder], root);
    run(["npm", "pack", "--silent", "./recallkv", "./library"], folder);
    run(["mkdir", project], folder);
    const ours = {
      recallkv: `file:../recallkv-${version}.tgz`,
      "@recallkv/linux-x64-gnu": `file:../recallkv-linux-x64-gnu-${version}.tgz`,
      "@recallkv/mini": "file:../model",
    };
    writeFileSync(
      join(project, "package.json"),
      JSON.stringify({ private: true, type: "module", dependencies: { ...needed(), ...ours } }),
    );
    run(["npm", "install", "--offline", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", join(folder, "cache")], project);
    writeFileSync(join(project, "use.ts"), script);
  });

  it("runs in an empty project", limit, () => {
    assertEquals(run([...runtime, "use.ts"], project), `${JSON.stringify([5, [0, 0, 1, 1], "function", "clusterKV"])}\n`);
  });

  it("has a command that says what the library says", limit, async () => {
    const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
    const command = [...runtime, "node_modules/.bin/recallkv"];
    assertEquals(run([...command, "--version"], project), `${version}\n`);
    const { text } = await generate("Once the storm", { maxTokens: 4 });
    assertEquals(JSON.parse(run([...command, "generate", "Once the storm", "--max-tokens", "4", "--json"], project)).text, text);
  });

  it("has types that a strict project can check", limit, () => {
    const compilerOptions = { target: "esnext", module: "nodenext", strict: true, noEmit: true, types: [], lib: ["esnext", "dom"] };
    writeFileSync(join(project, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["use.ts"] }));
    run([...tool("bun"), join(root, "node_modules/typescript/lib/tsc.js"), "-p", "."], project);
  });

  it("is below 25 MB without the model, and has no TypeScript that Deno would refuse", () => {
    assertLess(bytesOf(join(project, "node_modules")), 25e6);
    const shipped = readdirSync(join(project, "node_modules/recallkv"), { recursive: true, encoding: "utf8" });
    assertEquals(shipped.filter((name) => name.endsWith(".ts") && !name.endsWith(".d.ts")), []);
    assert(shipped.includes("LICENSE"));
  });

  it("says how to get the model where its package is missing", () => {
    rmSync(join(project, "node_modules/@recallkv/mini"));
    const [command, ...args] = [...runtime, "node_modules/.bin/recallkv", "generate", "x"];
    const { status, stderr } = spawnSync(command, args, { cwd: project, encoding: "utf8" });
    assertEquals(status, 1);
    assert(stderr.includes("npm install @recallkv/mini"), stderr);
  });
});
