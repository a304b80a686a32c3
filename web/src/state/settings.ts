import { Cell } from "../lib/cell";

export interface Settings {
  /** 0 – 2; 0 takes the most likely token. */
  temperature: number;
  /** At least 1. */
  maxTokens: number;
  /** The same seed gives the same answer; null lets the engine choose. */
  seed: number | null;
  system: string;
}

const KEY = "actscope.settings";
const DEFAULTS: Settings = { temperature: 0.7, maxTokens: 200, seed: null, system: "" };

function stored(): Settings {
  try {
    const value: unknown = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    return { ...DEFAULTS, ...(value as Partial<Settings>) };
  } catch {
    return DEFAULTS;
  }
}

export const settings = new Cell<Settings>(stored());

settings.subscribe(() => localStorage.setItem(KEY, JSON.stringify(settings.get())));

export function changeSettings(change: Partial<Settings>): void {
  settings.update((now) => ({ ...now, ...change }));
}
