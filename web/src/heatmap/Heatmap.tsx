import { type FocusEvent, type KeyboardEvent, type MouseEvent, useEffect, useRef } from "react";
import { useCell } from "../lib/cell";
import { hover, pin, pinned, point, type Spot, unpin } from "../state/focus";
import { heat } from "../state/heat";
import { probes, selection } from "../state/probes";
import type { Trace } from "../trace/trace";
import { useTraceValue } from "../trace/use-trace";
import { describe } from "./describe";
import { focusToken, target } from "./keys";
import { paletteFor } from "./paint";
import { pointerMoved } from "./pointer";
import { HeatmapView, positionOf } from "./view";

interface Props {
  trace: Trace;
  from: number;
  to?: number;
  label: string;
  live?: boolean;
  /** Whether this is a part of the prompt, shown by itself. */
  quoted?: boolean;
}

/** The tokens `[from, to)` of a request, coloured by the selected probes. */
export function Heatmap({
  trace,
  from,
  to = Number.POSITIVE_INFINITY,
  label,
  live = false,
  quoted = false,
}: Props) {
  const root = useRef<HTMLDivElement>(null);
  const view = useRef<HeatmapView | null>(null);
  const chosen = useCell(selection);
  const known = useCell(probes);
  const how = useCell(heat);
  const columns = useTraceValue(trace, (t) => t.columnsVersion);

  useEffect(() => {
    if (!root.current) return;
    const made = new HeatmapView(root.current, trace, from, to, quoted);
    view.current = made;
    const follow = () => {
      made.mark("data-hover", positionIn(trace, hover.get()));
      made.mark("data-pin", positionIn(trace, pinned.get()));
    };
    const reveal = () => revealPin(made);
    const stops = [
      hover.subscribe(follow),
      pinned.subscribe(follow),
      pinned.subscribe(reveal),
      trace.subscribe(reveal),
    ];
    return () => {
      for (const stop of stops) stop();
      made.dispose();
    };
  }, [trace, from, to, quoted]);

  // A new view (from, to) and new columns need a new palette.
  useEffect(() => {
    view.current?.setPalette(paletteFor(trace, chosen, known, how));
    if (view.current) revealPin(view.current); // its tokens are there now
  }, [trace, from, to, quoted, chosen, known, how, columns]);

  const tokenOf = (node: EventTarget) => (node as Element).closest<HTMLElement>("[data-pos]");

  const onPointer = (event: MouseEvent) => {
    if (pointerMoved(event)) point(trace, positionOf(tokenOf(event.target)));
  };
  const onClick = (event: MouseEvent) => {
    const span = tokenOf(event.target);
    const position = positionOf(span);
    if (span === null || position === null || view.current === null) return;
    focusToken(view.current, span);
    pin(trace, position);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const span = tokenOf(event.target);
    const position = positionOf(span);
    if (span === null || position === null || view.current === null) return;
    if (event.key === "Escape") {
      unpin();
      return;
    }
    if (event.key === "Enter" || event.key === " ") pin(trace, position);
    else {
      const next = target(view.current, span, event.key);
      if (next === null) return;
      focusToken(view.current, next);
      const to = positionOf(next);
      if (pinned.get() !== null && to !== null) pin(trace, to);
    }
    event.preventDefault();
  };
  const onFocus = (event: FocusEvent) => {
    const span = tokenOf(event.target);
    const position = positionOf(span);
    if (span === null || position === null) return;
    span.setAttribute("role", "button");
    span.setAttribute("aria-label", describe(trace, position, selection.get(), probes.get()));
    // The pin stays: a window that gets the focus back also focuses the token of the last click.
    point(trace, position);
  };
  const onBlur = (event: FocusEvent) => {
    const span = tokenOf(event.target);
    span?.removeAttribute("role");
    span?.removeAttribute("aria-label");
    point(trace, null);
  };

  return (
    // eslint-disable-next-line jsx-a11y/no-noninteractive-element-interactions -- its tokens are the interactive ones
    <div
      ref={root}
      role="group"
      aria-label={label}
      className="heatmap"
      data-testid="heatmap"
      data-trace={trace.key}
      data-live={live || undefined}
      data-underlined={chosen.underlines.some((id) => id !== null) || undefined}
      onMouseOver={onPointer}
      onMouseLeave={() => point(trace, null)}
      onClick={onClick}
      onKeyDown={onKeyDown}
      onFocus={onFocus}
      onBlur={onBlur}
    />
  );
}

/** Scrolls to a token that was pinned elsewhere than in the text, once it is there. */
function revealPin(view: HeatmapView): void {
  const spot = pinned.get();
  const span = spot?.reveal && spot.trace === view.trace ? view.spanAt(spot.position) : null;
  if (!spot || !span) return;
  span.scrollIntoView({ block: "center" });
  pinned.set({ trace: spot.trace, position: spot.position });
}

function positionIn(trace: Trace, spot: Spot | null): number | null {
  return spot?.trace === trace ? spot.position : null;
}
