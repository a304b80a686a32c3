import { Cell } from "../lib/cell";
import type { ChatMessage, ChatRequest, TextRequest } from "../wire/types";
import { chats, checkEngine, engine, engineInfo, hasFeatures } from "./engine";
import { active, unpin } from "./focus";
import { settings } from "./settings";
import { isOpen, newTurn, runTurn, type Turn } from "./turn";

/** The conversation on screen, oldest turn first. */
export const turns = new Cell<readonly Turn[]>([]);

/** All answers of the conversation, oldest first: those on screen, and those that were asked again. */
export const answers = new Cell<readonly Turn[]>([]);

/** Called with a turn that goes on after its conversation has left the screen. */
export let onAway: (turn: Turn) => void = () => undefined;

export function followAway(listener: (turn: Turn) => void): void {
  onAway = listener;
}

/** How many of the likeliest tokens the reader shows beside each token of an answer. */
const ALTERNATIVES = 5;

let running: AbortController | null = null;

export function send(user: string): void {
  if (user.trim() === "" || isOpen(turns.get().at(-1))) return;
  start(user, turns.get());
}

/** Sends the last question again. The earlier answer stays: see `showAnswer`. */
export function regenerate(): void {
  const last = turns.get().at(-1);
  if (last && !isOpen(last)) start(last.user, turns.get().slice(0, -1), last.slot);
}

/** Shows another answer to the last question. Earlier questions keep the answer on which later ones build. */
export function showAnswer(turn: Turn): void {
  const last = turns.get().at(-1);
  if (!last || last.slot !== turn.slot || isOpen(last)) return;
  unpin();
  turns.set([...turns.get().slice(0, -1), turn]);
  active.set(turn.trace);
}

/** Takes a turn that failed out of the conversation, and returns its question. */
export function takeBack(turn: Turn): string {
  turns.update((list) => list.filter((one) => one.key !== turn.key));
  answers.update((list) => list.filter((one) => one.key !== turn.key));
  active.set(turns.get().at(-1)?.trace ?? null);
  return turn.user;
}

/** Sends the last question again without the oldest turn. */
export function sendShorter(): void {
  const list = turns.get();
  const last = list.at(-1);
  if (last && !isOpen(last)) start(last.user, list.slice(1, -1), last.slot);
}

/** Stops the running answer. The gateway cancels a request when its client disconnects. */
export function stop(): void {
  running?.abort();
}

/** Puts a conversation on the screen. An answer that is running goes on unseen. */
export function show(shown: readonly Turn[], all: readonly Turn[]): void {
  unpin();
  turns.set(shown);
  answers.set(all);
  active.set(shown.at(-1)?.trace ?? null);
}

export function newChat(): void {
  stop();
  show([], []);
}

function start(user: string, before: readonly Turn[], slot?: number, maxTokens?: number): void {
  const turn = newTurn(user, slot);
  running = new AbortController();
  unpin();
  answers.update((list) => [...list, turn]);
  turns.set([...before, turn]);
  active.set(turn.trace);
  const features = hasFeatures(engine.get());
  const request = requestFor(user, before, maxTokens);
  void runTurn(turn, request, running.signal, replace, features).then(() => checkEngine());
}

/** Sends the last question again, for an answer of at most so many tokens. */
export function sendFor(maxTokens: number): void {
  const last = turns.get().at(-1);
  if (last && !isOpen(last)) start(last.user, turns.get().slice(0, -1), last.slot, maxTokens);
}

function replace(turn: Turn): void {
  const swap = (list: readonly Turn[]) => list.map((old) => (old.key === turn.key ? turn : old));
  if (!answers.get().some(({ key }) => key === turn.key)) {
    onAway(turn);
    return;
  }
  answers.update(swap);
  turns.update(swap);
}

function requestFor(
  user: string,
  before: readonly Turn[],
  most = settings.get().maxTokens,
): ChatRequest | TextRequest {
  const { system, temperature, seed } = settings.get();
  const model = engineInfo(engine.get())?.engine.model ?? "default";
  const sampling = { model, temperature, max_tokens: most, ...(seed === null ? {} : { seed }) };
  if (!chats(engine.get())) return { ...sampling, prompt: user };
  const messages: ChatMessage[] = system.trim() === "" ? [] : [{ role: "system", content: system }];
  for (const turn of before.filter(({ answer }) => answer !== "")) {
    messages.push({ role: "user", content: turn.user }, { role: "assistant", content: turn.answer });
  }
  messages.push({ role: "user", content: user });
  return { ...sampling, messages, logprobs: true, top_logprobs: ALTERNATIVES };
}
