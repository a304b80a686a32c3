import { Cell } from "../lib/cell";
import type { ChatMessage, ChatRequest, TextRequest } from "../wire/types";
import { chats, engine, engineInfo, hasFeatures, recheckEngine } from "./engine";
import { active, unpin } from "./focus";
import { settings } from "./settings";
import { isOpen, newTurn, runTurn, type Turn } from "./turn";

/** The conversation on screen, oldest turn first. */
export const turns = new Cell<readonly Turn[]>([]);

let running: AbortController | null = null;

export function send(user: string): void {
  if (user.trim() === "" || isOpen(turns.get().at(-1))) return;
  start(user, turns.get());
}

/** Sends the last question again. */
export function regenerate(): void {
  const last = turns.get().at(-1);
  if (last && !isOpen(last)) start(last.user, turns.get().slice(0, -1));
}

/** Stops the running answer. The gateway cancels a request when its client disconnects. */
export function stop(): void {
  running?.abort();
}

export function newChat(): void {
  stop();
  unpin();
  turns.set([]);
  active.set(null);
}

function start(user: string, before: readonly Turn[]): void {
  const turn = newTurn(user);
  running = new AbortController();
  unpin();
  turns.set([...before, turn]);
  active.set(turn.trace);
  const features = hasFeatures(engine.get());
  void runTurn(turn, requestFor(user, before), running.signal, replace, features).then(() => recheckEngine());
}

function replace(turn: Turn): void {
  turns.update((list) => list.map((old) => (old.key === turn.key ? turn : old)));
}

function requestFor(user: string, before: readonly Turn[]): ChatRequest | TextRequest {
  const { system, temperature, maxTokens, seed } = settings.get();
  const model = engineInfo(engine.get())?.engine.model ?? "default";
  const sampling = { model, temperature, max_tokens: maxTokens, ...(seed === null ? {} : { seed }) };
  if (!chats(engine.get())) return { ...sampling, prompt: user };
  const messages: ChatMessage[] = system.trim() === "" ? [] : [{ role: "system", content: system }];
  for (const turn of before.filter(({ answer }) => answer !== "")) {
    messages.push({ role: "user", content: turn.user }, { role: "assistant", content: turn.answer });
  }
  messages.push({ role: "user", content: user });
  return { ...sampling, messages };
}
