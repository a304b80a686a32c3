import { Cell } from "../lib/cell";
import { answers, followAway, newChat, show, turns } from "./chat";
import { loadChat, type StoredTurn, storeChat } from "./memory";
import { selectFromUrl } from "./probes";
import { isOpen, restoreTurn, type Turn } from "./turn";
import { pushView, readView, writeView } from "./view-url";
import { stopWatching, watch, watched } from "./watch";

/** A growing answer is written this often; an ended one at once. */
const WRITE_MS = 1_000;
const UNDO_MS = 10_000;
/** A tab that was reloaded holds its chat for a moment longer. */
const CLAIM_MS = 1_500;

interface Chat {
  turns: readonly Turn[];
  answers: readonly Turn[];
}

/** The chat on the screen; null until its first question. */
let current: string | null = null;
/** True while the turns on the screen are not those of `current`. */
let changing = false;
/** Chats that this tab has shown and left, by id. */
const shelf = new Map<string, Chat>();
/** Turns as they were last written: an unchanged one is not written again. */
const written = new WeakSet<Turn>();
const claimed = new Set<string>();

/** Whether the chat that the address names is not in this browser. */
export const unknownChat = new Cell(false);
/** Whether New chat can be undone. */
export const undoable = new Cell(false);

/** Keeps the conversation in this browser, and shows the one of the address. Returns a function that stops this. */
export function followSession(): () => void {
  let timer = 0;
  const write = () => {
    window.clearTimeout(timer);
    timer = 0;
    void save();
  };
  const soon = () => {
    if (changing) return;
    if (!isOpen(turns.get().at(-1))) write();
    else timer ||= window.setTimeout(write, WRITE_MS);
  };
  const onPop = () => {
    undoable.set(false);
    selectFromUrl();
    void showPlace();
  };
  followAway(updateShelf);
  const stops = [turns.subscribe(soon), answers.subscribe(soon)];
  window.addEventListener("popstate", onPop);
  window.addEventListener("pagehide", write);
  void showPlace();
  return () => {
    for (const stop of stops) stop();
    window.clearTimeout(timer);
    window.removeEventListener("popstate", onPop);
    window.removeEventListener("pagehide", write);
  };
}

/** Shows the chat and the watched request of the address. */
async function showPlace(): Promise<void> {
  const { chat, request, position } = readView();
  if (chat !== current) await enter(chat);
  if (request === null) {
    if (watched.get()) stopWatching();
  } else if (watched.get()?.id !== request) watch(request, position);
}

/** Leaves the chat for an empty one, which the browser's Back or `undoNewChat` takes back. */
export function leaveForNewChat(): void {
  const had = turns.get().length > 0;
  stopWatching();
  void save();
  putOnShelf();
  change(null, newChat);
  pushView({ chat: null, request: null, position: null });
  if (!had) return;
  undoable.set(true);
  window.setTimeout(() => undoable.set(false), UNDO_MS);
}

export function undoNewChat(): void {
  undoable.set(false);
  history.back();
}

/** Shows a chat that this browser has kept. */
export function openChat(id: string): void {
  pushView({ chat: id, request: null, position: null });
  void showPlace();
}

async function enter(id: string | null): Promise<void> {
  putOnShelf();
  unknownChat.set(false);
  if (id === null) {
    change(null, () => show([], []));
    return;
  }
  changing = true; // until it is there, the turns on the screen are of the chat before
  current = id;
  const known = shelf.get(id) ?? (await restored(id));
  if (current !== id) return; // the reader went on while it was read
  if (known === null) {
    change(null, () => show([], []));
    writeView({ chat: null });
    unknownChat.set(true);
    return;
  }
  change(id, () => show(known.turns, known.answers));
  if (!(await claim(id)) && current === id) fork();
}

/** Puts another chat on the screen. What passes between the two is neither's, and is not written. */
function change(id: string | null, swap: () => void): void {
  changing = true;
  current = id;
  swap();
  changing = false;
}

async function restored(id: string): Promise<Chat | null> {
  const kept = await loadChat(id);
  if (kept === null) return null;
  const all = kept.turns.map(restoreTurn);
  for (const turn of all) written.add(turn);
  return {
    answers: all,
    turns: kept.chat.shown.flatMap((key) => all.find((turn) => turn.key === key) ?? []),
  };
}

/** Another tab shows this chat too: this one goes on as a copy, so that neither overwrites the other. */
function fork(): void {
  current = newId();
  for (const turn of answers.get()) written.delete(turn);
  writeView({ chat: current });
  void claim(current);
  void save();
}

async function claim(id: string): Promise<boolean> {
  if (claimed.has(id) || !("locks" in navigator)) return true;
  const granted = await new Promise<boolean>((resolve) => {
    const held = () => {
      resolve(true);
      return new Promise<void>(() => undefined); // as long as this tab lives
    };
    navigator.locks
      .request(`actscope chat ${id}`, { signal: AbortSignal.timeout(CLAIM_MS) }, held)
      .catch(() => resolve(false));
  });
  if (granted) claimed.add(id);
  return granted;
}

function putOnShelf(): void {
  if (current !== null) shelf.set(current, { turns: turns.get(), answers: answers.get() });
}

function updateShelf(turn: Turn): void {
  const swap = (list: readonly Turn[]) => list.map((old) => (old.key === turn.key ? turn : old));
  for (const [id, chat] of shelf) {
    if (!chat.answers.some(({ key }) => key === turn.key)) continue;
    const now = { turns: swap(chat.turns), answers: swap(chat.answers) };
    shelf.set(id, now);
    if (!isOpen(turn)) void store(id, now);
  }
}

async function save(): Promise<void> {
  const chat = { turns: turns.get(), answers: answers.get() };
  if (chat.answers.length === 0) return;
  if (current === null) {
    current = newId();
    writeView({ chat: current });
    void claim(current);
  }
  await store(current, chat);
}

async function store(id: string, { turns: shown, answers: all }: Chat): Promise<void> {
  const changed = all.filter((turn) => !written.has(turn) || turn.trace.final === null);
  for (const turn of changed) if (!isOpen(turn)) written.add(turn);
  const title = all[0]?.user ?? "";
  const chat = { id, title, changed: Date.now(), shown: shown.map(({ key }) => key) };
  await storeChat(chat, changed.map(asStored));
}

function asStored(turn: Turn): StoredTurn {
  const { problem: error, trace } = turn;
  const problem = error && {
    message: error.message,
    hint: error.hint,
    status: error.status,
    isTooLong: error.isTooLong,
    promptTokens: error.promptTokens,
  };
  return { ...turn, problem, trace: trace.snapshot() };
}

function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(6));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
