// The volumes: three planes and a 3-D view of the scan, with the labels over it.

import { DRAG_MODE, MULTIPLANAR_TYPE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";

import type { Label } from "./labels";

export type Layout = "all" | "planes" | "axial" | "coronal" | "sagittal" | "3d";

/** What lies under the crosshair; a position in the patient as in DICOM (LPS, mm). */
export interface Place {
  lps: [number, number, number];
  hu: number;
  label: number;
}

const SLICES: Record<Layout, SLICE_TYPE> = {
  all: SLICE_TYPE.MULTIPLANAR,
  planes: SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  "3d": SLICE_TYPE.RENDER,
};
// Steps along right, anterior and superior.
const KEYS: Record<string, [number, number, number]> = {
  ArrowLeft: [1, 0, 0],
  ArrowRight: [-1, 0, 0],
  ArrowUp: [0, 1, 0],
  ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1],
  PageDown: [0, 0, -1],
};

export interface Watchers {
  moved(place: Place): void;
  windowed(level: number, width: number): void;
}

export class Viewer {
  private readonly hidden = new Set<number>();

  private constructor(
    private readonly niivue: Niivue,
    private readonly canvas: HTMLCanvasElement,
    private readonly labels: Label[],
    private opacity: number,
  ) {}

  /** Shows both volumes, uncompressed NIfTI files on one grid. Throws where the browser has no WebGL 2. */
  static async open(
    canvas: HTMLCanvasElement,
    ct: ArrayBuffer,
    labelMap: ArrayBuffer,
    labels: Label[],
    watchers: Watchers,
  ): Promise<Viewer> {
    const niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [1, 0.85, 0.2, 0.9],
      crosshairWidth: 0.25,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false, // the page takes what is dropped
      fontColor: [1, 1, 1, 1],
      isRadiologicalConvention: true,
      loadingText: "",
      multiplanarPadPixels: 12,
      logLevel: "error",
      scrollRequiresFocus: true,
      show3Dcrosshair: true,
      showAllOrientationMarkers: true,
    });
    niivue.opts.dragMode = DRAG_MODE.windowing; // of the right button
    await niivue.attachToCanvas(canvas);
    const viewer = new Viewer(niivue, canvas, labels, 0.5);
    niivue.scene.renderAzimuth = 180; // from the front
    niivue.scene.renderElevation = 10;
    viewer.setLayout(viewer.startingLayout);
    const scan = await NVImage.loadFromUrl({ url: ct, name: "ct.nii", colormap: "gray", cal_min: -160, cal_max: 240 });
    const overlay = await NVImage.loadFromUrl({ url: labelMap, name: "labels.nii", opacity: viewer.opacity });
    overlay.setColormapLabel(viewer.colors());
    niivue.volumes = [scan];
    niivue.addVolume(overlay); // sends both to the graphics card
    niivue.onLocationChange = (location) => {
      const { mm, values } = location as { mm: ArrayLike<number>; values: { value: number }[] };
      watchers.moved({
        lps: [-mm[0]!, -mm[1]!, mm[2]!],
        hu: values[0]?.value ?? 0,
        label: Math.round(values[1]?.value ?? 0),
      });
    };
    const told = () => watchers.windowed((scan.cal_min! + scan.cal_max!) / 2, scan.cal_max! - scan.cal_min!);
    niivue.onIntensityChange = told;
    canvas.addEventListener("pointermove", told);
    canvas.addEventListener("keydown", viewer.step);
    niivue.createOnLocationChange();
    return viewer;
  }

  close(): void {
    this.canvas.removeEventListener("keydown", this.step);
    this.niivue.cleanup();
    this.niivue.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }

  setWindow(level: number, width: number): void {
    const scan = this.niivue.volumes[0]!;
    scan.cal_min = level - width / 2;
    scan.cal_max = level + width / 2;
    this.niivue.refreshLayers(scan, 0);
    this.niivue.drawScene();
  }

  setLayout(layout: Layout): void {
    const narrow = this.canvas.clientWidth < 0.8 * this.canvas.clientHeight;
    this.niivue.opts.multiplanarShowRender = layout === "all" ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
    this.niivue.opts.multiplanarLayout = narrow ? MULTIPLANAR_TYPE.COLUMN : MULTIPLANAR_TYPE.GRID;
    this.niivue.setSliceType(SLICES[layout]);
  }

  /** Where the processor draws, as on a remote desktop, a 3-D view takes seconds: it comes when it is asked for. */
  get startingLayout(): Layout {
    const info = this.niivue.gl.getExtension("WEBGL_debug_renderer_info");
    const renderer = info ? String(this.niivue.gl.getParameter(info.UNMASKED_RENDERER_WEBGL)) : "";
    return /swiftshader|llvmpipe|software|basic render/i.test(renderer) ? "planes" : "all";
  }

  setOpacity(opacity: number): void {
    this.opacity = opacity;
    this.niivue.volumes[1]!.opacity = opacity;
    this.refreshLabels();
  }

  setVisible(indices: Iterable<number>, visible: boolean): void {
    for (const index of indices) {
      if (visible) this.hidden.delete(index);
      else this.hidden.add(index);
    }
    this.niivue.volumes[1]!.setColormapLabel(this.colors());
    this.refreshLabels();
  }

  /** Move the crosshair of every plane there (LPS, mm). */
  goTo(lps: readonly number[]): void {
    const ras: [number, number, number] = [-lps[0]!, -lps[1]!, lps[2]!];
    this.niivue.scene.crosshairPos = this.niivue.mm2frac(ras);
    this.niivue.createOnLocationChange();
    this.niivue.drawScene();
  }

  private readonly step = (event: KeyboardEvent): void => {
    const step = KEYS[event.key];
    if (!step) return;
    event.preventDefault();
    this.niivue.moveCrosshairInVox(...step);
  };

  private refreshLabels(): void {
    this.niivue.refreshLayers(this.niivue.volumes[1]!, 1);
    this.niivue.drawScene();
  }

  private colors(): { R: number[]; G: number[]; B: number[]; A: number[]; I: number[]; labels: string[] } {
    const shown = this.labels.map((label) => (this.hidden.has(label.index) ? 0 : 255));
    return {
      R: [0, ...this.labels.map((label) => label.color[0])],
      G: [0, ...this.labels.map((label) => label.color[1])],
      B: [0, ...this.labels.map((label) => label.color[2])],
      A: [0, ...shown],
      I: [0, ...this.labels.map((label) => label.index)],
      labels: ["", ...this.labels.map((label) => label.name)],
    };
  }
}
