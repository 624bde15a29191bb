//! Builds librecallkv. Every file of ffi/cpu is compiled once per instruction set, in a module of its own; ffi/core and the host half of
//! cuda/ once, for the baseline CPU. Nothing depends on the machine that builds. cuda/x.cu becomes x.fatbin, embedded by cuda/*.c.
const std = @import("std");
const Strings = []const []const u8;
const F = std.Target.x86.Feature;
const v3 = [_]F{ .avx2, .fma, .f16c, .bmi, .bmi2, .lzcnt, .movbe };
const v4 = v3 ++ [_]F{ .avx512f, .avx512vl, .avx512bw, .avx512dq, .avx512cd, .evex512 };
const Isa = struct { name: []const u8, add: []const F = &.{}, flags: Strings = &.{} };
const wide: Strings = &.{"-mprefer-vector-width=512"}; // without it AVX-512 code uses 256-bit vectors
const x86_isas = [_]Isa{
    .{ .name = "baseline" },
    .{ .name = "avx2", .add = &v3 },
    .{ .name = "avx512", .add = &v4, .flags = wide },
    .{ .name = "avx512bf16", .add = &(v4 ++ [_]F{ .avx512vnni, .avx512bf16 }), .flags = wide },
};
const arm_isas = [_]Isa{.{ .name = "neon" }};
const common: Strings = &.{ "-std=c17", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Werror" };
const nvcc_flags: Strings = &.{ "-O3", "-std=c++17", "-fatbin" };
const shipped = [_][2][]const u8{ // npm package, zig target
    .{ "linux-x64-gnu", "x86_64-linux-gnu.2.28" },
    .{ "linux-arm64-gnu", "aarch64-linux-gnu.2.28" },
    .{ "linux-x64-musl", "x86_64-linux-musl" },
    .{ "darwin-arm64", "aarch64-macos.13.0" },
    .{ "darwin-x64", "x86_64-macos.13.0" },
};

const Sanitize = enum { off, undefined, address, thread };

const Recipe = struct {
    b: *std.Build,
    optimize: std.builtin.OptimizeMode,
    sanitize: Sanitize,
    nvcc: ?[]const u8,
    gpus: []const u8,

    fn module(r: Recipe, query: std.Target.Query) *std.Build.Module {
        return r.b.createModule(.{
            .target = r.b.resolveTargetQuery(query),
            .optimize = r.optimize,
            .link_libc = true,
            .pic = true,
            .strip = r.optimize != .Debug and r.sanitize == .off,
            .sanitize_c = if (r.sanitize == .undefined) .full else .off,
            .sanitize_thread = r.sanitize == .thread,
        });
    }

    /// Sorted names of the files of a folder; none when there is no such folder.
    fn files(r: Recipe, dir: []const u8, ext: []const u8) Strings {
        const io, const gpa = .{ r.b.graph.io, r.b.allocator };
        var names: std.ArrayList([]const u8) = .empty;
        var d = r.b.build_root.handle.openDir(io, dir, .{ .iterate = true }) catch return &.{};
        defer d.close(io);
        var it = d.iterate();
        while (it.next(io) catch @panic(dir)) |e| if (std.mem.endsWith(u8, e.name, ext)) names.append(gpa, r.b.dupe(e.name)) catch @panic("OOM");
        std.mem.sort([]const u8, names.items, {}, struct {
            fn less(_: void, x: []const u8, y: []const u8) bool {
                return std.mem.lessThan(u8, x, y);
            }
        }.less);
        return names.items;
    }

    fn addC(r: Recipe, m: *std.Build.Module, dir: []const u8, define: []const u8, more: Strings) void {
        const sources = r.files(dir, ".c");
        if (sources.len == 0) return;
        const address: Strings = if (r.sanitize == .address) &.{"-fsanitize=address"} else &.{};
        const flags = std.mem.concat(r.b.allocator, []const u8, &.{ common, &.{define}, more, address }) catch @panic("OOM");
        m.addCSourceFiles(.{ .root = r.b.path(dir), .files = sources, .flags = flags });
    }

    /// All of the native half, as a module that a library or a program is made of.
    fn everything(r: Recipe, given: std.Target.Query) *std.Build.Module {
        var query = given;
        query.cpu_model = .baseline; // never the build machine's own CPU
        const root = r.module(query);
        r.addC(root, "ffi/core", "-DRKV_CORE", &.{});
        const arm = root.resolved_target.?.result.cpu.arch == .aarch64;
        for (if (arm) @as([]const Isa, &arm_isas) else &x86_isas) |isa| {
            var q = query;
            for (isa.add) |f| q.cpu_features_add.addFeature(@intFromEnum(f));
            const m = r.module(q);
            r.addC(m, "ffi/cpu", r.b.fmt("-DRKV_ISA={s}", .{isa.name}), isa.flags);
            root.linkLibrary(r.b.addLibrary(.{ .name = r.b.fmt("cpu_{s}", .{isa.name}), .linkage = .static, .root_module = m }));
        }
        r.addC(root, "cuda", if (r.nvcc == null) "-DRKV_HAS_KERNELS=0" else "-DRKV_HAS_KERNELS=1", &.{"-std=c23"}); // c23: #embed
        if (r.nvcc) |nvcc| for (r.files("cuda", ".cu")) |name| { // cuda/x.cu -> #embed "x.fatbin"
            const run = r.b.addSystemCommand(&.{nvcc});
            run.addArgs(nvcc_flags);
            const hopper = std.mem.endsWith(u8, name, "_sm90a.cu"); // instructions that no later GPU has
            var gpu = std.mem.splitScalar(u8, if (hopper) "90a" else r.gpus, ',');
            while (gpu.next()) |arch| {
                run.addArg(r.b.fmt("-gencode=arch=compute_{s},code=sm_{s}", .{ arch, arch }));
                if (gpu.peek() == null and !hopper) run.addArg(r.b.fmt("-gencode=arch=compute_{s},code=compute_{s}", .{ arch, arch }));
            }
            run.addArgs(&.{ "-MD", "-MF" });
            _ = run.addDepFileOutputArg("k.d");
            run.addArg("-o");
            root.addEmbedPath(run.addOutputFileArg(r.b.fmt("{s}.fatbin", .{std.fs.path.stem(name)})).dirname());
            run.addFileArg(r.b.path(r.b.pathJoin(&.{ "cuda", name })));
        };
        return root;
    }

    fn library(r: Recipe, query: std.Target.Query) *std.Build.Step.Compile {
        return r.b.addLibrary(.{ .name = "recallkv", .linkage = .dynamic, .root_module = r.everything(query) });
    }

    /// tests/native as a program. Zig has no run-time library for ASan: `asan` is the path of gcc's.
    fn tests(r: Recipe, query: std.Target.Query, asan: ?[]const u8) *std.Build.Step.Compile {
        const root = r.everything(query);
        r.addC(root, "tests/native", "-DRKV_TESTS", &.{});
        if (r.sanitize == .address) if (asan) |path| root.addObjectFile(.{ .cwd_relative = path });
        return r.b.addExecutable(.{ .name = "native", .root_module = root });
    }
};

pub fn build(b: *std.Build) void {
    const query = b.standardTargetOptionsQueryOnly(.{});
    const nvcc = b.option([]const u8, "nvcc", "path of nvcc, unless it is on PATH") orelse "nvcc";
    const sanitize = b.option(Sanitize, "sanitize", "undefined behaviour, bad addresses or data races abort, naming file and line") orelse .off;
    const r: Recipe = .{
        .b = b,
        // The optimiser takes minutes over UBSan's checks in unrolled kernels.
        .optimize = b.option(std.builtin.OptimizeMode, "optimize", "ReleaseFast unless said otherwise, Debug with sanitize") orelse if (sanitize == .off) .ReleaseFast else .Debug,
        .sanitize = sanitize,
        .gpus = b.option([]const u8, "gpu", "compute capabilities that the kernels are compiled for, and as PTX of the last for later ones; 80,90 unless said") orelse "80,90",
        .nvcc = if (b.option(bool, "cuda", "build and embed the CUDA kernels") orelse false) nvcc else null,
    };
    b.installArtifact(r.library(query));
    const native = b.addInstallArtifact(r.tests(query, b.option([]const u8, "asan", "path of gcc's libasan.so, for native with -Dsanitize=address")), .{});
    b.step("native", "the tests of tests/native, into bin/native").dependOn(&native.step);
    const ship = b.step("ship", "every platform, into zig-out/npm/<platform>/");
    for (shipped) |s| ship.dependOn(&b.addInstallArtifact(r.library(std.Target.Query.parse(.{ .arch_os_abi = s[1] }) catch unreachable), .{
        .dest_dir = .{ .override = .{ .custom = b.fmt("npm/{s}", .{s[0]}) } },
        .implib_dir = .disabled,
        .pdb_dir = .disabled,
    }).step);
}
