import uPlot from "uplot";
import { hover, pin, point } from "../state/focus";
import type { Trace } from "../trace/trace";
import { AXIS, type Line, type Plan, PlotData } from "./series";

const HEIGHT = 224;
/** Minimum number of tokens on the axis, so that the first ones do not fill the chart. */
const MIN_SPAN = 48;
/** From this many tokens on the chart is drawn less often: drawing is expensive, and a token moves it by less than a pixel. */
const LONG = 2_000;
const REDRAW_MS = 32;
const LONG_REDRAW_MS = 100;
const FONT = "11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";

/** Returns the width of the vertical axis: a label that is cut loses its minus sign. */
function axisWidth(labels: readonly string[] | null): number {
  return Math.max(40, 14 + 7 * Math.max(0, ...(labels ?? []).map((label) => label.length)));
}

/** Returns a scale's ends with a margin. */
function padded([low, high]: readonly [number, number]): [number, number] {
  const pad = (high - low) * 0.06;
  return [low - pad, high + pad];
}

/** The chart of one trace: a uPlot that follows the trace and shares its cursor with the text. */
export class Plot {
  private readonly chart: uPlot;
  private readonly data: PlotData;
  private readonly stop: () => void;
  private readonly sizes: ResizeObserver;
  private zoom: [number, number] | null = null;
  /** The position at which the cursor stands; null while it is hidden. */
  private led: number | null = null;
  private timer = 0;
  /** Where the mouse was last, in pixels of the window. */
  private mouse = Number.NaN;

  constructor(
    private readonly host: HTMLElement,
    private readonly trace: Trace,
    private readonly plan: Plan,
  ) {
    this.data = new PlotData(plan);
    this.data.update(0, trace.length);
    this.chart = new uPlot(this.options(), this.data.rows, host);
    this.stop = trace.subscribe((from, to) => {
      this.data.update(from, Math.max(to, trace.length));
      this.redraw();
    });
    this.sizes = new ResizeObserver(() => this.chart.setSize({ width: host.clientWidth, height: HEIGHT }));
    this.sizes.observe(host);
    this.chart.over.addEventListener("mousemove", (event) => this.pointAt(event));
    this.chart.over.addEventListener("mouseleave", () => point(trace, null));
    this.chart.over.addEventListener("click", () => this.pinHovered());
    this.chart.over.addEventListener("dblclick", () => this.setZoom(null));
  }

  dispose(): void {
    this.stop();
    window.clearTimeout(this.timer);
    this.sizes.disconnect();
    this.chart.destroy();
  }

  /** Redraws with the colours of the current theme. */
  recolor(): void {
    this.chart.redraw(false, true);
  }

  /** Moves the cursor to a position, or hides it if null. It stays at the position when the chart is drawn anew. */
  lead(position: number | null): void {
    this.led = position;
    if (position === null) this.host.removeAttribute("data-cursor");
    else this.host.setAttribute("data-cursor", String(position));
    if (this.chart.status === 1) this.placeCursor(this.chart);
  }

  /** Puts uPlot's cursor, which is a place in pixels, where its position is drawn now. */
  private placeCursor(u: uPlot): void {
    const left = this.led === null ? -10 : u.valToPos(this.led, "x");
    const value = this.led === null ? null : this.data.rows[1]?.[this.led];
    const top = value === null || value === undefined ? 0 : u.valToPos(value, AXIS);
    const inside = left >= 0 && left <= u.over.clientWidth;
    u.setCursor(inside ? { left, top } : { left: -10, top: -10 }, false);
  }

  private redraw(): void {
    const wait = this.trace.length < LONG ? REDRAW_MS : LONG_REDRAW_MS;
    this.timer ||= window.setTimeout(this.draw, wait);
  }

  private readonly draw = (): void => {
    this.timer = 0;
    this.chart.setData(this.data.rows);
  };

  private pinHovered(): void {
    const spot = hover.get();
    if (spot?.trace === this.trace) pin(spot.trace, spot.position, true);
  }

  private setZoom(zoom: [number, number] | null): void {
    this.zoom = zoom;
    this.draw();
  }

  private color(name: string): string {
    return getComputedStyle(this.host).getPropertyValue(name) || "gray";
  }

  private options(): uPlot.Options {
    const axis = { stroke: () => this.color("--muted"), font: FONT, ticks: { show: false } };
    const grid = { stroke: () => this.color("--grid"), width: 1 };
    return {
      width: this.host.clientWidth || 320,
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 8, 0, 0],
      cursor: {
        y: false,
        drag: { x: true, y: false, setScale: false },
        points: { size: 8, width: 2, fill: () => this.color("--screen") },
      },
      scales: {
        x: { time: false, range: () => this.zoom ?? [0, Math.max(MIN_SPAN, this.trace.length)] },
        ...Object.fromEntries([...this.plan.scales].map(([name, range]) => [name, { range: padded(range) }])),
      },
      axes: [
        {
          ...axis,
          grid,
          size: 28,
          space: 48,
          incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000],
        },
        { ...axis, scale: AXIS, grid, size: (_, labels) => axisWidth(labels), space: 32 },
      ],
      series: [{}, ...this.plan.lines.map((line) => this.series(line))],
      hooks: {
        drawClear: [(u) => this.shadePrompt(u)],
        draw: [(u) => this.drawThresholds(u), (u) => this.placeCursor(u)],
        setSelect: [(u) => this.select(u)],
      },
    };
  }

  private series({ label, slot, scale }: Line): uPlot.Series {
    const stroke = () => this.color(`--slot-${slot}`);
    return { label, scale, stroke, width: slot === 0 ? 2 : 1.25, points: { show: false }, spanGaps: false };
  }

  /**
   * Points at the token under the mouse. Nothing else may: uPlot sets its cursor again at every draw, to a pixel that by
   * then shows another token.
   */
  private pointAt({ clientX }: MouseEvent): void {
    if (clientX === this.mouse) return; // a layout under a resting mouse sends the event too
    this.mouse = clientX;
    const left = clientX - this.chart.over.getBoundingClientRect().left;
    if (this.trace.length > 0) point(this.trace, this.chart.posToIdx(left));
  }

  private select(u: uPlot): void {
    const { left, width } = u.select;
    if (width < 8) return;
    const edge = (x: number) => Math.round(u.posToVal(x, "x"));
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.setZoom([edge(left), Math.max(edge(left) + 4, edge(left + width))]);
  }

  private shadePrompt(u: uPlot): void {
    const end = u.valToPos(Math.max((this.trace.promptTokens ?? 0) - 0.5, 0), "x", true);
    const { left, top, width, height } = u.bbox;
    if (end <= left) return;
    u.ctx.fillStyle = this.color("--prompt");
    u.ctx.fillRect(left, top, Math.min(end - left, width), height);
  }

  private drawThresholds(u: uPlot): void {
    const { left, width } = u.bbox;
    u.ctx.save();
    u.ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
    u.ctx.lineWidth = devicePixelRatio;
    for (const { threshold, slot, scale } of this.plan.lines) {
      if (threshold === null) continue;
      const y = Math.round(u.valToPos(threshold, scale, true)) + 0.5;
      if (y < u.bbox.top || y > u.bbox.top + u.bbox.height) continue;
      u.ctx.strokeStyle = this.color(`--slot-${slot}`);
      u.ctx.beginPath();
      u.ctx.moveTo(left, y);
      u.ctx.lineTo(left + width, y);
      u.ctx.stroke();
    }
    u.ctx.restore();
  }
}
