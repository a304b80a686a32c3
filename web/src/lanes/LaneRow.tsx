import { type KeyboardEvent, useEffect, useRef } from "react";
import type { Probe } from "../api/types";
import { formatBound } from "../lib/numbers";
import { chooseBackground, toggleUnderline } from "../state/probes";
import { type Board, STRIP_HEIGHT } from "./board";
import type { Lane } from "./lane";

interface Props {
  board: Board;
  lane: Lane;
  slot: number | null;
  /** Whether all underlines are taken. */
  full: boolean;
  index: number;
  count: number;
  /** Its place in the list, in pixels. */
  top: number;
}

/** One lane: its name, its numbers, and its strip, which the board draws. */
export function LaneRow({ board, lane, slot, full, index, count, top }: Props) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const value = useRef<HTMLSpanElement>(null);
  const over = useRef<HTMLSpanElement>(null);
  useEffect(() => {
    if (!canvas.current || !value.current || !over.current) return;
    return board.attach({ lane, top, canvas: canvas.current, value: value.current, count: over.current });
  }, [board, lane, top, slot]);
  const probe = lane.kind === "probe";
  return (
    // eslint-disable-next-line jsx-a11y/no-noninteractive-element-interactions -- keys of the controls in it
    <li
      className="lane"
      style={{ transform: `translateY(${top}px)` }}
      data-testid={probe ? (lane.left ? "departed" : "probe") : "feature-lane"}
      data-probe={probe ? lane.id : undefined}
      data-slot={slot ?? undefined}
      data-left={lane.left !== null || undefined}
      aria-setsize={count}
      aria-posinset={index + 1}
      onKeyDown={(event) => probe && onKey(event, lane.id, full && !(slot !== null && slot > 0))}
    >
      <div className="lane-head">
        {probe ? <Name lane={lane} slot={slot} /> : <span className="lane-label">{lane.label}</span>}
        <span className="lane-note muted">{noteOf(lane)}</span>
        <span ref={over} className="lane-count" />
        <span ref={value} className="lane-value numbers" data-testid="lane-value" />
        {probe && <Underline lane={lane} slot={slot} full={full} />}
      </div>
      {/* eslint-disable jsx-a11y/no-interactive-element-to-noninteractive-role -- a canvas is a picture to those who do not see it */}
      <canvas
        ref={canvas}
        className="lane-strip"
        data-testid="strip"
        height={STRIP_HEIGHT}
        role="img"
        aria-label={inWords(lane)}
      />
      {/* eslint-enable jsx-a11y/no-interactive-element-to-noninteractive-role */}
    </li>
  );
}

function Name({ lane: { id, label, probe }, slot }: { lane: Lane; slot: number | null }) {
  return (
    <label className="lane-name" title={probe ? titleOf(probe) : label}>
      <input
        type="radio"
        name="background"
        checked={slot === 0}
        onChange={() => chooseBackground(id)}
        data-testid={`background-${id}`}
        aria-keyshortcuts="u"
      />
      <span className="lane-label">{label}</span>
    </label>
  );
}

function Underline({ lane: { id, label }, slot, full }: { lane: Lane; slot: number | null; full: boolean }) {
  const under = slot !== null && slot > 0;
  const taken = !under && full;
  return (
    <label
      className="lane-under"
      title={taken ? "Three probes underline already" : `Underline tokens by ${label}`}
    >
      <input
        type="checkbox"
        checked={under}
        disabled={taken}
        // The key u does the same in the row: one stop a lane would be too many.
        tabIndex={under || slot === 0 ? 0 : -1}
        onChange={() => toggleUnderline(id)}
        data-testid={`underline-${id}`}
        aria-label={`Underline by ${label}`}
      />
    </label>
  );
}

function onKey(event: KeyboardEvent, id: string, taken: boolean): void {
  if (event.key !== "u" || event.ctrlKey || event.metaKey || event.altKey || taken) return;
  toggleUnderline(id);
  event.preventDefault();
}

function noteOf({ left, kind, series, scale: { range, threshold, learnt } }: Lane): string {
  if (left) return `left the engine at ${timeOf(left)}`;
  if (kind === "feature") return "";
  if (range === null) return series ? "no scale yet" : "";
  return learnt ? "learnt scale" : threshold === null ? "no threshold" : "";
}

function timeOf(date: Date): string {
  return date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

/** Says what a strip shows: its scale and its threshold. */
function inWords({ label, kind, series, scale: { range, threshold, learnt } }: Lane): string {
  if (series === null) return `${label}: no scores`;
  if (range === null) return `${label}: no scale yet`;
  const [low, high] = range.map(formatBound);
  const scale = `${learnt ? "learnt scale" : "scale"} ${low} to ${high}`;
  const line = threshold === null ? "" : `, threshold ${formatBound(threshold)}`;
  const where = kind === "feature" ? ", where it is among the strongest features" : "";
  return `${label}: ${scale}${line}${where}. The tokens of the text hold the same numbers.`;
}

function titleOf({ label, description, site }: Probe): string {
  return [label, description, site].filter(Boolean).join("\n");
}
