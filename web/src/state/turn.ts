import { api, noteStatus } from "../api/client";
import { beforePaint } from "../lib/frame";
import { Trace } from "../trace/trace";
import { watchRequest } from "../trace/watch";
import { streamCompletion } from "../wire/completion";
import { asScopeError, ScopeError } from "../wire/errors";
import type { ChatRequest, CompletionChunk, TextRequest, Usage } from "../wire/types";
import type { StoredTurn } from "./memory";

export type TurnStatus = "waiting" | "streaming" | "done" | "stopped" | "failed";

/** Times of a turn's events, in milliseconds of `performance.now()`. */
export interface Timing {
  sent: number;
  first: number | null;
  last: number | null;
}

/** One question with its answer and the data of its request. Immutable except for its trace. */
export interface Turn {
  readonly key: number;
  /** Key of the first turn with this question: answers to one question share it. */
  readonly slot: number;
  readonly user: string;
  readonly answer: string;
  readonly status: TurnStatus;
  readonly finish: string | null;
  readonly problem: ScopeError | null;
  readonly usage: Usage | null;
  readonly timing: Timing;
  readonly trace: Trace;
}

let keys = 0;

/** Returns a turn without an answer yet; with `slot`, another answer to the question of that slot. */
export function newTurn(user: string, slot?: number): Turn {
  const key = ++keys;
  return {
    key,
    slot: slot ?? key,
    user,
    answer: "",
    status: "waiting",
    finish: null,
    problem: null,
    usage: null,
    timing: { sent: performance.now(), first: null, last: null },
    trace: new Trace(),
  };
}

export function isOpen(turn: Turn | undefined): boolean {
  return turn?.status === "waiting" || turn?.status === "streaming";
}

/** Runs a turn's request to its end, optionally with features. Every intermediate state goes to `show`. Never throws. */
export async function runTurn(
  turn: Turn,
  request: ChatRequest | TextRequest,
  signal: AbortSignal,
  show: (turn: Turn) => void,
  features = false,
): Promise<void> {
  let now = turn;
  const showLatest = () => show(now);
  const end = (part: Partial<Turn>) => {
    now = { ...now, ...part };
    show(now);
    void settle(now.trace);
  };
  try {
    for await (const chunk of streamAnswer(request, signal, features)) {
      now = { ...now, ...absorb(now, chunk) };
      beforePaint(showLatest);
    }
    noteStatus(200);
    end({ status: "done" });
  } catch (error) {
    if (signal.aborted) {
      end({ status: "stopped", finish: "stopped" });
      return;
    }
    const problem = asScopeError(error);
    noteStatus(problem.status);
    end({ status: "failed", problem });
  }
}

/** Streams an answer; without probabilities from an engine that does not give them. */
async function* streamAnswer(
  request: ChatRequest | TextRequest,
  signal: AbortSignal,
  features: boolean,
): AsyncGenerator<CompletionChunk> {
  try {
    yield* streamCompletion(request, signal, features);
  } catch (error) {
    const refused = error instanceof ScopeError && error.status === 400 && /logprobs/.test(error.message);
    if (!refused || !("messages" in request)) throw error;
    const plain: ChatRequest = { ...request };
    delete plain.logprobs;
    delete plain.top_logprobs;
    yield* streamCompletion(plain, signal, features);
  }
}

/** Returns a kept turn as it goes on: what was on its way when the page was left is no longer. */
export function restoreTurn(kept: StoredTurn): Turn {
  keys = Math.max(keys, kept.key);
  const trace = Trace.restore(kept.trace);
  const left = kept.status === "waiting" || kept.status === "streaming";
  if (trace.final === null) void refill(trace);
  const ended = left ? ({ status: "stopped", finish: "left" } as const) : {};
  const { message, hint, status, isTooLong, promptTokens } = kept.problem ?? {};
  const problem =
    message === undefined ? null : new ScopeError(message, hint ?? "", status, isTooLong, promptTokens);
  return { ...kept, ...ended, problem, trace };
}

const SETTLE_MS = 5_000;

/** Cancels an unfinished request, reads its remaining events, then closes the trace, so that no cell stays pending. */
async function settle(trace: Trace): Promise<void> {
  if (trace.final === null && trace.request !== "") {
    const id = trace.request;
    await api.DELETE("/v1/actscope/requests/{id}", { params: { path: { id } } }).catch(() => undefined);
  }
  await refill(trace);
}

/** Reads the events that a trace lacks from the gateway, if it still has them, then closes the trace. */
async function refill(trace: Trace): Promise<void> {
  if (trace.final === null && trace.request !== "") {
    const late = { onLoss: () => undefined };
    await watchRequest(trace.request, trace, AbortSignal.timeout(SETTLE_MS), late).catch(() => undefined);
  }
  trace.close();
}

/** Adds a chunk's scores to the trace, and returns the chunk's changes to the turn. */
function absorb(turn: Turn, chunk: CompletionChunk): Partial<Turn> {
  const choice = chunk.choices?.[0];
  const text = choice?.delta?.content ?? choice?.text ?? "";
  if (choice?.actscope) turn.trace.apply(choice.actscope);
  if (choice?.logprobs?.content) turn.trace.addChances(choice.logprobs.content);
  const time = performance.now();
  const spoken = text !== "" || choice?.actscope !== undefined;
  return {
    status: "streaming",
    answer: turn.answer + text,
    finish: choice?.finish_reason ?? turn.finish,
    usage: chunk.usage ?? turn.usage,
    timing: {
      ...turn.timing,
      first: turn.timing.first ?? (spoken ? time : null),
      last: spoken ? time : turn.timing.last,
    },
  };
}
