import type { Learnt, Probe } from "../api/types";
import { Cell } from "../lib/cell";
import { readView, writeView } from "./view-url";

/** The engine's current probes. */
export const probes = new Cell<readonly Probe[]>([]);

/** How far the ranges of probes that state none are learnt, by probe id. Apart from `probes`, because it changes all the time. */
export const learning = new Cell<ReadonlyMap<string, Learnt>>(new Map());

/** The last known version of every probe since the page was opened: scores stay on their scale when their probe is removed. */
const past = new Map<string, Probe>();
probes.subscribe(() => {
  for (const probe of probes.get()) past.set(probe.id, probe);
});

/** Returns a probe of `list`; one that has left the engine as it was last known. */
export function knownProbe(id: string, list: readonly Probe[]): Probe | undefined {
  return list.find((probe) => probe.id === id) ?? past.get(id);
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

selection.subscribe(() => {
  const { background, underlines } = selection.get();
  writeView({ background, underlines: underlines.filter((id) => id !== null) });
});

/** Stores a new list, and selects the first probe for the background if none is selected. */
export function acceptProbes(list: readonly Probe[]): void {
  if (JSON.stringify(list) !== JSON.stringify(probes.get())) probes.set(list);
  const first = list[0];
  if (selection.get().background === null && first) chooseBackground(first.id);
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
