// The label table in the header of a label map: which voxel value has which name and color.

export interface Label {
  index: number;
  name: string;
  color: [number, number, number];
}

const HEADER_BYTES = 348;

/** The labels of an uncompressed NIfTI-1 file, from the first of its header extensions. */
export function labelsOf(nifti: ArrayBuffer): Label[] {
  const view = new DataView(nifti);
  const start = HEADER_BYTES + 4;
  const size = view.getInt32(start, true);
  const xml = new TextDecoder().decode(new Uint8Array(nifti, start + 8, size - 8)).replace(/\0+$/, "");
  const table = new DOMParser().parseFromString(xml, "application/xml");
  return [...table.querySelectorAll("Label")].map((row) => {
    const channel = (name: string) => Math.round(255 * Number(row.getAttribute(name)));
    return {
      index: Number(row.getAttribute("Key")),
      name: row.textContent ?? "",
      color: [channel("Red"), channel("Green"), channel("Blue")],
    };
  });
}

export async function gunzip(content: Blob): Promise<ArrayBuffer> {
  return new Response(content.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
