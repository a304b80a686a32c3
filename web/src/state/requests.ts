import { api, problemOf } from "../api/client";
import type { RequestSummary } from "../api/types";
import { Cell } from "../lib/cell";
import { asScopeError, type ScopeError } from "../wire/errors";

export interface RequestsView {
  readonly list: readonly RequestSummary[];
  readonly problem: ScopeError | null;
}

/** The gateway's recent requests of all clients, newest first. */
export const requests = new Cell<RequestsView>({ list: [], problem: null });

const EVERY_MS = 4_000;

/** Reads the list now and every few seconds. Returns a function that stops this. */
export function followRequests(): () => void {
  void readRequests();
  const timer = window.setInterval(() => void readRequests(), EVERY_MS);
  return () => window.clearInterval(timer);
}

async function readRequests(): Promise<void> {
  try {
    const { data, error, response } = await api.GET("/v1/actscope/requests");
    if (data) requests.set({ list: data.requests, problem: null });
    else requests.update(({ list }) => ({ list, problem: problemOf(error, response) }));
  } catch (error) {
    requests.update(({ list }) => ({ list, problem: asScopeError(error) }));
  }
}
