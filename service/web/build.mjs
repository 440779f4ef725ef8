// Writes built/: the page, its script in chunks, style and icon, each also compressed as the service sends it, and the
// licences of what is in the chunks.
import { build } from "esbuild";
import { cp, mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { gzipSync } from "node:zlib";

const out = "built";
await rm(out, { recursive: true, force: true });
await mkdir(out);
const { metafile } = await build({
  entryPoints: ["src/app.ts", "src/app.css"],
  outdir: out,
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  chunkNames: "[name]-[hash]",
  external: ["numcodecs/*"], // NiiVue would load them for Zarr volumes only
  legalComments: "none",
  logLevel: "warning",
  metafile: true,
});
await cp("plain/icon.svg", `${out}/icon.svg`);
await writeFile(`${out}/licences.txt`, await licences(metafile));
for (const name of await readdir(out)) {
  await writeFile(`${out}/${name}.gz`, gzipSync(await readFile(`${out}/${name}`), { level: 9 }));
}
// Last: the service takes the built page as soon as this is there.
await cp("src/index.html", `${out}/index.html`);

async function licences({ inputs }) {
  const packages = new Set(Object.keys(inputs).map((path) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(path)?.[0]));
  const texts = [];
  for (const folder of [...packages].filter(Boolean).sort()) {
    const { name, version, license } = JSON.parse(await readFile(`${folder}/package.json`, "utf8"));
    const file = (await readdir(folder)).find((one) => /^licen[cs]e/i.test(one));
    const text = file ? await readFile(`${folder}/${file}`, "utf8") : "";
    texts.push(`${name} ${version} (${license})\n\n${text}`);
  }
  return texts.join(`\n${"-".repeat(72)}\n\n`);
}
