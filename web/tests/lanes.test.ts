import { describe, expect, it } from "vitest";
import { asProbe } from "../src/api/types";
import { Board } from "../src/lanes/board";
import { axisOf, chosenBetween, LEAST_SPAN, placeOn, positionAt } from "../src/lanes/axis";
import { baseOf, heightOf, runsOf } from "../src/lanes/draw";
import { FeatureIndex } from "../src/lanes/features";
import { featureLanes, type Lane, matching, probeLanes } from "../src/lanes/lane";
import { inOrder, loudestFirst, riseOf } from "../src/lanes/order";
import { FeatureSeries, newEnvelope, ProbeSeries } from "../src/lanes/series";
import { RunningTally } from "../src/lanes/tally";
import { Column } from "../src/trace/column";
import { Trace } from "../src/trace/trace";

globalThis.requestAnimationFrame = () => 1;

const SITE = "layers.3.resid_post";
const NOTHING = { background: null, underlines: [] };

function column(scores: (number | null)[], letter = "n"): Column {
  const made = new Column("danger", SITE, 1, scores.length + 8);
  scores.forEach((score, p) => made.set(p, score, score === null ? letter : undefined));
  return made;
}

function laneOf(id: string, threshold: number | null, range: [number, number] = [0, 1]): Lane {
  const probe = asProbe({ id, site: SITE, range, threshold });
  return {
    key: `probe ${id}`,
    kind: "probe",
    id,
    label: id,
    scale: probe,
    series: null,
    probe,
    left: null,
  };
}

describe("the axis", () => {
  it("shows the answer alone, all of the request, or what was chosen; a short one does not fill it", () => {
    expect(axisOf("answer", 100, 110)).toEqual({ from: 100, to: 110, span: LEAST_SPAN });
    expect(axisOf("all", 100, 110)).toEqual({ from: 0, to: 110, span: 110 });
    expect(axisOf([20, 30], 100, 110)).toEqual({ from: 20, to: 30, span: 10 });
    expect(axisOf([100, 130], 100, 110)).toEqual({ from: 100, to: 110, span: 30 });
  });

  it("shows the prompt while there is no answer", () => {
    expect(axisOf("answer", 100, 100)).toEqual({ from: 0, to: 100, span: 100 });
  });

  it("leads from every position to its place and back, and from outside to the nearest position", () => {
    for (const length of [3, 90, 30_000]) {
      const axis = axisOf("all", 0, length);
      for (const position of [0, 1, length >> 1, length - 1]) {
        const place = placeOn(axis, position, 400);
        expect(positionAt(axis, place ?? -1, 400)).toBe(position);
      }
      expect([positionAt(axis, -50, 400), positionAt(axis, 999, 400)]).toEqual([0, length - 1]);
      expect(placeOn(axis, length, 400)).toBeNull();
    }
  });

  it("chooses the positions between two places, in either direction, and never fewer than four", () => {
    const axis = axisOf("all", 0, 100);
    expect(chosenBetween(axis, 100, 200, 400)).toEqual([25, 51]);
    expect(chosenBetween(axis, 200, 100, 400)).toEqual([25, 51]);
    expect(chosenBetween(axis, 100, 101, 400)).toEqual([25, 29]);
  });
});

describe("an envelope", () => {
  it("has the highest and the lowest score of each pixel, where tokens outnumber pixels", () => {
    const envelope = newEnvelope(2);
    new ProbeSeries(column([0.1, 0.9, -0.3, 0.2]), 0).fill(envelope, { from: 0, to: 4, span: 4 });
    expect([[...envelope.high], [...envelope.low]]).toEqual([
      [0.9, 0.2],
      [0.1, -0.3],
    ]);
  });

  it("has the token of each pixel, where pixels outnumber tokens, and nothing behind the last", () => {
    const envelope = newEnvelope(8);
    new ProbeSeries(column([0.5, 0.25]), 0).fill(envelope, { from: 0, to: 2, span: 4 });
    expect([...envelope.high]).toEqual([0.5, 0.5, 0.25, 0.25, NaN, NaN, NaN, NaN]);
  });

  it("never draws what was not computed as a score, nor the first token of a learnt scale", () => {
    const envelope = newEnvelope(4);
    new ProbeSeries(column([7, null, 0, 1]), 1).fill(envelope, { from: 0, to: 4, span: 4 });
    expect([...envelope.high]).toEqual([NaN, NaN, 0, 1]);
    expect(runsOf(envelope).map(({ x, high }) => [x, high])).toEqual([
      [2, 0],
      [3, 1],
    ]);
  });

  it("draws equal neighbours as one run", () => {
    const envelope = newEnvelope(6);
    new ProbeSeries(column([0.5, 0.5, 0.2]), 0).fill(envelope, { from: 0, to: 3, span: 3 });
    expect(runsOf(envelope)).toEqual([
      { x: 0, width: 4, high: 0.5, low: 0.5 },
      { x: 4, width: 2, high: 0.2, low: 0.2 },
    ]);
  });

  it("of a feature is unknown outside the strongest, which is not 0", () => {
    const series = new FeatureSeries();
    for (const [position, value] of [
      [5, 2],
      [1, 3],
      [5, 9],
    ] as const)
      series.add(position, value);
    const envelope = newEnvelope(8);
    series.fill(envelope, { from: 0, to: 8, span: 8 });
    expect([...envelope.high]).toEqual([NaN, 3, NaN, NaN, NaN, 2, NaN, NaN]);
    expect([series.at(1), series.at(2), series.max]).toEqual([3, null, 3]);
  });
});

describe("a lane's height", () => {
  it("is on its own scale, clipped to it, filled from 0 on a signed one", () => {
    expect([-1, 0, 4, 8, 99].map((score) => heightOf(score, [0, 8]))).toEqual([0, 0, 0.5, 1, 1]);
    const signed = { range: null, threshold: null, learnt: false, signed: true };
    expect(baseOf(signed, [-4, 4])).toBe(0);
    expect(baseOf(signed, [-9, -2])).toBe(-2);
    expect(baseOf({ ...signed, signed: false }, [3, 5])).toBe(3);
  });
});

describe("a tally", () => {
  it("counts each score once, at or over the threshold, from the answer on", () => {
    const scores = column([1, 0.5, 0.49, null, 0.7]);
    const tally = new RunningTally(scores, 1, 0.5, 0);
    for (let length = 1; length <= 5; length++) tally.advance(length);
    tally.advance(5);
    expect([tally.over, tally.max]).toEqual([2, 0.7]);
  });

  it("waits at a row that has not come, and counts it when it has", () => {
    const scores = column([0.9]);
    const tally = new RunningTally(scores, 0, 0.5, 0);
    tally.advance(3);
    scores.set(1, 0.95, undefined);
    scores.set(2, 0.1, undefined);
    tally.advance(3);
    expect([tally.over, tally.max]).toEqual([2, 0.95]);
  });
});

describe("the order of lanes", () => {
  it("compares lanes of different scales by how far above their thresholds they are", () => {
    expect(riseOf(0.6, laneOf("a", 0.5).scale)).toBeCloseTo(0.1);
    expect(riseOf(4, laneOf("b", 2, [0, 8]).scale)).toBeCloseTo(0.25);
    expect(riseOf(1, laneOf("c", null).scale)).toBe(0);
    expect(riseOf(null, laneOf("d", 0.5).scale)).toBe(Number.NEGATIVE_INFINITY);
  });

  it("has the loudest first, those selected above all, features after probes, and those without scores as they were", () => {
    const lanes = [laneOf("none", 0.5), laneOf("quiet", 0.9), laneOf("loud", 0.5), laneOf("chosen", 0.9)];
    const feature: Lane = { ...laneOf("7", null), key: "feature 7", kind: "feature" };
    const max: Record<string, number> = { quiet: 0.2, loud: 0.8, chosen: 0.1, 7: 90 };
    const keys = loudestFirst([feature, ...lanes, laneOf("none too", 0.5)], ({ id }) => max[id] ?? null, {
      background: "chosen",
      underlines: [],
    });
    expect(keys).toEqual([
      "probe chosen",
      "probe loud",
      "probe quiet",
      "probe none",
      "probe none too",
      "feature 7",
    ]);
  });

  it("stays while scores come, and new lanes go to its end", () => {
    const [a, b, c, d] = ["a", "b", "c", "d"].map((id) => laneOf(id, 0.5)) as [Lane, Lane, Lane, Lane];
    const keys = inOrder([a, b, c, d], [c.key, a.key]).map(({ id }) => id);
    expect(keys).toEqual(["c", "a", "b", "d"]);
    expect(loudestFirst([a, b], () => null, NOTHING)).toEqual([a.key, b.key]);
  });
});

describe("the board", () => {
  const known = ["a", "b"].map((id) => asProbe({ id, since: 0, site: SITE, threshold: 0.5 }));
  const answered = (a: number, b: number, final = true) => {
    const trace = new Trace();
    trace.apply({ v: 1, prompt_tokens: 0, probes: [{ id: "a" }, { id: "b" }] });
    trace.apply({ v: 1, tokens: { start: 0, ids: [1], text: ["x"] }, scores: { start: 0, rows: [[a, b]] } });
    if (final) trace.apply({ v: 1, final: { present: 1, computed: 1 } });
    return trace;
  };
  const orderOf = (board: Board, trace: Trace) => {
    board.show(trace);
    board.setLanes(probeLanes(trace, known, new Map()));
    return board.order.get().join();
  };

  it("orders by the request that is shown, also by one that ended before, and by none before it has ended", () => {
    const board = new Board();
    expect(orderOf(board, answered(0.1, 0.9, false))).toBe("");
    expect(orderOf(board, answered(0.1, 0.9))).toBe("probe b,probe a");
    expect(orderOf(board, answered(0.9, 0.1))).toBe("probe a,probe b");
    expect(orderOf(board, answered(0.1, 0.9, false))).toBe("probe a,probe b");
  });

  it("keeps the rows where they are under the reader's hand", () => {
    const board = new Board();
    board.hold(true);
    expect(orderOf(board, answered(0.1, 0.9))).toBe("");
    board.hold(false);
    expect(board.order.get().join()).toBe("probe b,probe a");
  });
});

describe("the lanes of a request", () => {
  it("are of the engine's probes, of those that have left it, and of those that only the request knows", () => {
    const trace = new Trace();
    trace.apply({ v: 1, probes: [{ id: "now", since: 1 }, { id: "stranger" }] });
    const now = asProbe({ id: "now", since: 1, site: SITE, threshold: 0.5 });
    const late = asProbe({ id: "late", since: 2, site: SITE });
    const gone = { probe: asProbe({ id: "gone", site: SITE, label: "Gone" }), at: new Date() };
    const lanes = probeLanes(trace, [now, late], new Map([["gone", gone]]));
    expect(lanes.map(({ id, label, series, left }) => [id, label, series !== null, left !== null])).toEqual([
      ["now", "now", true, false],
      ["late", "late", false, false],
      ["gone", "Gone", false, true],
      ["stranger", "stranger", true, false],
    ]);
    expect(lanes[3]?.scale.range).toBeNull();
  });

  it("are found by words of their names and sites", () => {
    const lanes = [laneOf("danger", 0.5), laneOf("user turn", 0.5)];
    const found = (words: string) => matching(lanes, words).map(({ id }) => id);
    expect([found("DANG"), found("turn layers.3"), found("x"), found(" ")]).toEqual([
      ["danger"],
      ["user turn"],
      [],
      ["danger", "user turn"],
    ]);
  });

  it("have one for each feature that was among the strongest, on a scale up to its highest activation", () => {
    const trace = new Trace();
    trace.apply({ v: 1, tokens: { start: 0, ids: [1, 2], text: ["a", "b"] } });
    const index = new FeatureIndex(trace);
    const ids = [
      [4, 9],
      [9, 2],
    ];
    trace.apply({
      v: 1,
      features: {
        start: 0,
        ids,
        values: [
          [3, 1],
          [2, null],
        ],
      },
    });
    expect([index.update(0, 2), index.update(0, 2)]).toEqual([true, false]);
    expect(featureLanes(index).map(({ label, scale }) => [label, scale.range])).toEqual([
      ["feature #4", [0, 3]],
      ["feature #9", [0, 2]],
    ]);
  });
});
