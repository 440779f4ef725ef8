// What a job has found: what to know first, the volumes, the lesions, the organs, the files, and how it was made.

import { type Artifact, type Findings, type Job, json, type Lesion, request, save } from "./api";
import { button, element } from "./dom";
import { gunzip, type Label, labelsOf } from "./labels";
import type { Layout, Place, Viewer } from "./viewer";

// Scan and label map, on the preview's grid and on their own.
const PREVIEW = ["preview/ct.nii.gz", "preview/labels.nii.gz"];
const FULL = ["ct.nii.gz", "segmentation.nii.gz"];
const OVERVIEW = "overview.png";
const SEVERITY = ["severe", "warning", "info"];

// Level and width in HU.
const WINDOWS: [name: string, level: number, width: number][] = [
  ["Abdomen", 40, 400],
  ["Liver", 80, 150],
  ["Lung", -600, 1500],
  ["Bone", 400, 1800],
];
const LAYOUTS: [name: string, layout: Layout][] = [
  ["All", "all"],
  ["Planes", "planes"],
  ["Axial", "axial"],
  ["Coronal", "coronal"],
  ["Sagittal", "sagittal"],
  ["3-D", "3d"],
];

export interface Shown {
  close(): void;
}

/** Fills `into` with the result of a job; `problem` is told what could not be shown or saved. */
export async function showResult(job: Job, into: HTMLElement, problem: (text: string) => void): Promise<Shown> {
  const [findings, { artifacts }] = await Promise.all([
    json<Findings>(job.links.findings!),
    json<{ artifacts: Artifact[] }>(job.links.artifacts!),
  ]);
  const volumes = new Volumes(findings);
  into.replaceChildren(
    notes(findings),
    element(
      "div",
      { className: "sight" },
      volumes.stage,
      element("div", { className: "panel" }, lesionTable(findings, (lesion) => volumes.goTo(lesion)), volumes.panel),
    ),
    organTable(findings),
    downloads(artifacts, problem),
    provenance(findings),
  );
  await volumes.load(artifacts);
  return volumes;
}

// What to know before trusting a number

function notes(findings: Findings): HTMLElement {
  const organs = new Set(findings.organs.map((organ) => organ.label));
  const warnings = findings.warnings.map(({ message, subject }) => ({ severity: "warning", message, subject }));
  const ofOrgans = warnings.filter(({ subject }) => subject && organs.has(subject));
  const all = [
    ...findings.quality.map(({ severity, message }) => ({ severity: severity as string, message })),
    ...warnings.filter((warning) => !ofOrgans.includes(warning)),
  ].sort((one, other) => SEVERITY.indexOf(one.severity) - SEVERITY.indexOf(other.severity));
  const line = (note: { severity: string; message: string }) =>
    element("li", { className: `note ${note.severity}` }, element("b", { textContent: `${note.severity}: ` }), note.message);
  const pressing = all.filter((note) => note.severity !== "info");
  const checks = all.filter((note) => note.severity === "info");
  return element(
    "section",
    { ariaLabel: "Quality and warnings", className: "notes" },
    pressing.length
      ? element("ul", {}, ...pressing.map(line))
      : element("p", { className: "quiet", textContent: "No warnings." }),
    folded(`${ofOrgans.length} warnings about single organs`, ofOrgans.map(line)),
    folded(`${checks.length} checks of the scan without objection`, checks.map(line)),
  );
}

function folded(summary: string, lines: HTMLElement[]): HTMLElement | null {
  if (!lines.length) return null;
  return element("details", {}, element("summary", { textContent: summary }), element("ul", {}, ...lines));
}

// The volumes

function named(artifacts: Artifact[], names: string[]): (Artifact | undefined)[] {
  return names.map((name) => artifacts.find((artifact) => artifact.name === name));
}

class Volumes implements Shown {
  readonly stage = element("section", { className: "stage", ariaLabel: "Images" });
  readonly panel = element("section", { className: "legend", ariaLabel: "Labels" });
  private readonly place = element("p", { className: "place", id: "place" });
  private readonly level = slider("Level", -1000, 1000, 5);
  private readonly width = slider("Width", 10, 3000, 10);
  private readonly layouts = new Map(LAYOUTS.map(([name, layout]) => [layout, button(name)]));
  private viewer: Viewer | null = null;
  private labels: Label[] = [];

  constructor(private readonly findings: Findings) {}

  async load(artifacts: Artifact[], names = PREVIEW): Promise<void> {
    const [ct, map] = named(artifacts, names);
    if (!ct || !map) return this.showOverview(artifacts, "This job wrote no preview.");
    this.viewer?.close();
    this.viewer = null;
    const canvas = element("canvas", { tabIndex: 0 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute(
      "aria-label",
      "Scan with colored labels: axial, coronal, sagittal and 3-D. Arrow keys and Page Up and Down move the crosshair.",
    );
    const frame = element("div", { className: "frame" }, canvas);
    frame.setAttribute("aria-busy", "true");
    this.stage.replaceChildren(frame, this.place, this.tools(artifacts, names));
    try {
      const [scan, labelMap, { Viewer: viewers }] = await Promise.all([volume(ct), volume(map), import("./viewer")]);
      if (!frame.isConnected) return; // something else is shown by now
      this.labels = labelsOf(labelMap);
      this.showLegend();
      const viewer = await viewers.open(canvas, scan, labelMap, this.labels, {
        moved: (place) => this.showPlace(place),
        windowed: (level, width) => this.showWindow(level, width),
      });
      if (!frame.isConnected) return viewer.close();
      this.viewer = viewer;
      this.showLayout(viewer.startingLayout);
      frame.removeAttribute("aria-busy");
    } catch (error) {
      if (!frame.isConnected) return;
      await this.showOverview(artifacts, `The volumes cannot be shown: ${(error as Error).message}`);
    }
  }

  close(): void {
    this.stage.remove();
    this.viewer?.close();
  }

  goTo(lesion: Lesion): void {
    const [start, end] = lesion.longest_axis_lps_mm;
    this.viewer?.goTo(start.map((value, axis) => (value + (end[axis] ?? value)) / 2));
  }

  private async showOverview(artifacts: Artifact[], why: string): Promise<void> {
    this.stage.replaceChildren(element("p", { className: "quiet", textContent: why }));
    this.panel.replaceChildren();
    const overview = artifacts.find((artifact) => artifact.name === OVERVIEW);
    if (!overview) return;
    const image = element("img", { alt: "Three planes of the scan with the contours of what was found" });
    image.src = URL.createObjectURL(await (await request(overview.href)).blob());
    image.onload = () => URL.revokeObjectURL(image.src);
    this.stage.append(image);
  }

  private tools(artifacts: Artifact[], shown: string[]): HTMLElement {
    const choose = (level: number, width: number) => {
      this.showWindow(level, width);
      this.viewer?.setWindow(level, width);
    };
    for (const one of [this.level, this.width]) {
      one.input.oninput = () => choose(this.level.input.valueAsNumber, this.width.input.valueAsNumber);
    }
    const opacity = slider("Opacity of labels", 0, 100, 5);
    opacity.input.value = "50";
    opacity.output.value = "50 %";
    opacity.input.oninput = () => {
      opacity.output.value = `${opacity.input.value} %`;
      this.viewer?.setOpacity(opacity.input.valueAsNumber / 100);
    };
    this.showWindow(40, 400);
    for (const [layout, one] of this.layouts) {
      one.onclick = () => {
        this.showLayout(layout);
        this.viewer?.setLayout(layout);
      };
    }
    return element(
      "div",
      { className: "tools" },
      group("View", ...this.layouts.values()),
      this.resolutions(artifacts, shown),
      group("Window", ...WINDOWS.map(([name, level, width]) => button(name, () => choose(level, width)))),
      this.level.label,
      this.width.label,
      opacity.label,
      element("p", {
        className: "quiet",
        textContent: "Click to move the crosshair, drag with the right button to change the window.",
      }),
    );
  }

  /** The choice between the preview and the files on the scan's own grid, where the job wrote those. */
  private resolutions(artifacts: Artifact[], shown: string[]): HTMLElement | null {
    const choices = [PREVIEW, FULL].map((names) => ({ names, files: named(artifacts, names) }));
    if (choices.some(({ files }) => files.includes(undefined))) return null;
    return group(
      "Resolution",
      ...choices.map(({ names, files }) => {
        const bytes = (files as Artifact[]).reduce((sum, file) => sum + file.bytes, 0);
        const one = button(names === PREVIEW ? "Preview" : `Full, ${size(bytes)}`, () => {
          if (names !== shown) void this.load(artifacts, names);
        });
        one.ariaPressed = String(names === shown);
        return one;
      }),
    );
  }

  private showLayout(shown: Layout): void {
    for (const [layout, one] of this.layouts) one.ariaPressed = String(layout === shown);
  }

  private showWindow(level: number, width: number): void {
    for (const [one, value] of [
      [this.level, level],
      [this.width, width],
    ] as const) {
      one.input.value = String(value);
      one.output.value = `${Math.round(value)} HU`;
    }
  }

  private showPlace({ lps, hu, label }: Place): void {
    const name = this.labels.find((one) => one.index === label)?.name;
    const [x, y, z] = lps.map((value) => value.toFixed(1));
    this.place.textContent = `L ${x}, P ${y}, S ${z} mm: ${Math.round(hu)} HU${name ? `, ${displayName(this.findings, name)}` : ""}`;
  }

  private showLegend(): void {
    const { organs, lesion_labels: lesions } = this.findings;
    const found = (names: Set<string>) => this.labels.filter((label) => names.has(label.name));
    const groups: [string, Label[]][] = [
      ["Lesions", found(new Set(lesions.filter((one) => one.count > 0).map((one) => one.label)))],
      ["Organs", found(new Set(organs.filter((one) => one.present).map((one) => one.label)))],
    ];
    this.panel.replaceChildren(
      element("h3", { textContent: "Labels" }),
      ...groups.filter(([, labels]) => labels.length).map(([title, labels]) => this.labelGroup(title, labels)),
    );
  }

  private labelGroup(title: string, labels: Label[]): HTMLElement {
    const whole = element("input", { type: "checkbox", checked: true });
    const single = labels.map((label) => ({ label, input: element("input", { type: "checkbox", checked: true }) }));
    const show = (changed: typeof single) => {
      for (const visible of [true, false]) {
        const indices = changed.filter(({ input }) => input.checked === visible).map(({ label }) => label.index);
        if (indices.length) this.viewer?.setVisible(indices, visible);
      }
      const on = single.filter(({ input }) => input.checked).length;
      whole.checked = on === single.length;
      whole.indeterminate = on > 0 && on < single.length;
    };
    whole.onchange = () => {
      for (const { input } of single) input.checked = whole.checked;
      show(single);
    };
    return element(
      "fieldset",
      {},
      element("legend", {}, element("label", { className: "check" }, whole, title)),
      element(
        "div",
        { className: "labels" },
        ...single.map((one) => {
          one.input.onchange = () => show([one]);
          const swatch = element("span", { className: "swatch" });
          swatch.style.backgroundColor = `rgb(${one.label.color.join(" ")})`;
          return element("label", { className: "check" }, one.input, swatch, displayName(this.findings, one.label.name));
        }),
      ),
    );
  }
}

async function volume(artifact: Artifact): Promise<ArrayBuffer> {
  return gunzip(await (await request(artifact.href)).blob());
}

function displayName(findings: Findings, label: string): string {
  const known = [...findings.organs, ...findings.lesion_labels].find((one) => one.label === label);
  return known?.display_name ?? label;
}

function group(name: string, ...buttons: HTMLButtonElement[]): HTMLElement {
  const properties = { className: "group", role: "group", ariaLabel: name };
  return element("div", properties, element("span", { textContent: name }), ...buttons);
}

function slider(name: string, min: number, max: number, step: number) {
  const input = element("input", { type: "range", min: String(min), max: String(max), step: String(step) });
  const output = element("output");
  return { input, output, label: element("label", { className: "slider" }, name, input, output) };
}

// Tables

function lesionTable(findings: Findings, goTo: (lesion: Lesion) => void): HTMLElement {
  const missed = findings.lesion_labels.filter((one) => one.count === 0).map((one) => one.display_name);
  const rows = findings.lesions.map((lesion) => {
    const go = button(`${lesion.display_name} ${lesion.id.split("-").pop()}`, () => {
      for (const row of rows) row.removeAttribute("aria-current");
      made.setAttribute("aria-current", "true");
      goTo(lesion);
    });
    const host = lesion.host_organ ? displayName(findings, lesion.host_organ) : "";
    const made = element(
      "tr",
      {},
      element("td", {}, go),
      element("td", { textContent: host }),
      number(lesion.volume_ml, 2),
      cell(`${lesion.longest_axial_diameter_mm.toFixed(1)} × ${lesion.perpendicular_diameter_mm.toFixed(1)}`),
      number(lesion.mean_hu, 0),
      number(lesion.mean_probability, 2),
    );
    return made;
  });
  return element(
    "section",
    { className: "lesions" },
    element("h3", { textContent: "Lesions" }),
    rows.length
      ? table(["Lesion", "In", "ml", "Axes, mm", "Mean HU", "Probability"], rows)
      : element("p", { textContent: "None found." }),
    missed.length ? element("p", { className: "quiet", textContent: `Looked for and not found: ${missed.join(", ")}.` }) : null,
  );
}

function organTable(findings: Findings): HTMLElement {
  const present = findings.organs.filter((organ) => organ.present);
  const absent = findings.organs.filter((organ) => !organ.present).map((organ) => organ.display_name);
  const rows = present.map((organ) =>
    element(
      "tr",
      {},
      element("td", { textContent: organ.display_name }),
      number(organ.volume_ml, 1),
      number(organ.mean_hu, 0),
      number(organ.sd_hu, 0),
      element("td", { textContent: organ.cut_sides.join(", ") }),
    ),
  );
  return element(
    "section",
    { className: "organs" },
    element("h3", { textContent: "Organs" }),
    rows.length
      ? table(["Organ", "ml", "Mean HU", "SD HU", "Cut at"], rows)
      : element("p", { textContent: "None found." }),
    absent.length ? element("p", { className: "quiet", textContent: `Looked for and not found: ${absent.join(", ")}.` }) : null,
  );
}

/** A table that scrolls by itself; the head of a column is laid out like what stands below it. */
function table(heads: string[], rows: HTMLTableRowElement[]): HTMLElement {
  const cells = heads.map((head, column) =>
    element("th", { textContent: head, scope: "col", className: rows[0]?.cells[column]?.className ?? "" }),
  );
  const made = element("table", {}, element("thead", {}, element("tr", {}, ...cells)), element("tbody", {}, ...rows));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `Table: ${heads[0]}` }, made);
}

function number(value: number | null, digits: number): HTMLTableCellElement {
  return cell(value === null ? "–" : value.toFixed(digits));
}

function cell(text: string): HTMLTableCellElement {
  return element("td", { className: "number", textContent: text });
}

// Files and provenance

function downloads(artifacts: Artifact[], problem: (text: string) => void): HTMLElement {
  const item = (artifact: Artifact) => {
    const link = element("a", { href: artifact.href, textContent: artifact.name });
    link.onclick = (event) => {
      event.preventDefault();
      save(artifact).catch((error: Error) => problem(error.message));
    };
    return element("li", {}, link, element("span", { className: "quiet", textContent: ` ${size(artifact.bytes)}` }));
  };
  return element(
    "section",
    { className: "files" },
    element("h3", { textContent: "Files" }),
    element("ul", {}, ...artifacts.map(item)),
  );
}

function size(bytes: number): string {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

function provenance({ provenance: made, source, statement }: Findings): HTMLElement {
  const rows: [string, string][] = [
    ["Model", `${made.bundle.name} ${made.bundle.version}`],
    ["Software", `${made.software} ${made.software_version}`],
    ["Engine", `${made.engine}, ${made.precision}`],
    ["Grid", `${source.shape.join(" × ")} voxels of ${source.spacing_mm.map((mm) => mm.toFixed(2)).join(" × ")} mm`],
    ["Input SHA-256", made.input_sha256],
    ["Masks SHA-256", made.mask_sha256],
    ["Model SHA-256", made.bundle.sha256],
  ];
  return element(
    "footer",
    { className: "provenance" },
    element("h3", { textContent: "How it was made" }),
    element(
      "dl",
      {},
      ...rows.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]),
    ),
    element("p", { className: "limit", textContent: statement }),
  );
}
