import { act } from "react";
import { createRoot, type Root } from "react-dom/client";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { asProbe } from "../src/api/types";
import { probeLanes } from "../src/lanes/lane";
import { newEnvelope } from "../src/lanes/series";
import { isBeyond, type Scale, STEPS, stepOf } from "../src/color/ramp";
import { Legend } from "../src/panel/Legend";
import { describe as inWords } from "../src/heatmap/describe";
import { Heatmap } from "../src/heatmap/Heatmap";
import {
  chooseBackground,
  isLearning,
  learning,
  probes,
  selection,
  toggleUnderline,
} from "../src/state/probes";
import { Trace } from "../src/trace/trace";

(globalThis as { IS_REACT_ACT_ENVIRONMENT?: boolean }).IS_REACT_ACT_ENVIRONMENT = true;

const SITE = "layers.3.resid_post";
const learntAs = (range: [number, number] | null, tokens: number, settled = false) =>
  asProbe({
    id: "raw",
    site: SITE,
    range,
    signed: range !== null && range[0] < 0,
    range_learnt: { tokens, settled },
  });
const danger = asProbe({ id: "danger", site: SITE, range: [0, 1], threshold: 0.5 });
/** Scores of `raw` by position: the attention sink first, then both signs, one far outside. */
const RAW = [-8000, 10, -20, 0, 40, 55];

let root: Root;
let trace: Trace;
let host: HTMLElement;

const frame = () => act(() => new Promise<void>((done) => requestAnimationFrame(() => done())));
const show = async (probe: ReturnType<typeof learntAs>, tokens: number, settled: boolean) => {
  await act(() => {
    probes.set([danger, probe]);
    learning.set(new Map([["raw", { tokens, settled }]]));
  });
  await frame();
};
const classes = () => [...host.querySelectorAll("[data-pos]")].map((span) => span.className);
const legend = () => host.querySelector('[data-testid="legend"]')?.textContent ?? "";

beforeEach(async () => {
  chooseBackground("raw");
  trace = new Trace();
  trace.apply({
    v: 1,
    prompt_tokens: 0,
    probes: [{ id: "danger" }, { id: "raw" }],
    tokens: { start: 0, ids: RAW.map((_, i) => i), text: RAW.map((_, i) => ` w${i}`) },
    scores: { start: 0, rows: RAW.map((score) => [0.25, score]) },
  });
  host = document.body.appendChild(document.createElement("div"));
  root = createRoot(host);
  await act(() =>
    root.render(
      <>
        <Heatmap trace={trace} from={0} label="Answer" />
        <Legend />
      </>,
    ),
  );
});

afterEach(async () => {
  await act(() => root.unmount());
  for (const id of selection.get().underlines) if (id !== null) toggleUnderline(id);
  document.body.replaceChildren();
});

describe("a probe without a range of its own", () => {
  it("has no colours before a range is learnt, and the legend says so", async () => {
    await show(learntAs(null, 3), 3, false);
    expect(classes()).toEqual(["t first", ...Array.from({ length: 5 }, () => "t unscaled")]);
    expect(legend()).toContain(
      "No scale yet: raw states none, so it is learnt from its scores (3 tokens so far).",
    );
    expect(isLearning()).toBe(true);
  });

  it("is coloured on the learnt range, both signs apart, without the first token, and clipped with a mark", async () => {
    await show(learntAs([-40, 40], 33), 33, false);
    expect(classes()).toEqual([
      "t first",
      `t s${STEPS / 4}`,
      `t n${STEPS / 2} below`,
      "t",
      `t s${STEPS}`,
      `t s${STEPS} beyond`,
    ]);
    expect(legend()).toContain("Scale learnt from 33 tokens so far; the probe states none.");
    expect(legend()).toContain("first token, not on the scale");
    expect(legend()).toContain("−40");
  });

  it("says that it has settled, and is then not asked for again", async () => {
    await show(learntAs([-40, 40], 1204, true), 1204, true);
    expect(legend()).toContain("Scale learnt from 1,204 tokens; the probe states none.");
    expect(isLearning()).toBe(false);
  });

  it("is not painted again while only the number of tokens grows", async () => {
    await show(learntAs([-40, 40], 33), 33, false);
    const list = probes.get();
    await act(() => learning.set(new Map([["raw", { tokens: 60, settled: false }]])));
    expect(probes.get()).toBe(list);
    expect(JSON.stringify(learntAs([-40, 40], 60))).toBe(JSON.stringify(learntAs([-40, 40], 33)));
  });

  it("tells in words where a score lies", async () => {
    await show(learntAs([-40, 40], 33), 33, false);
    const at = (position: number) => inWords(trace, position, selection.get(), probes.get());
    expect(at(0)).toContain("raw −8000.0000, first token, not on the scale");
    expect(at(1)).toMatch(/raw 10\.0000$/);
    expect(at(5)).toContain("raw 55.0000, beyond the scale");
  });

  it("keeps its scale when it leaves the engine", async () => {
    await show(learntAs([-40, 40], 33), 33, false);
    const before = classes();
    await act(() => probes.set([danger]));
    await frame();
    expect(classes()).toEqual(before);
  });
});

describe("the legend", () => {
  it("says nothing of learning for a probe that states its range", async () => {
    await act(() => chooseBackground("danger"));
    await show(learntAs([-40, 40], 33), 33, false);
    expect(legend()).not.toContain("learnt");
    expect(legend()).not.toContain("first token");
    expect(classes()[0]).toBe("t");
  });
});

describe("a lane", () => {
  it("has its own scale, and leaves the first token of a learnt one out", () => {
    const [safe, raw] = probeLanes(trace, [danger, learntAs([-40, 40], 33)], new Map());
    expect([safe?.scale.range, raw?.scale.range]).toEqual([
      [0, 1],
      [-40, 40],
    ]);
    const envelope = newEnvelope(RAW.length);
    raw?.series?.fill(envelope, { from: 0, to: RAW.length, span: RAW.length });
    expect([...envelope.high]).toEqual([Number.NaN, 10, -20, 0, 40, 55]);
  });

  it("has no scale while none is learnt", () => {
    const [, raw] = probeLanes(trace, [danger, learntAs(null, 3)], new Map());
    expect(raw?.scale.range).toBeNull();
  });
});

describe("a step", () => {
  const below: Scale = { range: [-50, -30], signed: true };
  const offset: Scale = { range: [30, 50], signed: false };

  it("begins at the end nearest to zero on a scale that lies wholly below zero", () => {
    expect([-60, -50, -40, -30, -10, 5].map((score) => stepOf(score, below))).toEqual([
      -STEPS,
      -STEPS,
      -STEPS / 2,
      0,
      0,
      0,
    ]);
    expect([30, 40, 50].map((score) => stepOf(score, offset))).toEqual([0, STEPS / 2, STEPS]);
  });

  it("knows which scores lie beyond its scale", () => {
    expect([-51, -50, -30, -29].map((score) => isBeyond(score, below))).toEqual([true, false, false, true]);
    expect([29, 30, 50, 51].map((score) => isBeyond(score, offset))).toEqual([true, false, false, true]);
    const uneven: Scale = { range: [-2, 4], signed: true };
    expect([-4, -2, 4, 4.1, -4.1].map((score) => isBeyond(score, uneven))).toEqual([
      false,
      false,
      false,
      true,
      true,
    ]);
  });
});
