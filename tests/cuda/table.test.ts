// The op table of the CUDA device, by its text: needs no GPU and no nvcc.
import { assert, assertEquals } from "@std/assert";
import { readdirSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";

const read = (path: string) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
const header = read("cuda/kernels.h");
const list = (text: string, macro: string) => text.slice(text.indexOf(`#define ${macro}(X)`)).split(/[^\\]\n/)[0];
const ops = [...list(read("ffi/core/ops.h"), "RKV_OPS").matchAll(/X\((\w+)\)/g)].slice(1).map(([, name]) => name);
const kernels = [...list(header, "RKV_KERNELS").matchAll(/X\((\w+), (\w+)\)/g)].map(([, module, name]) => ({ module, name }));

describe("the CUDA device's table", () => {
  it("has a launch for every op", () => {
    const launches = readdirSync(new URL("../../cuda", import.meta.url)).filter((name) => name.startsWith("launch_"));
    const text = launches.map((name) => read(`cuda/${name}`)).join("\n");
    assert(ops.length > 40);
    assertEquals(ops.filter((op) => !text.includes(`void rkv_cuda_${op}(`)), []);
  });

  it("names the kernels that its files have, and every file is embedded", () => {
    const modules = [...new Set(kernels.map(({ module }) => module))];
    const files = readdirSync(new URL("../../cuda", import.meta.url)).filter((name) => name.endsWith(".cu"));
    assertEquals(modules.map((module) => `${module}.cu`).sort(), files.sort());
    assertEquals(modules.filter((module) => !read("cuda/fatbins.c").includes(`#embed "${module}.fatbin"`)), []);
    for (const module of modules) {
      const text = read(`cuda/${module}.cu`);
      const made = [...text.matchAll(/kernel_(\w+?)##name/g)].map(([, prefix]) => prefix);
      const found = [...text.matchAll(/kernel_(\w+)\((?!.*##)/g)].map(([, name]) => name);
      for (const { name } of kernels.filter((kernel) => kernel.module === module)) {
        const byMacro = made.some((prefix) => name.startsWith(prefix) && text.includes(`(${name.slice(prefix.length)},`));
        assert(found.includes(name) || byMacro, `${module}.cu has no kernel_${name}`);
      }
    }
  });

  it("lets every kernel wait for the one before it", () => {
    for (const { module } of kernels) {
      const text = read(`cuda/${module}.cu`);
      const [kernelCount, begins] = [/^\s*KERNEL /gm, /\bbegin\(\);/g].map((pattern) => text.match(pattern)?.length ?? 0);
      assert(begins >= (module === "step" ? 1 : kernelCount), `${module}.cu: ${kernelCount} kernels, ${begins} begin()`);
    }
  });
});
