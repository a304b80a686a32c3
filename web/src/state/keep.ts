import { api, problemOf } from "../api/client";
import { Cell } from "../lib/cell";
import { asScopeError } from "../wire/errors";

/**
 * State of keeping one request's activations.
 *
 *   asking    the mark is being sent
 *   marked    the server keeps the rows still in its memory, and all further ones until the request ends
 *   late      the request's rows have left the server's memory
 *   off       the server has no recording
 *   failed    another error; a retry may help
 */
export interface Keep {
  readonly state: "asking" | "marked" | "late" | "off" | "failed";
  /** Number of positions kept so far; `missing` is the number that could not be kept any more. */
  readonly rows: number;
  readonly missing: number;
  readonly message: string;
}

/** Whether the server has a recording for which requests can be marked. */
export const recording = new Cell(false);

/** States by request id. */
export const keeps = new Cell<ReadonlyMap<string, Keep>>(new Map());

const STATES: Record<number, Keep["state"]> = { 404: "late", 409: "off", 410: "late" };

/** Reads whether the server records. A failed call counts as no. */
export async function readRecording(): Promise<void> {
  const { data } = await api.GET("/v1/actscope/recording").catch(() => ({ data: undefined }));
  recording.set(data?.recording === true && !data.failure);
}

/** Marks a request, so that its activations are kept. Idempotent; never throws. */
export async function keep(request: string): Promise<void> {
  const now = keeps.get().get(request)?.state;
  if (now === "asking" || now === "marked") return;
  note(request, { state: "asking" });
  try {
    const { data, error, response } = await api.POST("/v1/actscope/requests/{id}/mark", {
      params: { path: { id: request } },
      body: { why: "kept on the page" },
    });
    if (data) note(request, { state: "marked", rows: data.rows, missing: data.missing });
    else
      note(request, {
        state: STATES[response.status] ?? "failed",
        message: problemOf(error, response).message,
      });
  } catch (error) {
    note(request, { state: "failed", message: asScopeError(error).message });
  }
}

function note(request: string, part: Partial<Keep>): void {
  const one: Keep = { state: "asking", rows: 0, missing: 0, message: "", ...part };
  keeps.update((all) => new Map(all).set(request, one));
}
