// The API of the service that this page came from: its types, its problems, and the key of this tab.

import type { components, paths } from "./openapi";

type Schemas = components["schemas"];
export type Job = Schemas["JobView"];
export type Findings = Schemas["Findings"];
export type Lesion = Schemas["LesionFinding"];
export type Model = Schemas["ModelView"];
export type Artifact = Schemas["ArtifactView"];
export type Form = paths["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"];
export type Problem = Schemas["Problem"];

const KEY = "viscera-key"; // in the storage of this tab: gone when it is closed

/** What the service answered instead of what was asked for, as a sentence. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message);
  }
}

export function sentence(problem: Pick<Problem, "title" | "detail"> & { cause?: Problem["cause"] }): string {
  const { title, detail } = problem.cause ?? problem;
  return `${title}: ${detail}`;
}

/** The key may come along behind the `#` of the page's address, which no server sees. */
export function takeKeyFromAddress(): void {
  const brought = /^#key=([\w.-]+)$/.exec(location.hash);
  if (!brought?.[1]) return;
  sessionStorage.setItem(KEY, brought[1]);
  history.replaceState(null, "", location.pathname);
}

export function authorization(): Record<string, string> {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

let asking: Promise<void> | null = null;

/** Ask for a key, once for all requests that wait for it. */
export function askForKey(refused: boolean): Promise<void> {
  asking ??= showKeyDialog(refused).finally(() => {
    asking = null;
  });
  return asking;
}

function showKeyDialog(refused: boolean): Promise<void> {
  const dialog = document.getElementById("access") as HTMLDialogElement;
  const input = dialog.querySelector("input")!;
  const form = dialog.querySelector("form")!;
  dialog.querySelector<HTMLElement>("[role=alert]")!.textContent = refused ? "That key was not accepted." : "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.oncancel = (event) => event.preventDefault(); // without a key there is nothing behind the dialog
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.close();
      resolve();
    };
  });
}

/** An answer with a good status; where the service does not know the key, another is asked for. */
export async function request(path: string, options: RequestInit = {}): Promise<Response> {
  for (;;) {
    const sent = authorization();
    let response: Response;
    try {
      response = await fetch(path, { ...options, headers: { ...sent, ...(options.headers as Record<string, string>) } });
    } catch (error) {
      if ((error as Error).name === "AbortError") throw error;
      throw new Refusal("The service does not answer; it may be down or starting.", 0);
    }
    if (response.status === 401) {
      // Another request may have got a new key in the meantime.
      if (sent.Authorization === authorization().Authorization) await askForKey("Authorization" in sent);
      continue;
    }
    if (!response.ok) throw new Refusal(await reason(response), response.status);
    return response;
  }
}

export async function json<Body>(path: string, options?: RequestInit): Promise<Body> {
  return (await request(path, options)).json() as Promise<Body>;
}

async function reason(response: Response): Promise<string> {
  try {
    return sentence((await response.json()) as Problem);
  } catch {
    return `The service answered with status ${response.status}.`;
  }
}

/** Hand a file over to the browser; a link by itself could not carry the key. */
export async function save(artifact: Artifact): Promise<void> {
  const content = await (await request(artifact.href)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = artifact.name.split("/").pop()!;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
