import { type Oklch, toHex } from "./oklch";

/**
 * The heatmap's colours. The text colour never changes, so every step has a contrast of at least 4.5:1 with it:
 * light ramps end at lightness .76; dark ramps begin at the page's colour and end at .50.
 */
export const STEPS = 32;
/** Number of levels of an underline's strength. */
export const LEVELS = 12;

export type Theme = "light" | "dark";

/** Colours of the page's background and of the tokens' text; `base.css` uses the same values. */
export const PAPER: Record<Theme, string> = { light: "#ffffff", dark: "#10161b" };
export const INK: Record<Theme, string> = { light: "#17212a", dark: "#e8eef2" };

interface Ramp {
  from: Oklch;
  to: Oklch;
}

const ORANGE: Record<Theme, Ramp> = {
  light: { from: [0.985, 0.012, 75], to: [0.76, 0.155, 52] },
  dark: { from: [0.235, 0.022, 60], to: [0.5, 0.13, 50] },
};
const PURPLE: Record<Theme, Ramp> = {
  light: { from: [0.98, 0.012, 300], to: [0.74, 0.13, 300] },
  dark: { from: [0.235, 0.03, 300], to: [0.5, 0.15, 300] },
};
/** Colours by slot: 0 is the background's, 1–3 the underlines'. Distinguishable with all common colour blindness. */
const SLOTS: Record<Theme, readonly Oklch[]> = {
  light: [
    [0.63, 0.17, 47],
    [0.55, 0.14, 245],
    [0.58, 0.12, 165],
    [0.58, 0.19, 345],
  ],
  dark: [
    [0.74, 0.15, 55],
    [0.74, 0.12, 240],
    [0.79, 0.13, 165],
    [0.75, 0.15, 345],
  ],
};

export type Hue = "positive" | "negative";
export const THEMES: readonly Theme[] = ["light", "dark"];

/** Returns the background colour of a step, 1 … STEPS. Step 0 has no background. */
export function stepColor(theme: Theme, hue: Hue, step: number): string {
  if (step === 0) return PAPER[theme];
  const { from, to } = (hue === "positive" ? ORANGE : PURPLE)[theme];
  const t = step / STEPS;
  return toHex([mix(from[0], to[0], t), mix(from[1], to[1], t), mix(from[2], to[2], t)]);
}

export function slotColor(theme: Theme, slot: number): string {
  return toHex(SLOTS[theme][slot] ?? [0.6, 0, 0]);
}

function mix(a: number, b: number, t: number): number {
  return a + (b - a) * t;
}

export interface Scale {
  range: readonly [low: number, high: number];
  signed: boolean;
}

/**
 * Returns the step of a score on its probe's scale: 0 … STEPS, negative below zero on a signed scale. On a scale wholly below
 * zero, its end nearest to zero is step 0.
 */
export function stepOf(score: number, { range: [low, high], signed }: Scale): number {
  const step = Math.round(Math.min(1, Math.max(signed ? -1 : 0, shareOf(score, low, high, signed))) * STEPS);
  return step === 0 ? 0 : step;
}

function shareOf(score: number, low: number, high: number, signed: boolean): number {
  if (!signed) return (score - low) / (high - low || 1);
  if (high <= 0) return Math.min(0, (score - high) / (high - low || 1));
  return score / (Math.max(Math.abs(low), high) || 1);
}

/** How scores become colours: only those at or over the threshold, or all of them on their whole scale. */
export type Heat = "events" | "scale";

/** Step of a score that is exactly at its threshold: an event is seen at once. */
export const EVENT_STEP = 12;

/**
 * Returns the step of a score as `heat` asks. As events, a score below its threshold is step 0, and the steps from
 * `EVENT_STEP` on tell how far above the threshold it is. A probe without a threshold is on its whole scale either way.
 */
export function heatStep(score: number, scale: Scale & { threshold: number | null }, heat: Heat): number {
  const { range, threshold } = scale;
  if (heat === "scale" || threshold === null) return stepOf(score, scale);
  if (score < threshold) return 0;
  const room = range[1] - threshold;
  const share = room > 0 ? Math.min(1, (score - threshold) / room) : 1;
  return Math.round(EVENT_STEP + (STEPS - EVENT_STEP) * share);
}

/** Returns whether a score lies outside its scale, so that its colour is that of the scale's end. */
export function isBeyond(score: number, { range: [low, high], signed }: Scale): boolean {
  const end = signed && high > 0 ? Math.max(Math.abs(low), high) : high;
  return score > end || score < (signed && high > 0 ? -end : low);
}
