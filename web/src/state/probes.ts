import type { Learnt, Probe } from "../api/types";
import { Cell } from "../lib/cell";
import { readView, writeView } from "./view-url";

/** The engine's current probes. */
export const probes = new Cell<readonly Probe[]>([]);

/** How far the ranges of probes that state none are learnt, by probe id. Apart from `probes`, because it changes all the time. */
export const learning = new Cell<ReadonlyMap<string, Learnt>>(new Map());

/** Every probe since the page was opened, by id and generation: scores stay on their scale when their probe is removed or replaced. */
const past = new Map<string, Probe>();

/** Probes that have left the engine since the page was opened, with the time at which the page noticed. */
export const departed = new Cell<ReadonlyMap<string, { probe: Probe; at: Date }>>(new Map());

/** Probes of the address that the engine does not have, and what is shown instead; null if there is nothing to say. */
export const absent = new Cell<{ ids: readonly string[]; instead: string | null } | null>(null);

let before: readonly Probe[] = [];
probes.subscribe(() => {
  const list = probes.get();
  for (const probe of list) past.set(versionOf(probe.id, probe.since), probe);
  const here = new Set(list.map(({ id }) => id));
  const kept = [...departed.get()].filter(([id]) => !here.has(id));
  const left = before.filter(({ id }) => !here.has(id));
  before = list;
  if (left.length === 0 && kept.length === departed.get().size) return;
  departed.set(new Map([...kept, ...left.map((probe) => [probe.id, { probe, at: new Date() }] as const)]));
});

function versionOf(id: string, since: number): string {
  return `${since} ${id}`;
}

/**
 * Returns a probe as the engine has it, or as it was last known if it has left. With `since`, the version that a column was
 * computed with, if the page has known it.
 */
export function knownProbe(id: string, list: readonly Probe[], since?: number): Probe | undefined {
  const now = list.find((probe) => probe.id === id);
  if (since !== undefined && now?.since !== since) {
    const then = past.get(versionOf(id, since));
    if (then) return then;
  }
  return now ?? departed.get().get(id)?.probe;
}

export function isLearning(): boolean {
  return [...learning.get().values()].some(({ settled }) => !settled);
}

export const UNDERLINES = 3;

/** The probe of the background, and the probes of the underlines by slot. */
export interface Selection {
  background: string | null;
  underlines: readonly (string | null)[];
}

const asked = readView();
export const selection = new Cell<Selection>({
  background: asked.background,
  underlines: Array.from({ length: UNDERLINES }, (_, i) => asked.underlines[i] ?? null),
});

/** Selects what the address names, after the browser's Back or Forward. */
export function selectFromUrl(): void {
  const { background, underlines } = readView();
  if (background === null) return;
  selection.set({
    background,
    underlines: Array.from({ length: UNDERLINES }, (_, i) => underlines[i] ?? null),
  });
}

selection.subscribe(() => {
  const { background, underlines } = selection.get();
  writeView({ background, underlines: underlines.filter((id) => id !== null) });
});

/** Whether the selection of the address has been compared with the engine's probes. */
let compared = false;

/** Stores a new list, and selects the first probe for the background if none is selected. */
export function acceptProbes(list: readonly Probe[]): void {
  if (JSON.stringify(list) !== JSON.stringify(probes.get())) probes.set(list);
  if (!compared && list.length > 0) {
    compared = true;
    dropAbsent(list);
  }
  const first = list[0];
  if (selection.get().background === null && first) chooseBackground(first.id);
}

/** Takes probes that the engine does not have out of the selection, which an address may name. */
function dropAbsent(list: readonly Probe[]): void {
  const here = (id: string | null) => id === null || list.some((probe) => probe.id === id);
  const { background, underlines } = selection.get();
  const ids = [background, ...underlines].filter((id) => id !== null && !here(id)) as string[];
  if (ids.length === 0) return;
  const first = here(background) ? null : (list[0]?.id ?? null);
  absent.set({ ids, instead: first });
  selection.set({
    background: first ?? background,
    underlines: underlines.map((id) => (here(id) && id !== first ? id : null)),
  });
}

export function findProbe(id: string | null): Probe | undefined {
  return id === null ? undefined : probes.get().find((probe) => probe.id === id);
}

export function chooseBackground(id: string): void {
  selection.update(({ underlines }) => ({
    background: id,
    underlines: underlines.map((line) => (line === id ? null : line)),
  }));
}

export function clearUnderlines(): void {
  selection.update(({ background, underlines }) => ({ background, underlines: underlines.map(() => null) }));
}

/** Gives a probe the first free underline, or removes its underline. */
export function toggleUnderline(id: string): void {
  selection.update(({ background, underlines }) => {
    const at = underlines.includes(id) ? underlines.indexOf(id) : underlines.indexOf(null);
    const next = underlines.map((line, i) => (i === at ? (line === id ? null : id) : line));
    return { background: background === id ? null : background, underlines: next };
  });
}

/** Returns a probe's slot: 0 for the background, 1–3 for underlines, null if not selected. */
export function slotOf({ background, underlines }: Selection, id: string): number | null {
  if (background === id) return 0;
  const at = underlines.indexOf(id);
  return at < 0 ? null : at + 1;
}

/** Returns the selected ids with their slots, background first. */
export function selectedSlots({ background, underlines }: Selection): { id: string; slot: number }[] {
  return [background, ...underlines].flatMap((id, slot) => (id === null ? [] : [{ id, slot }]));
}
