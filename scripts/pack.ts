/**
 * pack.ts FOLDER: makes the packages that are published, as folders: recallkv (JavaScript and types), the library of this platform, and the
 * small model. `npm pack` makes tarballs of them. What is tested is what is packed (tests/package.test.ts).
 */
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../", import.meta.url));
const out = process.argv[2];
if (out === undefined) {
  console.error("pack.ts wants a FOLDER to write to");
  process.exit(2);
}
const source = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const platform = { name: "@recallkv/linux-x64-gnu", file: "librecallkv.so", os: ["linux"], cpu: ["x64"], libc: ["glibc"] };
const platforms = ["linux-x64-gnu", "linux-arm64-gnu", "linux-x64-musl", "darwin-arm64", "darwin-x64"].map((name) => `@recallkv/${name}`);

function write(folder: string, name: string, value: unknown): void {
  mkdirSync(join(out, folder), { recursive: true });
  writeFileSync(join(out, folder, name), typeof value === "string" ? value : `${JSON.stringify(value, null, 2)}\n`);
}

/** Compiles mod.ts and all it needs, file by file, and the types beside. */
function compile(dist: string): void {
  const config = join(out, "tsconfig.json");
  writeFileSync(
    config,
    JSON.stringify({
      extends: join(root, "tsconfig.json"),
      compilerOptions: {
        noEmit: false,
        declaration: true,
        rewriteRelativeImportExtensions: true,
        allowImportingTsExtensions: false,
        rootDir: root,
        outDir: dist,
        typeRoots: [join(root, "node_modules/@types")],
        stripInternal: true,
      },
      include: [],
      files: ["mod.ts", "lib/ops.ts", "lib/cluster/mod.ts", "lib/cli/main.ts", "ffi/bun.ts", "ffi/deno.ts"].map((file) => join(root, file)),
    }),
  );
  const { status, stdout } = spawnSync(process.execPath, [join(root, "node_modules/typescript/lib/tsc.js"), "-p", config], {
    encoding: "utf8",
  });
  rmSync(config);
  if (status !== 0) throw new Error(`Cannot compile: ${stdout}`);
}

/** Names that only configuration resolves in a checkout become paths. */
function settle(dist: string): void {
  for (const name of readdirSync(dist, { recursive: true, encoding: "utf8" }).filter((name) => /\.(js|d\.ts)$/.test(name))) {
    const path = join(dist, name);
    const upTo = (target: string) => `./${relative(dirname(path), join(dist, target))}`.replace(/^\.\/\.\./, "..");
    const text = readFileSync(path, "utf8")
      .replaceAll('"@std/cli/parse-args"', `"${upTo("lib/std/parse_args.js")}"`)
      .replaceAll('"../../package.json"', `"${upTo("../package.json")}"`)
      .replaceAll(/((?:from\s+|import\()"\.[^"]*)\.ts"/g, '$1.js"');
    writeFileSync(path, text);
  }
}

mkdirSync(out, { recursive: true });
const dist = join(out, "recallkv/dist");
compile(dist);
rmSync(join(dist, "package.json"), { force: true });
settle(dist);
const entry = (file: string) => ({ types: `./dist/${file}.d.ts`, default: `./dist/${file}.js` });
write("recallkv", "package.json", {
  name: source.name,
  version: source.version,
  description: source.description,
  license: source.license,
  type: "module",
  exports: { ".": entry("mod"), "./cluster": entry("lib/cluster/mod"), "./kernels": entry("lib/ops") },
  imports: { "#ffi-backend": { bun: "./dist/ffi/bun.js", deno: "./dist/ffi/deno.js" } },
  bin: { recallkv: "./dist/lib/cli/main.js" },
  files: ["dist"],
  dependencies: source.dependencies,
  optionalDependencies: Object.fromEntries(platforms.map((name) => [name, source.version])),
});
for (const file of ["README.md", "LICENSE"]) cpSync(join(root, file), join(out, "recallkv", file));

const { name, file, ...where } = platform;
const common = { version: source.version, license: source.license };
write("library", "package.json", {
  name,
  ...common,
  ...where,
  files: [file],
  exports: { [`./${file}`]: `./${file}`, "./package.json": "./package.json" },
});
cpSync(join(root, "zig-out/lib", file), join(out, "library", file));

const model = ["model-q8_0.gguf", "facts.json", "prose.json", "README.md"];
write("model", "package.json", {
  name: "@recallkv/mini",
  ...common,
  description: "The small model of recallkv",
  files: model,
  exports: Object.fromEntries([...model, "package.json"].map((file) => [`./${file}`, `./${file}`])),
});
for (const file of model) cpSync(join(root, "models/mini", file), join(out, "model", file));
