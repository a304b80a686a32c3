import type { Ink } from "./draw";

const SLOTS = 4;

/** Returns the colours of lanes by slot; the last are of lanes that are not selected. Reads the theme's custom properties. */
export function readInks(host: HTMLElement): readonly Ink[] {
  const style = getComputedStyle(host);
  const color = (name: string) => style.getPropertyValue(name).trim() || "gray";
  const common = { mark: color("--ink"), grid: color("--muted"), prompt: color("--prompt") };
  const of = (line: string): Ink => ({ ...common, line: color(line), body: color(`${line}-soft`) });
  return [...Array.from({ length: SLOTS }, (_, slot) => of(`--slot-${slot}`)), of("--lane")];
}
