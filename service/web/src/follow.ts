// Following one job: by server-sent events, which fetch reads because EventSource cannot carry a key; by polling where
// a stream does not come through.

import { type Job, json, Refusal, request } from "./api";

const FIRST_EVENT_MS = 5000; // a proxy that collects answers would keep the first event as well

export const hasEnded = (job: Job): boolean => ["succeeded", "failed", "canceled"].includes(job.status);

/** Show every change of the job until it has ended or the signal is given. */
export async function follow(id: string, show: (job: Job) => void, signal: AbortSignal): Promise<void> {
  const path = `/v1/jobs/${encodeURIComponent(id)}`;
  let streams = true;
  while (!signal.aborted) {
    if (streams) streams = await readEvents(`${path}/events`, show, signal);
    const response = await request(path, { signal });
    const job = (await response.json()) as Job;
    show(job);
    if (hasEnded(job)) return;
    if (!streams) await pause(1000 * (Number(response.headers.get("Retry-After")) || 1), signal);
  }
}

/** Show what the stream brings until it ends; false when it brought nothing. */
async function readEvents(path: string, show: (job: Job) => void, signal: AbortSignal): Promise<boolean> {
  const stop = new AbortController();
  const either = AbortSignal.any([signal, stop.signal]);
  const patience = setTimeout(() => stop.abort(), FIRST_EVENT_MS);
  let shown = 0;
  try {
    const response = await request(path, { signal: either, headers: { Accept: "text/event-stream" } });
    for await (const data of eventData(response.body!)) {
      clearTimeout(patience);
      show(JSON.parse(data) as Job);
      shown += 1;
    }
  } catch (error) {
    if (signal.aborted) throw error;
    if (!(error instanceof Refusal || error instanceof TypeError || stop.signal.aborted)) throw error;
  } finally {
    clearTimeout(patience);
  }
  return shown > 0;
}

async function* eventData(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (pending + value).replaceAll("\r\n", "\n").split("\n\n");
    pending = events.pop()!;
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

export async function listJobs(): Promise<Job[]> {
  return (await json<{ jobs: Job[] }>("/v1/jobs?limit=30")).jobs;
}
