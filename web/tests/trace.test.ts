import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { CellState } from "../src/trace/column";
import { findInPrompt } from "../src/trace/find";
import { whitespaceMarks } from "../src/trace/marks";
import { Trace } from "../src/trace/trace";
import { endsInsideSequence } from "../src/trace/units";
import type { ScopePayload } from "../src/wire/types";

const frames: (() => void)[] = [];
beforeEach(() => {
  globalThis.requestAnimationFrame = (run) => frames.push(() => run(0));
});
const paint = () => {
  for (const run of frames.splice(0)) run();
};

const words = (start: number, ...text: string[]): ScopePayload => ({
  v: 1,
  tokens: { start, ids: text.map((_, i) => 100 + start + i), text },
});
const header = (...ids: string[]): ScopePayload => ({
  v: 1,
  probes: ids.map((id) => ({ id, site: "layers.3.resid_post" })),
});
const row = (start: number, ...rows: (number | null)[][]): ScopePayload => ({
  v: 1,
  scores: { start, rows },
});
const byte = (start: number, ...bytes: number[]): ScopePayload => ({
  v: 1,
  tokens: { start, ids: [1], text: ["\ufffd"], bytes: { 0: btoa(String.fromCharCode(...bytes)) } },
});

afterEach(paint);

describe("a trace", () => {
  it("keeps every token and score while it grows from 2 to 5,000 positions", () => {
    const trace = new Trace(2);
    trace.apply(header("a", "b"));
    for (let p = 0; p < 5000; p++) {
      trace.apply(words(p, `w${p}`));
      trace.apply(row(p, [p / 7, -p]));
    }
    expect(trace.capacity).toBe(8192);
    expect([trace.ids[4321], trace.textAt(4321)]).toEqual([4421, "w4321"]);
    expect(trace.column("a")?.scoreAt(4321)).toBe(4321 / 7);
    expect(trace.column("b")?.scoreAt(1)).toBe(-1);
  });

  it("shows a token without its row as pending", () => {
    const trace = new Trace();
    trace.apply(header("a"));
    trace.apply(words(0, "x", "y"));
    trace.apply(row(0, [0]));
    expect([0, 1].map((p) => trace.column("a")?.stateAt(p))).toEqual([CellState.computed, CellState.pending]);
  });

  it("never claims to know whether a pending cell was computed when the stream is lost", () => {
    const trace = new Trace();
    trace.apply(header("a"));
    trace.apply(words(0, "x"));
    trace.close();
    expect(trace.column("a")?.stateAt(0)).toBe(CellState.lost);
  });

  it("puts rows under the right probes when the set changes in the middle", () => {
    const trace = new Trace();
    trace.apply(header("a", "b"));
    trace.apply(words(0, "x", "y", "z"));
    trace.apply(row(0, [1, 2]));
    trace.apply(header("b", "c"));
    trace.apply(row(1, [3, 4]));
    expect(trace.column("a")?.stateAt(1)).toBe(CellState.never);
    expect(trace.column("b")?.scoreAt(1)).toBe(3);
    expect(trace.column("c")?.stateAt(0)).toBe(CellState.never);
    expect(trace.column("c")?.scoreAt(1)).toBe(4);
    expect(trace.column("c")?.stateAt(2)).toBe(CellState.pending);
  });

  it("shows a swapped probe from its swap on, with nothing of the one before, also after a resume", () => {
    const trace = new Trace();
    const swapped: ScopePayload = {
      v: 1,
      probes: [
        { id: "a", since: 2 },
        { id: "b", since: 1 },
      ],
    };
    const first: ScopePayload = {
      v: 1,
      probes: [
        { id: "a", since: 1 },
        { id: "b", since: 1 },
      ],
    };
    trace.apply(first);
    trace.apply(words(0, "x", "y", "z"));
    trace.apply(row(0, [1, 2]));
    const version = trace.columnsVersion;
    trace.apply(swapped);
    trace.apply(row(1, [3, 4]));
    expect(trace.columnsVersion).toBe(version + 1);
    for (const replay of [[], [first, row(0, [1, 2]), swapped, row(1, [3, 4])]]) {
      for (const payload of replay) trace.apply(payload);
      expect(trace.columns.map(({ id, since }) => [id, since])).toEqual([
        ["a", 2],
        ["b", 1],
      ]);
      expect([0, 1, 2].map((p) => trace.column("a")?.scoreAt(p))).toEqual([null, 3, null]);
      expect([0, 2].map((p) => trace.column("a")?.stateAt(p))).toEqual([CellState.never, CellState.pending]);
      expect([0, 1].map((p) => trace.column("b")?.scoreAt(p))).toEqual([2, 4]);
    }
  });

  it("takes a repeated or overlapping block after a resume only once", () => {
    const trace = new Trace();
    trace.apply(words(0, "a", "b"));
    trace.apply(words(1, "b", "c"));
    trace.apply(words(0, "a"));
    expect(trace.units.texts).toEqual(["a", "b", "c"]);
  });

  it("tells its listeners once a frame, with the whole range that changed", () => {
    const trace = new Trace();
    const calls: number[][] = [];
    trace.subscribe((from, to) => calls.push([from, to]));
    trace.apply(words(0, "a"));
    trace.apply(words(1, "b", "c"));
    paint();
    trace.apply(words(3, "d"));
    paint();
    expect(calls).toEqual([
      [0, 3],
      [3, 4],
    ]);
  });

  it("leaves positions whose tokens were not sent without a unit", () => {
    const trace = new Trace();
    trace.apply({ v: 1, prompt_tokens: 2 });
    trace.apply(words(2, "a"));
    expect([trace.ids[0], trace.units.starts]).toEqual([-1, [2]]);
  });
});

describe("byte tokens", () => {
  it("become one unit as soon as their bytes are one character", () => {
    const trace = new Trace();
    trace.apply(words(0, "x"));
    for (const [i, b] of [0xf0, 0x9f, 0xa6, 0x8a].entries()) trace.apply(byte(1 + i, b));
    trace.apply(words(5, "!"));
    expect(trace.units.texts).toEqual(["x", "🦊", "!"]);
    expect([trace.units.starts[1], trace.units.ends[1]]).toEqual([1, 5]);
    expect([0, 1, 4, 5, 6].map((p) => trace.units.indexAt(p))).toEqual([0, 1, 1, 2, 3]);
  });

  it("may share a token between two characters", () => {
    const trace = new Trace();
    trace.apply(byte(0, 0xe2, 0x82));
    trace.apply(byte(1, 0xac, 0xe2));
    trace.apply(byte(2, 0x82, 0xac));
    expect(trace.units.texts).toEqual(["€€"]);
  });

  it("stay a replacement character when what follows does not complete them", () => {
    const trace = new Trace();
    trace.apply(byte(0, 0xe2));
    trace.apply(words(1, "a"));
    trace.apply(byte(2, 0xff));
    trace.apply(byte(3, 0xff));
    expect(trace.units.texts).toEqual(["\ufffd", "a", "\ufffd", "\ufffd"]);
  });

  it("are complete exactly when no sequence is open at the end", () => {
    const open = (...bytes: number[]) => endsInsideSequence(Uint8Array.from(bytes));
    expect([open(0xe2), open(0xe2, 0x82), open(0xf0, 0x9f, 0xa6)]).toEqual([true, true, true]);
    expect([open(0x41), open(0xe2, 0x82, 0xac), open(0x80), open(0xff)]).toEqual([
      false,
      false,
      false,
      false,
    ]);
  });
});

describe("text", () => {
  it("made of nothing but whitespace gets visible marks, and no other text does", () => {
    expect(whitespaceMarks("\n\n")).toBe("↵↵");
    expect(whitespaceMarks(" \t")).toBe("␣→");
    expect([whitespaceMarks(" snow"), whitespaceMarks("")]).toEqual([null, null]);
  });

  it("of the user is found as whole tokens of the prompt, in its last copy", () => {
    const trace = new Trace();
    trace.apply({ v: 1, prompt_tokens: 6 });
    trace.apply(words(0, "<u>", "hi", "</u>", "<u>\n", "h", "i</u>", "hi"));
    expect(findInPrompt(trace, "hi")).toEqual([4, 6]);
    expect(findInPrompt(trace, "ho")).toBeNull();
  });
});

describe("a snapshot", () => {
  it("gives back every token, score, state and feature, and can be filled further", () => {
    const trace = new Trace();
    trace.apply({
      v: 1,
      request: "r",
      prompt_tokens: 1,
      probes: [{ id: "joy", site: "s", since: 3 }],
      tokens: {
        start: 0,
        ids: [1, 2, 3],
        text: ["a", "\ufffd", "\ufffd"],
        bytes: { 1: "w6k=", 2: "8J+mig==" },
      },
      scores: { start: 0, rows: [[0.25], [null]], states: ["c", "m"] },
      features: { start: 0, ids: [[7]], values: [[1.5]] },
    });
    const kept = structuredClone(trace.snapshot());
    const back = Trace.restore(kept);
    expect(back.snapshot()).toEqual(trace.snapshot());
    expect([0, 1, 2].map((p) => back.units.at(p).text)).toEqual(["a", "é", "🦊"]);
    back.apply({ v: 1, scores: { start: 2, rows: [[0.5]] } });
    expect(back.column("joy")?.scoreAt(2)).toBe(0.5);
  });
});

describe("a message in the prompt", () => {
  it("is found without the white space at its ends, which templates remove", () => {
    const trace = new Trace();
    const text = ["<|user|>", "\n", "a", " fox", "<|end|>"];
    trace.apply({ v: 1, prompt_tokens: 5, tokens: { start: 0, ids: [1, 2, 3, 4, 5], text } });
    expect(findInPrompt(trace, "  a fox \n")).toEqual([2, 4]);
    expect(findInPrompt(trace, "a wolf")).toBeNull();
    expect(findInPrompt(trace, "  ")).toBeNull();
  });
});
