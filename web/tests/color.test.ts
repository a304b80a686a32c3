import { describe, expect, it } from "vitest";
import { contrast, toHex } from "../src/color/oklch";
import {
  EVENT_STEP,
  heatStep,
  INK,
  PAPER,
  type Scale,
  STEPS,
  slotColor,
  stepColor,
  stepOf,
  THEMES,
} from "../src/color/ramp";
import { rampRules } from "../src/color/sheet";

const ALL_STEPS = Array.from({ length: STEPS + 1 }, (_, step) => step);

describe("the ramps", () => {
  it.each(THEMES)("keep the text's contrast at 4.5:1 or more on every step of the %s theme", (theme) => {
    for (const hue of ["positive", "negative"] as const) {
      for (const step of ALL_STEPS) {
        expect(contrast(stepColor(theme, hue, step), INK[theme])).toBeGreaterThanOrEqual(4.5);
      }
    }
  });

  it.each(THEMES)("move steadily away from the page in the %s theme", (theme) => {
    for (const hue of ["positive", "negative"] as const) {
      const distances = ALL_STEPS.map((step) => contrast(stepColor(theme, hue, step), PAPER[theme]));
      expect(distances).toEqual([...distances].sort((a, b) => a - b));
    }
  });

  it.each(THEMES)("draw lines that stand out at 3:1 or more in the %s theme", (theme) => {
    for (const slot of [0, 1, 2, 3]) {
      expect(contrast(slotColor(theme, slot), PAPER[theme])).toBeGreaterThanOrEqual(3);
    }
  });

  it("never get lighter than OKLCH .50 in the dark theme", () => {
    const limit = contrast(toHex([0.5, 0, 0]), "#000000") + 0.8;
    expect(contrast(stepColor("dark", "positive", STEPS), "#000000")).toBeLessThan(limit);
  });

  it("have a rule for every class that the heatmap uses", () => {
    const rules = rampRules();
    for (const name of [".s1{", ".s32{", ".n1{", ".n32{", ".a1{", ".b6{", ".c12{"])
      expect(rules).toContain(name);
  });
});

describe("a step", () => {
  it("depends on the probe's own range and on nothing else, and stops at its ends", () => {
    const scale: Scale = { range: [0, 8], signed: false };
    expect([-3, 0, 4, 8, 99].map((score) => stepOf(score, scale))).toEqual([0, 0, STEPS / 2, STEPS, STEPS]);
  });

  it("has the sign of the score on a signed scale", () => {
    const scale: Scale = { range: [-2, 4], signed: true };
    expect([-4, -2, 0, 4].map((score) => stepOf(score, scale))).toEqual([-STEPS, -STEPS / 2, 0, STEPS]);
  });
});

describe("heat by threshold", () => {
  const scale = { range: [0, 1], signed: false, threshold: 0.5 } as const;
  const steps = (scores: number[], of: Parameters<typeof heatStep>[1], heat: "events" | "scale" = "events") =>
    scores.map((score) => heatStep(score, of, heat));

  it("leaves every token below the threshold plain, and begins at it with a colour that is seen", () => {
    expect(steps([0, 0.3, 0.4999, 0.5, 0.75, 1, 2], scale)).toEqual([
      0,
      0,
      0,
      EVENT_STEP,
      (EVENT_STEP + STEPS) / 2,
      STEPS,
      STEPS,
    ]);
  });

  it("colours a probe without a threshold on its whole scale, and any probe where that is asked for", () => {
    expect(steps([0, 0.5, 1], { ...scale, threshold: null })).toEqual([0, STEPS / 2, STEPS]);
    expect(steps([0, 0.25, 1], scale, "scale")).toEqual([0, STEPS / 4, STEPS]);
  });

  it("has no colour below zero on a signed scale, and full colour where the threshold is at the scale's end", () => {
    expect(steps([-4, -1, 1], { range: [-4, 4], signed: true, threshold: 1 })).toEqual([0, 0, EVENT_STEP]);
    expect(steps([0.9, 1], { ...scale, threshold: 1 })).toEqual([0, STEPS]);
  });
});
