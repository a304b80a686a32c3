import { INK, LEVELS, PAPER, STEPS, slotColor, stepColor } from "./ramp";

/** Colour of the bar above tokens with scores below zero. */
const SIGN = "light-dark(#6f43ad,#b79bea)";

/**
 * Returns the ramps as CSS classes, so that a change of theme needs no repainting:
 *   s1 … s32   background, score above zero        n1 … n32   background, score below zero
 *   a1 … c12   first to third underline, by strength   a-none … c-none   the same without a number: dotted
 */
export function rampRules(): string {
  const rules = [
    `:root{--paper:${pair(PAPER.light, PAPER.dark)};--ink:${pair(INK.light, INK.dark)};${slotVariables()}}`,
  ];
  for (let step = 1; step <= STEPS; step++) {
    const sign = Math.round(20 + (80 * step) / STEPS);
    rules.push(`.s${step}{--heat:${stepPair("positive", step)}}`);
    rules.push(
      `.n${step}{--heat:${stepPair("negative", step)};--sign:color-mix(in oklab,${SIGN} ${sign}%,transparent)}`,
    );
  }
  for (const [i, letter] of [..."abc"].entries()) {
    const dots = `repeating-linear-gradient(90deg,var(--slot-${i + 1}) 0 1px,transparent 1px 5px)`;
    rules.push(`.${letter}-none{--none-${letter}:${dots}}`);
    for (let level = 1; level <= LEVELS; level++) {
      const share = Math.round((100 * level) / LEVELS);
      rules.push(
        `.${letter}${level}{--line-${letter}:color-mix(in oklab,var(--slot-${i + 1}) ${share}%,transparent)}`,
      );
    }
  }
  return rules.join("\n");
}

function slotVariables(): string {
  return [0, 1, 2, 3]
    .map((s) => `--slot-${s}:${pair(slotColor("light", s), slotColor("dark", s))}`)
    .join(";");
}

function stepPair(hue: "positive" | "negative", step: number): string {
  return pair(stepColor("light", hue, step), stepColor("dark", hue, step));
}

function pair(light: string, dark: string): string {
  return `light-dark(${light},${dark})`;
}

/** Installs the ramps as a constructed style sheet, which a CSP of `style-src 'self'` allows, unlike a style element. */
export function installRamps(): void {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(rampRules());
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}
