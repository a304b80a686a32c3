import { whitespaceMarks } from "../trace/marks";
import type { Trace } from "../trace/trace";
import { classesFor, type Palette } from "./paint";

/** Tokens per block. A block off screen needs no layout (`content-visibility: auto`). */
export const BLOCK = 200;
/**
 * From this many tokens on a block that found no line break ends at a sentence, and from the second number on anywhere: the
 * break between blocks, which the text does not have, is then marked as none.
 */
const LONG_BLOCK = 1_500;
const LONGEST_BLOCK = 2_000;
const SENTENCE_END = /[.!?。！？]["”’)]?\s*$/;

/**
 * The tokens of `[from, to)` of one trace as spans in blocks, outside React.
 *
 *   root > .block > span.t[data-pos]      one span per unit; its classes alone determine its colour
 *
 * Token text is inserted only as text, never as markup.
 */
export class HeatmapView {
  private readonly spans: HTMLSpanElement[] = [];
  private readonly stop: () => void;
  private palette: Palette = { background: null, underlines: [], heat: "events" };
  private block: HTMLElement | null = null;
  private inBlock = 0;
  /** Whether the next token starts a new block. */
  private full = false;
  private firstUnit = -1;
  private readonly marked = new Map<string, HTMLElement>();

  constructor(
    readonly root: HTMLElement,
    readonly trace: Trace,
    readonly from: number,
    readonly to: number,
    private readonly quoted = false,
  ) {
    this.stop = trace.subscribe((low, high) => this.update(low, high));
  }

  dispose(): void {
    this.stop();
    this.root.replaceChildren();
  }

  setPalette(palette: Palette): void {
    this.palette = palette;
    this.update(0, this.trace.length);
  }

  /** Returns the span that shows a position, or null if it is not in this view. */
  spanAt(position: number): HTMLSpanElement | null {
    if (position < this.from || position >= this.to || this.firstUnit < 0) return null;
    const unit = this.trace.units.indexAt(position);
    if ((this.trace.units.starts[unit] ?? position + 1) > position) return null;
    return this.spans[unit - this.firstUnit] ?? null;
  }

  /** Draws a ring around the span that is pointed at (`data-hover`) or pinned (`data-pin`). */
  mark(name: "data-hover" | "data-pin", position: number | null): void {
    const span = position === null ? null : this.spanAt(position);
    const before = this.marked.get(name);
    if (span === before) return;
    before?.removeAttribute(name);
    span?.setAttribute(name, "");
    if (span) this.marked.set(name, span);
    else this.marked.delete(name);
  }

  get first(): HTMLSpanElement | null {
    return this.spans[0] ?? null;
  }

  get last(): HTMLSpanElement | null {
    return this.spans.at(-1) ?? null;
  }

  neighbour(span: HTMLElement, step: number): HTMLSpanElement | null {
    const position = positionOf(span);
    if (position === null) return null;
    const index = this.trace.units.indexAt(position) - this.firstUnit + step;
    return this.spans[index] ?? null;
  }

  private update(low: number, high: number): void {
    const { units } = this.trace;
    if (this.firstUnit < 0) {
      const unit = units.indexAt(this.from);
      if (unit === units.length) return;
      this.firstUnit = unit;
    }
    const known = this.spans.length;
    for (let u = Math.max(this.firstUnit, units.indexAt(low)); u < units.length; u++) {
      const start = units.starts[u] ?? 0;
      if (start >= Math.min(high, this.to)) break;
      const index = u - this.firstUnit;
      if (index < known) this.repaint(index, u);
      else this.append(u);
    }
  }

  private append(unit: number): void {
    const span = document.createElement("span");
    const text = this.textOf(unit);
    const start = this.trace.units.starts[unit] ?? 0;
    span.dataset["pos"] = String(start);
    span.dataset["testid"] = "token";
    span.tabIndex = this.spans.length === 0 ? 0 : -1;
    setText(span, text);
    span.className = this.classesAt(unit);
    this.spans.push(span);
    this.blockFor(text).append(span);
  }

  private repaint(index: number, unit: number): void {
    const span = this.spans[index];
    if (!span) return;
    const text = this.textOf(unit);
    if (span.firstChild?.nodeValue !== text) setText(span, text);
    const classes = this.classesAt(unit);
    if (span.className !== classes) span.className = classes;
  }

  /** Returns the text of a unit. A message quoted from the prompt omits leading whitespace, which belongs to the template. */
  private textOf(unit: number): string {
    const text = this.trace.units.texts[unit] ?? "";
    return this.quoted && unit === this.firstUnit ? text.trimStart() : text;
  }

  private classesAt(unit: number): string {
    const { starts, ends } = this.trace.units;
    return classesFor(this.palette, starts[unit] ?? 0, ends[unit] ?? 0);
  }

  private blockFor(text: string): HTMLElement {
    if (this.block === null || this.full) this.openBlock();
    this.inBlock++;
    const block = this.block as HTMLElement;
    const ends = this.inBlock >= BLOCK && text.endsWith("\n");
    const cut = this.inBlock >= LONG_BLOCK && (SENTENCE_END.test(text) || this.inBlock >= LONGEST_BLOCK);
    this.full = ends || cut;
    if (cut && !ends) block.dataset["sameLine"] = "";
    return block;
  }

  private openBlock(): void {
    this.block = document.createElement("span");
    this.block.className = "block";
    this.inBlock = 0;
    this.full = false;
    this.root.append(this.block);
  }
}

/** One word with at most one space before it, which may collapse at a line's end. Other tokens preserve whitespace. */
const WORD = /^ ?\S+$/;

function setText(span: HTMLElement, text: string): void {
  span.toggleAttribute("data-spaces", !WORD.test(text));
  // A token without text, or one that was not received, still has its place.
  const marks = text === "" ? "∅" : whitespaceMarks(text);
  if (marks === null) span.removeAttribute("data-marks");
  else span.dataset["marks"] = marks;
  span.textContent = text;
}

export function positionOf(element: Element | null): number | null {
  const value = element?.getAttribute("data-pos") ?? null;
  return value === null ? null : Number(value);
}
