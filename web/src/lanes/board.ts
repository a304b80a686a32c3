import { Cell } from "../lib/cell";
import { beforePaint } from "../lib/frame";
import { formatScore } from "../lib/numbers";
import { hover, pinned } from "../state/focus";
import { selection, slotOf } from "../state/probes";
import { STATE_WORDS } from "../trace/column";
import type { Trace } from "../trace/trace";
import { type Axis, axisOf, type Extent, LEAST_SPAN, placeOn } from "./axis";
import { drawLane, type Ink } from "./draw";
import { FeatureIndex } from "./features";
import { readInks } from "./inks";
import type { Lane } from "./lane";
import { loudestFirst } from "./order";
import { type Envelope, FeatureSeries, newEnvelope, ProbeSeries } from "./series";
import { RunningTally } from "./tally";

/** Height of a strip, in pixels of the page. */
export const STRIP_HEIGHT = 26;
const REDRAW_MS = 32;
/** From this many tokens on the lanes are drawn less often: a token moves them by less than a pixel. */
const LONG = 2_000;
/** How the wait grows with the length: 50 ms at 2,000 tokens, and at 20,000 the longest. */
const TOKENS_PER_MS = 40;
const LONGEST_REDRAW_MS = 500;
/** New features get their lanes at most this often. */
const FEATURES_MS = 250;

/** What a row of the list lends to the board. `top` is its place in the list, in pixels. */
export interface RowParts {
  readonly lane: Lane;
  readonly top: number;
  readonly canvas: HTMLCanvasElement;
  readonly value: HTMLElement;
  readonly count: HTMLElement;
}

/**
 * Draws the lanes of one request, outside React: all rows in the window in one pass, at most once a frame.
 *
 * Rows lend their canvas and numbers while they are mounted (`attach`); a row out of the window is not drawn. Colours are read
 * once a theme. Scores are counted once, as they come (`RunningTally`).
 */
export class Board {
  /** Keys of the lanes, loudest first, as they were last ordered. */
  readonly order = new Cell<readonly string[]>([]);
  readonly extent = new Cell<Extent>("answer");
  /** How many features of the request are known. */
  readonly featureCount = new Cell(0);
  features: FeatureIndex | null = null;
  private trace: Trace | null = null;
  private lanes: readonly Lane[] = [];
  private stop: () => void = () => undefined;
  private readonly rows = new Map<string, RowParts>();
  private tallies = new Map<string, RunningTally>();
  private envelope: Envelope = newEnvelope(0);
  private inks: readonly Ink[] | null = null;
  private host: HTMLElement | null = null;
  private cursors: readonly HTMLElement[] = [];
  private width = 0;
  private window: readonly [top: number, bottom: number] = [0, 0];
  private timer = 0;
  private newFeatures = 0;
  private ended = false;
  /** Whether the reader's pointer or focus is in the list: then rows stay where they are. */
  private held = false;
  private unsorted = true;

  /** Follows a request; null follows none. */
  show(trace: Trace | null): void {
    if (trace === this.trace) return;
    this.stop();
    this.trace = trace;
    this.lanes = []; // those of the request before say nothing of this one
    this.tallies.clear();
    this.features = trace && new FeatureIndex(trace);
    this.featureCount.set(0);
    this.extent.set("answer");
    this.ended = false;
    this.unsorted = true;
    this.stop = trace?.subscribe(this.onTrace) ?? (() => undefined);
    if (trace) this.onTrace(0, trace.length);
    this.redraw();
  }

  setLanes(lanes: readonly Lane[]): void {
    this.lanes = lanes;
    this.sortWhenDue();
    this.redraw();
  }

  /** Lends the list's element and its two cursors: of the pinned token, and of the one that is pointed at. */
  setHost(host: HTMLElement | null, cursors: readonly HTMLElement[]): void {
    this.host = host;
    this.cursors = cursors;
  }

  setWidth(width: number): void {
    if (width === this.width) return;
    this.width = width;
    this.redraw();
  }

  /** Says which part of the list is in the window. */
  setWindow(top: number, bottom: number): void {
    if (top === this.window[0] && bottom === this.window[1]) return;
    this.window = [top, bottom];
    beforePaint(this.draw);
  }

  attach(parts: RowParts): () => void {
    const { key } = parts.lane;
    this.rows.set(key, parts);
    beforePaint(this.draw);
    return () => {
      if (this.rows.get(key) === parts) this.rows.delete(key);
    };
  }

  setExtent(extent: Extent): void {
    this.extent.set(extent);
    this.draw();
  }

  get axis(): Axis {
    const { trace } = this;
    return trace
      ? axisOf(this.extent.get(), trace.promptTokens ?? 0, trace.length)
      : { from: 0, to: 0, span: LEAST_SPAN };
  }

  /** Keeps the rows where they are while `held`; an order that was due comes then. */
  hold(held: boolean): void {
    this.held = held;
    if (!held) this.sortWhenDue();
  }

  /** Orders the lanes, loudest first. */
  readonly sort = (): void => {
    this.unsorted = false;
    this.order.set(loudestFirst(this.lanes, (lane) => this.maxOf(lane), selection.get()));
  };

  /** Draws with the colours of the current theme. */
  readonly recolor = (): void => {
    this.inks = null;
    beforePaint(this.draw);
  };

  /** Moves the cursors and the numbers to what is pinned and pointed at. */
  readonly lead = (): void => {
    this.placeCursors();
    this.write();
  };

  private readonly onTrace = (from: number, to: number): void => {
    const { trace } = this;
    if (!trace) return;
    if (this.features?.update(from, Math.max(to, trace.length)) === true)
      this.newFeatures ||= window.setTimeout(this.countFeatures, FEATURES_MS);
    const ended = trace.final !== null || trace.closed;
    if (ended && !this.ended) this.unsorted = true;
    this.ended = ended;
    this.sortWhenDue();
    this.redraw();
  };

  private readonly countFeatures = (): void => {
    this.newFeatures = 0;
    this.featureCount.set(this.features?.byId.size ?? 0);
  };

  /** Orders the lanes when the request has ended, once, and not under the reader's hand. */
  private sortWhenDue(): void {
    if (this.unsorted && this.ended && !this.held && this.lanes.length > 0) this.sort();
  }

  private redraw(): void {
    const length = this.trace?.length ?? 0;
    const wait = length < LONG ? REDRAW_MS : Math.min(LONGEST_REDRAW_MS, length / TOKENS_PER_MS);
    this.timer ||= window.setTimeout(this.draw, wait);
  }

  private readonly draw = (): void => {
    window.clearTimeout(this.timer);
    this.timer = 0;
    if (!this.host) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(this.width * ratio), Math.round(STRIP_HEIGHT * ratio)];
    if (this.envelope.high.length !== width) this.envelope = newEnvelope(width);
    this.inks ??= readInks(this.host);
    const { axis } = this;
    const promptEnd = Math.round(((this.promptTokens - axis.from) / axis.span) * width);
    for (const { lane, canvas } of this.shown()) {
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
      const context = canvas.getContext("2d");
      if (!context) continue;
      if (lane.series) lane.series.fill(this.envelope, axis);
      else this.envelope.high.fill(Number.NaN);
      const strip = { width, height, ratio, promptEnd };
      drawLane(context, strip, this.envelope, lane.scale, this.inkOf(lane, this.inks));
    }
    this.lead();
  };

  private get promptTokens(): number {
    return this.trace?.promptTokens ?? 0;
  }

  private *shown(): Generator<RowParts> {
    const [top, bottom] = this.window;
    for (const row of this.rows.values()) {
      if (row.top < bottom && row.top + 2 * STRIP_HEIGHT > top) yield row;
    }
  }

  /** The colours of the lane's slot; those of no slot are grey. */
  private inkOf({ kind, id }: Lane, inks: readonly Ink[]): Ink {
    const slot = kind === "probe" ? slotOf(selection.get(), id) : null;
    return (inks[slot ?? inks.length - 1] ?? inks.at(-1)) as Ink;
  }

  private placeCursors(): void {
    const { host, axis } = this;
    if (!host) return;
    const spots = [pinned.get(), hover.get()].map((spot) => (spot?.trace === this.trace ? spot : null));
    const led = spots.find((spot) => spot !== null)?.position;
    if (led === undefined) host.removeAttribute("data-cursor");
    else host.setAttribute("data-cursor", String(led));
    this.cursors.forEach((cursor, i) => {
      const spot = spots[i];
      const x = spot ? placeOn(axis, spot.position, this.width) : null;
      cursor.hidden = x === null;
      if (x !== null) cursor.style.transform = `translateX(${Math.round(x)}px)`;
    });
  }

  /** Writes the numbers of the rows in the window: at the pinned token, or the one pointed at; else the highest. */
  private write(): void {
    const spot = [pinned.get(), hover.get()].find((one) => one && one.trace === this.trace);
    for (const { lane, value, count } of this.shown()) {
      setText(value, spot ? valueAt(lane, spot.position) : highest(this.maxOf(lane)));
      value.toggleAttribute(
        "data-over",
        isOver(lane, spot ? lane.series?.at(spot.position) : this.maxOf(lane)),
      );
      const over = this.tallyOf(lane)?.over ?? 0;
      setText(count, over > 0 ? `${over} over` : "");
    }
  }

  private maxOf(lane: Lane): number | null {
    if (lane.series instanceof FeatureSeries) return lane.series.max;
    return this.tallyOf(lane)?.max ?? null;
  }

  private tallyOf({ key, series, scale }: Lane): RunningTally | null {
    if (!(series instanceof ProbeSeries) || !this.trace) return null;
    const from = this.trace.length > this.promptTokens ? this.promptTokens : 0;
    let tally = this.tallies.get(key);
    const { column } = series;
    if (tally?.column !== column || tally.threshold !== scale.threshold || tally.from !== from) {
      tally = new RunningTally(column, from, scale.threshold, scale.learnt ? 1 : 0);
      this.tallies.set(key, tally);
    }
    tally.advance(this.trace.length);
    return tally;
  }
}

function valueAt({ series, kind }: Lane, position: number): string {
  if (series === null) return "not read";
  const score = series.at(position);
  if (score !== null) return formatScore(score);
  if (series instanceof ProbeSeries) return STATE_WORDS[series.column.stateAt(position)];
  return kind === "feature" ? "not in the top" : "";
}

function highest(score: number | null): string {
  return score === null ? "" : `max ${formatScore(score)}`;
}

function isOver({ scale: { threshold } }: Lane, score: number | null | undefined): boolean {
  return score !== null && score !== undefined && threshold !== null && score >= threshold;
}

function setText(node: HTMLElement, text: string): void {
  if (node.textContent !== text) node.textContent = text;
}
