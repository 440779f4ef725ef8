// The page: upload a study, follow its job, show what was found. Plain JavaScript, no build step, no other host.
"use strict";

const $ = (id) => document.getElementById(id);
const FINAL = ["succeeded", "failed", "canceled"];

async function api(path, options) {
  const response = await fetch(path, options);
  if (response.status === 204) return { response, body: null };
  const body = await response.json();
  if (!response.ok) throw new Error(describe(body));
  return { response, body };
}

function describe(problem) {
  return problem.cause ? `${problem.cause.title}: ${problem.cause.detail}` : `${problem.title}: ${problem.detail}`;
}

function showProblem(text) {
  $("job").hidden = false;
  $("problem").hidden = false;
  $("problem").textContent = text;
}

async function listModels() {
  const { body } = await api("/v1/models");
  for (const model of body.models) {
    const option = new Option(`${model.name} ${model.version} (${model.labels.length} labels)`, model.id, model.default, model.default);
    option.title = model.intended_use;
    $("model").add(option);
  }
}

function chosenFiles() {
  return [...$("files").files, ...$("folder").files].filter((file) => !file.name.startsWith("."));
}

// XMLHttpRequest, because fetch cannot report how much of the upload was sent.
function send(form) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/v1/jobs");
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      if (!event.lengthComputable) return;
      const percent = (100 * event.loaded) / event.total;
      $("progress").value = percent;
      $("status").textContent = `uploading, ${percent.toFixed(0)} %`;
    };
    request.onload = () =>
      request.status === 202 ? resolve(request.response) : reject(new Error(request.response ? describe(request.response) : "The upload was refused."));
    request.onerror = () => reject(new Error("The connection was closed; the service may be down or the upload too large."));
    request.send(form);
  });
}

async function submit(event) {
  event.preventDefault();
  const form = new FormData();
  // Neutral names: a file name may hold a patient's name.
  chosenFiles().forEach((file, index) => {
    const suffix = /(\.nii\.gz|\.nii|\.zip)$/i.exec(file.name);
    form.append("files", file, `${index + 1}${suffix ? suffix[0].toLowerCase() : ".dcm"}`);
  });
  if ($("model").value) form.append("model", $("model").value);
  $("result").hidden = true;
  $("problem").hidden = true;
  $("warnings").replaceChildren();
  $("job").hidden = false;
  $("upload").querySelector("button").disabled = true;
  try {
    const job = await send(form);
    location.hash = job.id;
    await follow(job.id);
  } catch (error) {
    showProblem(error.message);
  } finally {
    $("upload").querySelector("button").disabled = false;
  }
}

async function follow(id) {
  $("job").hidden = false;
  $("job-id").textContent = id;
  for (;;) {
    const { response, body: job } = await api(`/v1/jobs/${encodeURIComponent(id)}`);
    showJob(job);
    if (FINAL.includes(job.status)) {
      if (job.status === "succeeded") await showResult(job);
      if (job.status === "failed") showProblem(describe(job.error));
      return;
    }
    const seconds = Number(response.headers.get("Retry-After")) || 1;
    await new Promise((resume) => setTimeout(resume, 1000 * seconds));
  }
}

function showJob(job) {
  const place = job.queue_position ? `, place ${job.queue_position} in the queue` : "";
  const stage = job.stage ? `, ${job.stage}` : "";
  $("progress").value = job.percent;
  $("status").textContent = `${job.status}${place}${stage}, ${job.percent.toFixed(0)} %`;
  $("warnings").replaceChildren(...job.warnings.map((warning) => element("li", warning.message)));
  $("cancel").hidden = !job.links.cancel;
  $("cancel").onclick = () => api(job.links.cancel, { method: "POST" }).catch((error) => showProblem(error.message));
}

async function showResult(job) {
  const [{ body: findings }, { body: listing }] = await Promise.all([api(job.links.findings), api(job.links.artifacts)]);
  const overview = listing.artifacts.find((artifact) => artifact.name === "overview.png");
  if (overview) {
    $("overview").src = overview.href;
    $("overview-link").href = overview.href;
  }
  fill($("lesions"), ["Lesion", "In", "Volume, ml", "Longest axial, mm", "Across it, mm", "Probability"], findings.lesions.map((lesion) => [
    lesion.id, lesion.host_organ, lesion.volume_ml, lesion.longest_axial_diameter_mm, lesion.perpendicular_diameter_mm, lesion.mean_probability,
  ]));
  fill($("organs"), ["Organ", "Volume, ml", "Mean HU", "SD HU", "Cut by the field of view"], findings.organs.filter((organ) => organ.present).map((organ) => [
    organ.display_name, organ.volume_ml, organ.mean_hu, organ.sd_hu, organ.cut_sides.join(", "),
  ]));
  $("artifacts").replaceChildren(...listing.artifacts.map((artifact) => {
    const link = element("a", artifact.name);
    link.href = artifact.href;
    const item = element("li", "");
    item.append(link);
    return item;
  }));
  $("result").hidden = false;
}

function fill(table, heads, rows) {
  if (!rows.length) {
    table.replaceChildren(element("caption", "None found."));
    return;
  }
  const isNumber = heads.map((_, column) => rows.some((row) => typeof row[column] === "number"));
  const line = (tag, values) => {
    const made = element("tr", "");
    made.append(...values.map((value, column) => {
      const cell = element(tag, typeof value === "number" ? value.toFixed(2) : (value ?? ""));
      cell.className = isNumber[column] ? "number" : "";
      return cell;
    }));
    return made;
  };
  table.replaceChildren(line("th", heads), ...rows.map((row) => line("td", row)));
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

$("upload").addEventListener("submit", submit);
for (const [one, other] of [["files", "folder"], ["folder", "files"]]) {
  $(one).addEventListener("change", () => {
    $(other).value = "";
    $("files").required = $("folder").files.length === 0;
  });
}
listModels().catch((error) => showProblem(error.message));
if (/^#[0-9a-f-]{36}$/.test(location.hash)) follow(location.hash.slice(1)).catch((error) => showProblem(error.message));
