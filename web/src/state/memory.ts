import { type DBSchema, type IDBPDatabase, openDB } from "idb";
import { Cell } from "../lib/cell";
import type { TraceSnapshot } from "../trace/snapshot";
import type { ScopeError } from "../wire/errors";
import type { Turn } from "./turn";

/** A turn as the browser keeps it: its trace and its error by value. */
export type StoredTurn = Omit<Turn, "trace" | "problem"> & {
  readonly trace: TraceSnapshot;
  readonly problem: Pick<ScopeError, "message" | "hint" | "status" | "isTooLong" | "promptTokens"> | null;
};

/** A chat of this browser. Its turns are kept apart, so that an answer that grows is written alone. */
export interface StoredChat {
  readonly id: string;
  /** Its first question. */
  readonly title: string;
  /** When it was last changed, in milliseconds since the epoch. */
  readonly changed: number;
  /** Keys of the turns that are shown, oldest first. */
  readonly shown: readonly number[];
}

interface Schema extends DBSchema {
  chats: { key: string; value: StoredChat; indexes: { changed: number } };
  turns: {
    key: [chat: string, turn: number];
    value: StoredTurn & { chat: string };
    indexes: { chat: string };
  };
}

/** The browser keeps this many chats; the one that was changed longest ago goes first. */
export const CHATS_KEPT = 50;

/** Why this browser does not keep chats, in words; null while it does. */
export const forgetful = new Cell<string | null>(null);

let opened: Promise<IDBPDatabase<Schema>> | null = null;

function database(): Promise<IDBPDatabase<Schema>> {
  opened ??= openDB<Schema>("actscope", 1, {
    upgrade(base) {
      base.createObjectStore("chats", { keyPath: "id" }).createIndex("changed", "changed");
      base.createObjectStore("turns").createIndex("chat", "chat");
    },
  });
  return opened;
}

/** Stores a chat and those of its turns that have changed. */
export async function storeChat(chat: StoredChat, turns: readonly StoredTurn[]): Promise<void> {
  try {
    const write = (await database()).transaction(["chats", "turns"], "readwrite");
    const rows = write.objectStore("turns");
    await Promise.all([
      write.objectStore("chats").put(chat),
      ...turns.map((turn) => rows.put({ ...turn, chat: chat.id }, [chat.id, turn.key])),
      write.done,
    ]);
    await forgetOld();
    forgetful.set(null);
  } catch (error) {
    forgetful.set(error instanceof Error ? error.message : String(error));
  }
}

/** Reads a chat with all its turns, in the order in which they were asked; null if this browser does not have it. */
export async function loadChat(id: string): Promise<{ chat: StoredChat; turns: StoredTurn[] } | null> {
  try {
    const base = await database();
    const chat = await base.get("chats", id);
    if (!chat) return null;
    const turns = await base.getAllFromIndex("turns", "chat", id);
    return { chat, turns: turns.sort((a, b) => a.key - b.key) };
  } catch (error) {
    forgetful.set(error instanceof Error ? error.message : String(error));
    return null;
  }
}

/** Returns at most `count` chats, the latest first. */
export async function listChats(count: number): Promise<StoredChat[]> {
  try {
    const all = await (await database()).getAllFromIndex("chats", "changed");
    return all.reverse().slice(0, count);
  } catch {
    return []; // said when something is to be stored
  }
}

async function forgetOld(): Promise<void> {
  const base = await database();
  const all = await base.getAllKeysFromIndex("chats", "changed");
  for (const id of all.slice(0, Math.max(0, all.length - CHATS_KEPT))) {
    const write = base.transaction(["chats", "turns"], "readwrite");
    const keys = await write.objectStore("turns").index("chat").getAllKeys(id);
    await Promise.all([
      write.objectStore("chats").delete(id),
      ...keys.map((key) => write.objectStore("turns").delete(key)),
      write.done,
    ]);
  }
}
