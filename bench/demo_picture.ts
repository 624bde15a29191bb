/**
 * Draws what the demo measured: bench/demo.json is what `npm run --silent demo -- --json` printed.
 *   bun run bench/demo_picture.ts > bench/demo.svg
 */
import { readFileSync } from "node:fs";
import process from "node:process";
import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";
import type { DemoRow, DemoTable } from "../lib/cli/demo.ts";

interface Point {
  readonly method: string;
  readonly kib: number;
  readonly right: number;
  readonly label: string;
}

/** Colours that stand out on white and on black alike. */
const colours: readonly (readonly [method: string, colour: string])[] = [
  ["full cache", "#8a939d"],
  ["ClusterKV, 16 tokens per cluster, bound 0.3", "#d4770b"],
  ["ClusterKV, 16 tokens per cluster", "#3f8ae0"],
  ["ClusterKV, 80 tokens per cluster (the paper's)", "#8d6bd8"],
  ["sliding window", "#c2504f"],
];

function methodOf({ policy, tokensPerCluster, bound }: DemoRow): string {
  if (policy === "full") return colours[0][0];
  if (policy !== "clusterKV") return colours[4][0];
  return bound ? colours[1][0] : tokensPerCluster === 16 ? colours[2][0] : colours[3][0];
}

/** The picture as SVG. */
function picture({ rows, n, context }: DemoTable): string {
  const { document } = parseHTML("<!doctype html><html><body></body></html>");
  const points = rows.map((row): Point => {
    const { sink, index, tail } = row.attended;
    const read = Math.round(sink + index + tail).toLocaleString("en-US");
    return { method: methodOf(row), kib: row.bytesPerStep / 1024, right: 100 * row.right / n, label: `${row.right}: ${read} rows` };
  });
  // Where the label of each method's points stands, so that none covers another.
  const [above, right, left] = [{ textAnchor: "middle", dy: -13 }, { textAnchor: "start", dx: 10, dy: 8 }, {
    textAnchor: "end",
    dx: -10,
  }] as const;
  const labels = [above, above, right, left, above].map((place, i) =>
    Plot.text(points.filter(({ method }) => method === colours[i][0]), {
      x: "kib",
      y: "right",
      text: "label",
      fill: "currentColor",
      fontSize: 11,
      ...place,
    })
  );
  const svg = Plot.plot({
    document: document as unknown as Document,
    width: 760,
    height: 380,
    marginLeft: 60,
    marginTop: 40,
    marginRight: 30,
    marginBottom: 46,
    x: {
      type: "log",
      label: "KiB of the cache read per step (every layer and head) →",
      domain: [1500, 80_000],
      ticks: [2000, 5000, 10_000, 20_000, 60_000],
      tickFormat: ",d",
    },
    y: { label: null, domain: [0, 104], grid: true, tickFormat: (d: number) => `${d} %`, ticks: 5 },
    color: { domain: colours.map(([method]) => method), range: colours.map(([, colour]) => colour) },
    marks: [
      Plot.ruleY([0], { stroke: "currentColor", strokeOpacity: 0.4 }),
      Plot.line(points, { x: "kib", y: "right", z: "method", stroke: "method", strokeWidth: 1.5, strokeOpacity: 0.6 }),
      Plot.dot(points, { x: "kib", y: "right", fill: "method", r: 5.5 }),
      ...labels,
    ],
  }) as unknown as SVGSVGElement;
  const legend = colours.map(([method, colour], i) => {
    const y = 170 + 22 * i;
    return `<g><circle cx="438" cy="${y}" r="5.5" fill="${colour}"></circle><text x="450" y="${
      y + 4
    }" text-anchor="start" fill="currentColor" font-size="12">${method}</text></g>`;
  }).join("");
  const title = `${n} questions about documents of ${context.toLocaleString("en-US")} tokens: how many answers are right to the letter`;
  const style = "svg{color:#59636e;background:none;font-family:system-ui,sans-serif}@media(prefers-color-scheme:dark){svg{color:#a9b4c0}}";
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  svg.removeAttribute("class");
  for (const inner of [...svg.querySelectorAll("style")]) inner.remove();
  const drawn = svg.outerHTML;
  const open = drawn.indexOf(">") + 1;
  const head =
    `<title>${title}</title><style>${style}</style><text x="60" y="16" text-anchor="start" fill="currentColor" font-size="13.5" font-weight="600">${title}</text>`;
  return `${drawn.slice(0, open)}${head}${drawn.slice(open, -"</svg>".length)}${legend}</svg>\n`;
}

process.stdout.write(picture(JSON.parse(readFileSync(new URL("demo.json", import.meta.url), "utf8")) as DemoTable));
