// Uploads, one after the other in the background, and what this tab still holds of them for another try.

import { askForKey, authorization, type Job, type Problem, Refusal, sentence } from "./api";
import type { Study } from "./studies";

export type Choices = [string, string][];

export interface Upload {
  study: Study;
  choices: Choices;
  percent: number;
  problem: string | null;
}

const SUFFIX = /(\.nii\.gz|\.nii|\.zip)$/i;

export class Uploads {
  readonly waiting: Upload[] = [];
  private readonly sent = new Map<string, Upload>();
  private running: { upload: Upload; request: XMLHttpRequest | null } | null = null;

  constructor(
    private readonly changed: () => void,
    private readonly accepted: (job: Job) => void,
  ) {
    // A closed tab takes its uploads along.
    addEventListener("beforeunload", (event) => {
      if (this.running) event.preventDefault();
    });
  }

  add(study: Study, choices: Choices): void {
    this.waiting.push({ study, choices, percent: 0, problem: null });
    this.changed();
    void this.run();
  }

  /** Take an upload out; one under way is broken off. */
  remove(upload: Upload): void {
    this.waiting.splice(this.waiting.indexOf(upload), 1);
    if (this.running?.upload === upload) this.running.request?.abort();
    this.changed();
  }

  retry(upload: Upload): void {
    upload.problem = null;
    upload.percent = 0;
    this.changed();
    void this.run();
  }

  /** What a job of this tab was made from. */
  ofJob(id: string): Upload | undefined {
    return this.sent.get(id);
  }

  private async run(): Promise<void> {
    if (this.running) return;
    for (;;) {
      const upload = this.waiting.find((one) => one.problem === null);
      if (!upload) return;
      this.running = { upload, request: null };
      try {
        const job = await this.send(upload);
        this.waiting.splice(this.waiting.indexOf(upload), 1);
        this.sent.set(job.id, upload);
        this.accepted(job);
      } catch (error) {
        upload.problem = (error as Error).message;
      } finally {
        this.running = null;
      }
      this.changed();
    }
  }

  private async send(upload: Upload): Promise<Job> {
    for (;;) {
      const sent = authorization();
      try {
        return await this.attempt(upload, sent);
      } catch (error) {
        if (!(error instanceof Refusal) || error.status !== 401) throw error;
        if (sent.Authorization === authorization().Authorization) await askForKey("Authorization" in sent);
      }
    }
  }

  // XMLHttpRequest, because fetch cannot tell how much was sent.
  private attempt(upload: Upload, headers: Record<string, string>): Promise<Job> {
    const form = new FormData();
    for (const [name, value] of upload.choices) form.append(name, value);
    upload.study.files.forEach((file, index) => {
      const suffix = SUFFIX.exec(file.name)?.[0].toLowerCase() ?? ".dcm";
      form.append("files", file, `${index + 1}${suffix}`);
    });
    const request = new XMLHttpRequest();
    if (this.running) this.running.request = request;
    return new Promise((resolve, reject) => {
      request.open("POST", "/v1/jobs");
      for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
      request.responseType = "json";
      request.upload.onprogress = (event) => {
        upload.percent = event.lengthComputable ? (100 * event.loaded) / event.total : 0;
        this.changed();
      };
      request.onload = () => {
        if (request.status === 202) resolve(request.response as Job);
        else reject(new Refusal(request.response ? sentence(request.response as Problem) : "The upload was refused.", request.status));
      };
      request.onerror = () =>
        reject(new Refusal("The connection was closed; the service may be down or the upload too large.", 0));
      request.onabort = () => reject(new Refusal("The upload was stopped.", 0));
      request.send(form);
    });
  }
}
