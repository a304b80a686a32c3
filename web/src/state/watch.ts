import { noteStatus } from "../api/client";
import { Cell } from "../lib/cell";
import { Trace } from "../trace/trace";
import { watchRequest } from "../trace/watch";
import { asScopeError, type ScopeError } from "../wire/errors";
import { turns } from "./chat";
import { active, pin, pinned, unpin } from "./focus";
import { pushView, writeView } from "./view-url";

/** A watched request, read-only on this page. */
export interface Watched {
  readonly id: string;
  readonly trace: Trace;
  readonly finish: string | null;
  /** Set while the stream is broken; with `status` if it has ended for good. */
  readonly problem: ScopeError | null;
}

export const watched = new Cell<Watched | null>(null);

let running: AbortController | null = null;

export function watch(id: string, position: number | null = null): void {
  running?.abort();
  const own = new AbortController();
  running = own;
  const trace = new Trace();
  const change = (part: Partial<Watched>) => {
    watched.update((now) => (now?.trace === trace ? { ...now, ...part } : now));
  };
  watched.set(null);
  unpin();
  watched.set({ id, trace, finish: null, problem: null });
  active.set(trace);
  pushView({ request: id, position });
  if (position !== null) pinWhenThere(trace, position);
  watchRequest(id, trace, own.signal, { onLoss: (problem) => change({ problem }) })
    .then((finish) => change({ finish, problem: null }))
    .catch((error: unknown) => {
      if (own.signal.aborted) return;
      const problem = asScopeError(error);
      noteStatus(problem.status);
      change({ problem, finish: "lost" });
    })
    .finally(() => trace.close());
}

function pinWhenThere(trace: Trace, position: number): void {
  const stop = trace.subscribe(() => {
    if (trace.length <= position) return;
    stop();
    if (pinned.get() === null && active.get() === trace) pin(trace, position, true);
  });
}

export function stopWatching(): void {
  running?.abort();
  running = null;
  watched.set(null);
  unpin();
  active.set(turns.get().at(-1)?.trace ?? null);
  pushView({ request: null, position: null });
}

// The address of a watched request names its pinned token, so that it can be shared and reloaded.
pinned.subscribe(() => {
  const now = watched.get();
  const spot = pinned.get();
  if (now && spot?.trace === now.trace) writeView({ position: spot.position });
  else if (now && spot === null && now.trace.length > 0) writeView({ position: null });
});
