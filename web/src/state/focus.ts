import { Cell } from "../lib/cell";
import type { Trace } from "../trace/trace";

/** A position of one request, at which text, lanes and reader point together. */
export interface Spot {
  trace: Trace;
  position: number;
  /** Whether the text scrolls to it: it was pinned elsewhere than in the text. */
  reveal?: boolean;
}

/** The request that the panel shows. */
export const active = new Cell<Trace | null>(null);
/** The spot under the pointer or with keyboard focus. */
export const hover = new Cell<Spot | null>(null);
/** The clicked spot, which stays until closed. */
export const pinned = new Cell<Spot | null>(null);
/** The spot that was last pointed at: the reader keeps it while nothing is. */
export const latest = new Cell<Spot | null>(null);
hover.subscribe(() => hover.get() && latest.set(hover.get()));

export function point(trace: Trace, position: number | null): void {
  const spot = hover.get();
  if (position === null) hover.set(null);
  else if (spot?.trace !== trace || spot.position !== position) hover.set({ trace, position });
}

export function pin(trace: Trace, position: number, reveal = false): void {
  active.set(trace);
  pinned.set({ trace, position, reveal });
}

export function unpin(): void {
  pinned.set(null);
  hover.set(null);
  latest.set(null);
}
