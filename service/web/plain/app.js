// The page: upload a study, follow its job, show what was found. Plain JavaScript, no build step, no other host.
"use strict";

const $ = (id) => document.getElementById(id);
const FINAL = ["succeeded", "failed", "canceled"];

// The key lives in this tab only. `viscera serve` prints an address that brings it along, behind the #.
const KEY = "viscera-key";
const brought = /^#key=([\w-]+)$/.exec(location.hash);
if (brought) {
  sessionStorage.setItem(KEY, brought[1]);
  history.replaceState(null, "", location.pathname);
}

function authorization() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function get(path, options = {}) {
  const response = await fetch(path, { ...options, headers: { ...authorization(), ...options.headers } });
  if (response.status === 401) $("access").hidden = false;
  if (!response.ok && response.status !== 304) throw new Error(describe(await response.json()));
  return response;
}

async function api(path, options) {
  return (await get(path, options)).json();
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
  const { models } = await api("/v1/models");
  $("access").hidden = true;
  $("model").replaceChildren();
  for (const model of models) {
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
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
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
  let etag = "";
  for (;;) {
    // The service answers when the job has changed, or after 20 seconds.
    const response = await get(`/v1/jobs/${encodeURIComponent(id)}${etag && "?wait=20"}`, { headers: { "If-None-Match": etag } });
    if (response.status === 304) continue;
    etag = response.headers.get("ETag");
    const job = await response.json();
    showJob(job);
    if (FINAL.includes(job.status)) {
      if (job.status === "succeeded") await showResult(job);
      if (job.status === "failed") showProblem(describe(job.error));
      return;
    }
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
  const [findings, listing] = await Promise.all([api(job.links.findings), api(job.links.artifacts)]);
  const overview = listing.artifacts.find((artifact) => artifact.name === "overview.png");
  if (overview) {
    const address = await contentOf(overview);
    $("overview").src = address;
    $("overview-link").href = address;
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
    link.onclick = (event) => {
      event.preventDefault();
      save(artifact).catch((error) => showProblem(error.message));
    };
    const item = element("li", "");
    item.append(link);
    return item;
  }));
  $("result").hidden = false;
}

// A link cannot carry a key, so files are fetched and handed over as objects of this page.
async function contentOf(artifact) {
  return URL.createObjectURL(await (await get(artifact.href)).blob());
}

async function save(artifact) {
  const link = element("a", "");
  link.href = await contentOf(artifact);
  link.download = artifact.name.split("/").pop();
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
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

$("access").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("problem").hidden = true;
  start();
});
$("upload").addEventListener("submit", submit);
for (const [one, other] of [["files", "folder"], ["folder", "files"]]) {
  $(one).addEventListener("change", () => {
    $(other).value = "";
    $("files").required = $("folder").files.length === 0;
  });
}
function start() {
  listModels().catch((error) => showProblem(error.message));
  if (/^#[0-9a-f-]{36}$/.test(location.hash)) follow(location.hash.slice(1)).catch((error) => showProblem(error.message));
}

start();
