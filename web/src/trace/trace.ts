import { beforePaint } from "../lib/frame";
import type {
  FeatureBlock,
  FinalBlock,
  HeaderProbe,
  SaeHeader,
  ScopePayload,
  ScoreBlock,
  TokenBlock,
  TokenLogprob,
} from "../wire/types";
import { type Chance, Chances } from "./chances";
import { CellState, Column } from "./column";
import type { TraceSnapshot } from "./snapshot";
import { fromBase64, Units } from "./units";

/** One feature of an SAE on one token. A non-finite activation is null. */
export interface Feature {
  readonly id: number;
  readonly value: number | null;
}

/** Called once per frame with the range of changed positions, `[from, to)`. */
export type TraceListener = (from: number, to: number) => void;

const NO_TOKEN = -1;

const ENCODER = new TextEncoder();

let keys = 0;

/**
 * The data of one request: tokens, scores and states by absolute position.
 *
 *   position   0 … promptTokens-1 | promptTokens … length-1
 *   ids        Int32Array            token ids, -1 for a token that was not sent
 *   columns    one Column per probe  every probe that any header named, in order of appearance; of a
 *                                    replaced probe the latest version
 *   features   of an SAE, strongest first; empty if none were computed or requested
 *
 * Payloads may arrive twice (a resumed stream); a repeated payload changes nothing.
 */
export class Trace {
  /** Unique on this page. */
  readonly key = ++keys;
  request = "";
  promptTokens: number | null = null;
  length = 0;
  ids: Int32Array;
  final: FinalBlock | null = null;
  /** The SAE whose features came. */
  sae: SaeHeader | null = null;
  /** Whether no more rows will come. */
  closed = false;
  readonly columns: Column[] = [];
  /** Changes whenever `columns` has other elements. */
  columnsVersion = 0;
  readonly units = new Units();
  private readonly texts: string[] = [];
  private readonly features: Feature[][] = [];
  /** Bytes of tokens that are not valid UTF-8 alone. */
  private readonly raw = new Map<number, Uint8Array>();
  private readonly chances = new Chances();
  private header: Column[] = [];
  /** Whether the header names all columns. */
  private complete = true;
  private scored: Uint8Array;
  private readonly listeners = new Set<TraceListener>();
  private dirtyFrom = Number.POSITIVE_INFINITY;
  private dirtyTo = 0;

  constructor(capacity = 256) {
    this.ids = new Int32Array(capacity);
    this.scored = new Uint8Array(capacity);
  }

  get capacity(): number {
    return this.ids.length;
  }

  subscribe(listener: TraceListener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  apply(payload: ScopePayload): void {
    if (payload.request !== undefined) this.request = payload.request;
    if (payload.prompt_tokens !== undefined) this.promptTokens = payload.prompt_tokens;
    if (payload.sae) this.sae = payload.sae;
    if (payload.probes) this.setHeader(payload.probes);
    if (payload.tokens) this.appendTokens(payload.tokens);
    if (payload.tokens) this.placeChances();
    if (payload.scores) this.setScores(payload.scores);
    if (payload.features) this.setFeatures(payload.features);
    if (payload.final) this.final = payload.final;
    this.touch(this.length, this.length);
  }

  textAt(position: number): string {
    return this.texts[position] ?? "";
  }

  /** Returns at most `count` of the strongest features of a position. */
  featuresAt(position: number, count: number): Feature[] {
    return this.features[position]?.slice(0, count) ?? [];
  }

  /** Returns the probability of a position's token, or null if the engine has not said it. */
  chanceAt(position: number): Chance | null {
    return this.chances.at(position);
  }

  /** Adds log-probabilities of the answer's next tokens, as an engine sends them. */
  addChances(entries: readonly TokenLogprob[]): void {
    this.chances.push(entries);
    this.placeChances();
  }

  column(id: string): Column | undefined {
    return this.columns.find((column) => column.id === id);
  }

  /** Returns all data by value. */
  snapshot(): TraceSnapshot {
    const n = this.length;
    return {
      request: this.request,
      promptTokens: this.promptTokens,
      final: this.final,
      sae: this.sae,
      ids: this.ids.slice(0, n),
      texts: [...this.texts],
      scored: this.scored.slice(0, n),
      units: this.units.snapshot(),
      columns: this.columns.map(({ id, site, since, scores, states }) => ({
        id,
        site,
        since,
        scores: scores.slice(0, n),
        states: states.slice(0, n),
      })),
      features: [...this.features],
      chances: this.chances.snapshot(),
    };
  }

  /** Returns a trace with the data of a snapshot. It can be filled further, as by a resumed stream. */
  static restore(kept: TraceSnapshot): Trace {
    const trace = new Trace(Math.max(256, kept.ids.length));
    trace.request = kept.request;
    trace.promptTokens = kept.promptTokens;
    trace.final = kept.final;
    trace.sae = kept.sae ?? null;
    trace.length = kept.ids.length;
    trace.ids.set(kept.ids);
    trace.scored.set(kept.scored);
    kept.texts.forEach((text, p) => (trace.texts[p] = text));
    kept.features.forEach((row, p) => row && (trace.features[p] = row));
    trace.units.restore(kept.units);
    trace.chances.restore(kept.chances ?? []);
    for (const { id, site, since, scores, states } of kept.columns) {
      const column = new Column(id, site, since, trace.capacity);
      column.scores.set(scores);
      column.states.set(states);
      trace.columns.push(column);
    }
    trace.header = [...trace.columns];
    trace.columnsVersion++;
    trace.touch(0, trace.length);
    return trace;
  }

  /** Ends the trace: no more rows will come. Pending cells become lost, as the page cannot know whether they were computed. */
  close(): void {
    for (const column of this.columns) {
      for (let p = 0; p < this.length; p++) {
        if (column.states[p] === CellState.pending) column.states[p] = CellState.lost;
      }
    }
    this.closed = true;
    this.touch(0, this.length);
  }

  private placeChances(): void {
    if (this.promptTokens === null) return;
    const [from, to] = this.chances.place(this.promptTokens, this.length, (p) => this.bytesAt(p));
    if (to > from) this.touch(from, to);
  }

  private bytesAt(position: number): Uint8Array {
    return this.raw.get(position) ?? ENCODER.encode(this.texts[position] ?? "");
  }

  private setHeader(probes: HeaderProbe[]): void {
    this.header = probes.map((probe) => this.columnFor(probe));
    this.complete = this.columns.every((column) => this.header.includes(column));
  }

  private columnFor({ id, site = "", since = 0 }: HeaderProbe): Column {
    const known = this.column(id);
    if (known?.since === since) return known;
    // A resumed stream repeats an earlier version of the probe: discard its cells.
    if (known && known.since > since) return new Column(id, site, since, 0);
    return this.addColumn(id, site, since, known);
  }

  /** Adds a probe's column. A row is sent only once, so positions that have theirs never get a score of this probe. */
  private addColumn(id: string, site: string, since: number, before?: Column): Column {
    const column = new Column(id, site, since, this.capacity);
    for (let p = 0; p < this.length; p++) {
      if (this.scored[p] === 1) column.states[p] = CellState.never;
    }
    if (before) this.columns[this.columns.indexOf(before)] = column;
    else this.columns.push(column);
    this.columnsVersion++;
    this.touch(0, this.length);
    return column;
  }

  private appendTokens({ start, ids, text, bytes: rawBytes }: TokenBlock): void {
    this.reserve(start + ids.length);
    while (this.length < start) this.ids[this.length++] = NO_TOKEN;
    for (let i = this.length - start; i < ids.length; i++) {
      const raw = rawBytes?.[i];
      this.ids[start + i] = ids[i] ?? NO_TOKEN;
      this.texts[start + i] = text[i] ?? "";
      const bytes = raw === undefined ? null : fromBase64(raw);
      if (bytes) this.raw.set(start + i, bytes);
      const from = this.units.push(start + i, text[i] ?? "", bytes);
      this.length = start + i + 1;
      this.touch(from, this.length);
    }
  }

  private setScores({ start, rows, states }: ScoreBlock): void {
    this.reserve(start + rows.length);
    rows.forEach((row, i) => {
      const position = start + i;
      this.scored[position] = 1;
      this.header.forEach((column, j) => {
        column.set(position, row[j] ?? null, states?.[i]?.[j]);
      });
      this.endRemoved(position);
    });
    this.touch(start, start + rows.length);
  }

  private setFeatures({ start, ids, values }: FeatureBlock): void {
    ids.forEach((row, i) => {
      if (row) this.features[start + i] = row.map((id, j) => ({ id, value: values[i]?.[j] ?? null }));
    });
    this.touch(start, start + ids.length);
  }

  /** Marks the cells of removed probes in this row as never computed. */
  private endRemoved(position: number): void {
    if (this.complete) return;
    for (const column of this.columns) {
      if (!this.header.includes(column) && column.states[position] === CellState.pending) {
        column.states[position] = CellState.never;
      }
    }
  }

  private reserve(length: number): void {
    if (length <= this.capacity) return;
    let capacity = this.capacity;
    while (capacity < length) capacity *= 2;
    const { ids, scored } = this;
    this.ids = new Int32Array(capacity);
    this.scored = new Uint8Array(capacity);
    this.ids.set(ids);
    this.scored.set(scored);
    for (const column of this.columns) column.grow(capacity);
  }

  private touch(from: number, to: number): void {
    this.dirtyFrom = Math.min(this.dirtyFrom, from);
    this.dirtyTo = Math.max(this.dirtyTo, to);
    beforePaint(this.flush);
  }

  private readonly flush = (): void => {
    const from = this.dirtyFrom;
    const to = this.dirtyTo;
    this.dirtyFrom = Number.POSITIVE_INFINITY;
    this.dirtyTo = 0;
    for (const listener of [...this.listeners]) listener(from, to);
  };
}
