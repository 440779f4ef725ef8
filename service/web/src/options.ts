// What a job is asked for: the form's choices, made from the models of the service.

import { type Form, json, type Model } from "./api";
import { element, part } from "./dom";
import type { Choices } from "./uploads";

// As in the field `outputs` of the API; a test compares them.
const OUTPUTS: Record<string, [title: string, byDefault: boolean]> = {
  label_map: ["Label map (NIfTI)", true],
  masks: ["A mask for each label (NIfTI)", true],
  overview: ["Overview picture", true],
  key_images: ["Key image of each lesion", true],
  preview: ["Preview for this page", true],
  csv: ["Table (CSV)", true],
  html: ["Report (HTML)", true],
  pdf: ["Report (PDF)", true],
  seg: ["DICOM SEG", true],
  sr: ["DICOM SR", true],
  scan: ["Scan (NIfTI), for full resolution on this page", false],
  rtstruct: ["DICOM RT Structure Set", false],
  encapsulated_pdf: ["Report as DICOM (Encapsulated PDF)", false],
};
// What is sent as it stands in the element of that id, unless it is the first of a list or empty.
const PLAIN = ["mode", "series", "overlap", "postprocessing", "seg_type"] as const satisfies readonly (keyof Form)[];
const GROUPS = { organ: "Organs", tumor: "Tumors", cyst: "Cysts" } as const;

let models: Model[] = [];

export async function loadOptions(): Promise<void> {
  ({ models } = await json<{ models: Model[] }>("/v1/models"));
  const select = part<HTMLSelectElement>("model");
  select.replaceChildren(
    ...models.map((model) => new Option(`${model.name} ${model.version}`, model.id, model.default, model.default)),
  );
  select.onchange = showModel;
  part("outputs").replaceChildren(
    ...Object.entries(OUTPUTS).map(([name, [title, checked]]) => checkbox(name, title, checked)),
  );
  const target = part<HTMLSelectElement>("target");
  target.onchange = () => {
    part("labels").hidden = target.value !== "labels";
  };
  showModel();
}

function showModel(): void {
  const model = models.find((one) => one.id === part<HTMLSelectElement>("model").value);
  part("model-note").textContent = model ? model.intended_use : "";
  part("labels").replaceChildren(
    ...Object.entries(GROUPS).map(([kind, title]) => {
      const labels = (model?.labels ?? []).filter((label) => label.kind === kind);
      return element(
        "fieldset",
        { hidden: !labels.length },
        element("legend", { textContent: title }),
        ...labels.map((label) => checkbox(label.name, label.display_name, false)),
      );
    }),
  );
}

function checkbox(value: string, title: string, checked: boolean): HTMLLabelElement {
  return element("label", { className: "check" }, element("input", { type: "checkbox", value, checked }), title);
}

/** The fields of the request for each of so many studies; what is at its default is left to the service. Throws where a
 * choice is missing or wrong. */
export function choices(studies: number): Choices {
  const fields: Choices = [];
  for (const name of PLAIN) {
    const control = part<HTMLInputElement | HTMLSelectElement>(name);
    if (!control.checkValidity()) throw new Error(wrong(control));
    const untouched = control instanceof HTMLSelectElement ? control.selectedIndex === 0 : control.value === "";
    if (!untouched) fields.push([name, control.value]);
  }
  if (studies > 1 && part<HTMLInputElement>("series").value) {
    throw new Error("A series belongs to one study: send that study alone, or leave the series out.");
  }
  const model = part<HTMLSelectElement>("model").value;
  if (model) fields.push(["model", model]);
  const target = part<HTMLSelectElement>("target").value;
  if (target === "labels") {
    const labels = checked("labels");
    if (!labels.length) throw new Error("Choose at least one label, or everything.");
    fields.push(["targets", labels.join(",")]);
  } else if (target !== "all") {
    fields.push(["targets", target]);
  }
  const outputs = checked("outputs");
  if (!outputs.length) throw new Error("Choose at least one kind of file.");
  const untouched = Object.entries(OUTPUTS).every(([name, [, byDefault]]) => outputs.includes(name) === byDefault);
  if (!untouched) fields.push(["outputs", outputs.join(",")]);
  if (part<HTMLInputElement>("deidentify").checked) fields.push(["deidentify", "true"]);
  return fields;
}

/** What is wrong with a control, in a sentence; it is brought into view. */
function wrong(control: HTMLInputElement | HTMLSelectElement): string {
  for (let fold = control.closest("details"); fold; fold = fold.parentElement?.closest("details") ?? null) fold.open = true;
  control.reportValidity();
  return control.title || control.validationMessage;
}

function checked(id: string): string[] {
  return [...part(id).querySelectorAll<HTMLInputElement>("input:checked")].map((input) => input.value);
}
