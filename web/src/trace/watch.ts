import { addressOf } from "../lib/address";
import { asScopeError, fromResponse, ScopeError } from "../wire/errors";
import { readEvents, type ServerEvent } from "../wire/sse";
import type { DoneEvent, FinalBlock, ScopePayload } from "../wire/types";
import type { Trace } from "./trace";

const RETRY_MS = [500, 1000, 2000, 4000, 8000];

export interface WatchHooks {
  /** Called with the error when the stream breaks and will be resumed, and with null when it works again. */
  onLoss: (loss: ScopeError | null) => void;
}

/** Applies one event to a trace. Returns the finish reason if this was the last event, else null. */
export function applyEvent(trace: Trace, { event, data }: ServerEvent): string | null {
  if (event === "token" || event === "probe_update") trace.apply(JSON.parse(data) as ScopePayload);
  if (event === "probe_final") {
    const { present, computed, cached } = JSON.parse(data) as FinalBlock;
    trace.apply({ v: 1, final: { present, computed, cached } });
  }
  if (event !== "done") return null;
  return (JSON.parse(data) as DoneEvent).finish_reason ?? "done";
}

/** Follows a request into a trace until it is done, and resumes after connection losses. Returns the finish reason. */
export async function watchRequest(
  id: string,
  trace: Trace,
  signal: AbortSignal,
  { onLoss }: WatchHooks,
): Promise<string> {
  let last: string | null = null;
  for (let attempt = 0; ; attempt++) {
    try {
      for await (const event of openEvents(id, last, signal)) {
        attempt = 0;
        onLoss(null);
        last = event.id ?? last;
        const reason = applyEvent(trace, event);
        if (reason !== null) return reason;
      }
      onLoss(new ScopeError("The stream ended early.", "Resuming where it stopped."));
    } catch (error) {
      const problem = asScopeError(error);
      if (signal.aborted || problem.status !== null) throw problem;
      onLoss(problem);
    }
    await pause(RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)] ?? 8000, signal);
  }
}

async function* openEvents(
  id: string,
  last: string | null,
  signal: AbortSignal,
): AsyncGenerator<ServerEvent> {
  const response = await fetch(addressOf(`/v1/actscope/requests/${encodeURIComponent(id)}/events`), {
    credentials: "same-origin",
    headers: last === null ? {} : { "Last-Event-ID": last },
    signal,
  });
  if (!response.ok || response.body === null) throw await fromResponse(response);
  yield* readEvents(response.body);
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        reject(signal.reason as Error);
      },
      { once: true },
    );
  });
}
