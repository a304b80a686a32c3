import type { Probe } from "../api/types";
import { send } from "../state/chat";
import { chooseBackground, clearUnderlines, probes, toggleUnderline } from "../state/probes";

/** A question to begin with, and the probes that have something to say of its answer. */
export interface Starter {
  readonly text: string;
  readonly background: string;
  readonly underline?: string;
}

/** The probes are those of the built-in model; other engines have others. */
export const STARTERS: readonly Starter[] = [
  { text: "What will the sailor do tomorrow?", background: "future", underline: "night" },
  { text: "Tell me about a fox in the snow", background: "cold", underline: "danger" },
  { text: "Count to ten", background: "number" },
  { text: "Tell me about a storm at sea", background: "danger", underline: "past" },
];

/** Returns the probe of a starter, if the engine has it. */
export function probeOf({ background }: Starter, list: readonly Probe[]): Probe | undefined {
  return list.find(({ id }) => id === background);
}

/** Selects the starter's probes, as far as the engine has them, and sends its text. */
export function begin(starter: Starter): void {
  const list = probes.get();
  const under = list.find(({ id }) => id === starter.underline);
  if (probeOf(starter, list)) {
    clearUnderlines();
    chooseBackground(starter.background);
    if (under) toggleUnderline(under.id);
  }
  send(starter.text);
}
