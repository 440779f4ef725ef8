// The page: studies go in on the left, one job is shown on the right. The address keeps the job's id and nothing else.

import { type Job, request, sentence, takeKeyFromAddress } from "./api";
import { button, element, part } from "./dom";
import { follow, hasEnded, listJobs } from "./follow";
import { choices, loadOptions } from "./options";
import { type Shown, showResult } from "./result";
import { chosenStudies, droppedStudies, type Study } from "./studies";
import { type Upload, Uploads } from "./uploads";

const LIST_MS = 3000;
const JOB_ID = /^#([0-9a-f-]{36})$/;

const uploads = new Uploads(showUploads, (job) => {
  void refreshJobs();
  if (!shownId()) location.hash = job.id;
});
let jobs: Job[] = [];
let following: AbortController | null = null;
let result: Shown | null = null;

const shownId = (): string | null => JOB_ID.exec(location.hash)?.[1] ?? null;

// Studies

function submit(studies: Study[]): void {
  const problem = part("submit-problem");
  problem.textContent = "";
  try {
    if (!studies.length) throw new Error("There is no file in it.");
    const chosen = choices(studies.length);
    leave(); // what is sent now is what the person wants to see next
    for (const study of studies) uploads.add(study, chosen);
    part<HTMLInputElement>("series").value = ""; // the next study has others
  } catch (error) {
    problem.textContent = (error as Error).message;
  }
}

function listenForStudies(): void {
  const zone = part("drop");
  const over = (event: DragEvent, inside: boolean) => {
    event.preventDefault();
    zone.classList.toggle("over", inside);
  };
  // A file that misses the zone must not replace the page.
  for (const name of ["dragenter", "dragover"] as const) addEventListener(name, (event) => over(event, true));
  addEventListener("dragleave", (event) => over(event, false));
  addEventListener("drop", (event) => {
    over(event, false);
    if (event.dataTransfer) void droppedStudies(event.dataTransfer.items).then(submit);
  });
  for (const id of ["files", "folder"]) {
    const input = part<HTMLInputElement>(id);
    input.onchange = () => {
      submit(chosenStudies(input.files ?? []));
      input.value = "";
    };
  }
  part<HTMLFormElement>("submit").onsubmit = (event) => event.preventDefault();
}

function showUploads(): void {
  part("uploads").replaceChildren(...uploads.waiting.map(uploadItem));
}

function uploadItem(upload: Upload): HTMLElement {
  const { study, problem, percent } = upload;
  const files = study.files.length === 1 ? "" : `, ${study.files.length} files`;
  return element(
    "li",
    { className: "upload" },
    element("span", { className: "title", textContent: `${study.title}${files}` }),
    problem === null
      ? element("progress", { max: 100, value: percent, ariaLabel: "Upload" })
      : element("p", { className: "problem", role: "alert", textContent: problem }),
    element(
      "span",
      { className: "actions" },
      problem === null ? `${percent.toFixed(0)} %` : button("Retry", () => uploads.retry(upload)),
      button(problem === null ? "Stop" : "Dismiss", () => uploads.remove(upload)),
    ),
  );
}

// The list of jobs

async function refreshJobs(): Promise<void> {
  jobs = await listJobs();
  showJobs();
}

async function keepListFresh(): Promise<void> {
  for (;;) {
    if (!document.hidden) await refreshJobs().catch(() => undefined); // said where the job is shown
    await new Promise((resolve) => setTimeout(resolve, LIST_MS));
  }
}

function showJobs(): void {
  part("no-jobs").hidden = jobs.length > 0 || uploads.waiting.length > 0;
  const focused = (document.activeElement as HTMLElement | null)?.dataset.job;
  part("jobs").replaceChildren(...jobs.map(jobItem));
  if (focused) document.querySelector<HTMLElement>(`[data-job="${CSS.escape(focused)}"]`)?.focus();
}

function jobItem(job: Job): HTMLElement {
  const link = element(
    "a",
    { href: `#${job.id}` },
    element("span", { className: "title", textContent: uploads.ofJob(job.id)?.study.title ?? job.id.slice(0, 8) }),
    element("span", { className: `status ${job.status}`, textContent: job.status }),
    element("span", { className: "quiet", textContent: summary(job) }),
    hasEnded(job) ? null : element("progress", { max: 100, value: job.percent, ariaLabel: "Progress" }),
  );
  link.dataset.job = job.id;
  if (job.id === shownId()) link.setAttribute("aria-current", "page");
  return element("li", {}, link);
}

function summary(job: Job): string {
  if (job.status === "failed" && job.error) return job.error.title;
  if (job.status === "running") return `${job.stage ?? "starting"}, ${job.percent.toFixed(0)} %`;
  if (job.status === "queued") return job.queue_position ? `place ${job.queue_position}` : "";
  return new Date(job.created_at).toLocaleString();
}

// One job

function showPlace(): void {
  following?.abort();
  result?.close();
  result = null;
  const id = shownId();
  part("job").hidden = id === null;
  part("welcome").hidden = id !== null;
  showJobs();
  document.title = "Viscera";
  if (id === null) return;
  part("job-id").textContent = id.slice(0, 8);
  part("result").replaceChildren();
  part("job-actions").replaceChildren();
  part("status").textContent = "";
  part("percent").textContent = "";
  tell("");
  following = new AbortController();
  const { signal } = following;
  follow(id, (job) => !signal.aborted && showJob(job), signal)
    .then(() => refreshJobs())
    .catch((error: Error) => {
      if (signal.aborted) return;
      part("job-progress").hidden = true;
      tell(error.message);
    });
}

/** Show no job. */
function leave(): void {
  history.pushState(null, "", location.pathname);
  showPlace();
}

function tell(problem: string): void {
  part("problem").textContent = problem;
}

function showJob(job: Job): void {
  const ended = hasEnded(job);
  part("job-progress").hidden = ended;
  part<HTMLProgressElement>("progress").value = job.percent;
  const place = job.queue_position ? `, place ${job.queue_position}` : "";
  const status = job.cancel_requested ? "stopping" : `${job.status}${place}${job.stage ? `: ${job.stage}` : ""}`;
  if (part("status").textContent !== status) part("status").textContent = status; // said aloud at each change only
  part("percent").textContent = [`${job.percent.toFixed(0)} %`, timeLeft(job)].filter(Boolean).join(", ");
  document.title = ended ? "Viscera" : `${job.percent.toFixed(0)} % · Viscera`;
  part("job-actions").replaceChildren(...actions(job));
  if (job.status === "canceled") tell("This job was canceled.");
  if (job.status === "failed") tell(job.error ? sentence(job.error) : "This job failed.");
  if (job.status === "succeeded" && !result) void show(job);
}

async function show(job: Job): Promise<void> {
  const placeholder: Shown = { close: () => undefined };
  result = placeholder;
  const into = part("result");
  try {
    const shown = await showResult(job, into, tell);
    if (result === placeholder) result = shown;
    else shown.close();
  } catch (error) {
    if (result === placeholder) tell((error as Error).message);
  }
}

/** From the speed since the job began; of a young job nothing can be said. */
function timeLeft(job: Job): string {
  if (job.status !== "running" || !job.started_at || job.percent < 5) return "";
  const passed = (Date.now() - Date.parse(job.started_at)) / 1000;
  const left = (passed * (100 - job.percent)) / job.percent;
  return left < 90 ? `about ${Math.max(1, Math.round(left))} s left` : `about ${Math.round(left / 60)} min left`;
}

function actions(job: Job): HTMLElement[] {
  const act = (path: string, method: string, then: () => void) => () =>
    void request(path, { method }).then(then, (error: Error) => tell(error.message));
  if (job.links.cancel) {
    const stop = button("Cancel", act(job.links.cancel, "POST", () => void refreshJobs()));
    stop.disabled = job.cancel_requested;
    return [stop];
  }
  const made = [
    button("Delete", () => {
      if (!confirm("Delete this job and all its files?")) return;
      act(job.links.self, "DELETE", () => {
        jobs = jobs.filter((one) => one.id !== job.id);
        leave();
      })();
    }),
  ];
  const upload = uploads.ofJob(job.id);
  if (upload && job.status !== "succeeded") {
    made.unshift(
      button("Retry", () => {
        leave();
        uploads.add(upload.study, upload.choices);
      }),
    );
  }
  return made;
}

takeKeyFromAddress();
listenForStudies();
addEventListener("popstate", showPlace); // of links, of the history, and of a new address behind the #
showPlace();
void loadOptions().catch((error: Error) => {
  part("submit-problem").textContent = error.message;
});
void keepListFresh();
