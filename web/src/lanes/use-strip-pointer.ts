import { type PointerEvent, useMemo } from "react";
import { hover, pin, point } from "../state/focus";
import type { Trace } from "../trace/trace";
import { chosenBetween, positionAt } from "./axis";
import type { Board } from "./board";

/** A pointer that moved less than this between down and up has clicked. */
const CLICK_PX = 8;

interface Handlers {
  onPointerMove: (event: PointerEvent) => void;
  onPointerDown: (event: PointerEvent) => void;
  onPointerUp: (event: PointerEvent) => void;
  onPointerCancel: (event: PointerEvent) => void;
  onDoubleClick: () => void;
}

type Ref = { readonly current: HTMLElement | null };

/** Handlers of the strips: pointing leads the text, a click pins, dragging chooses a part, a double click shows all of it again. */
export function useStripPointer(board: Board, trace: Trace | null, list: Ref, brush: Ref): Handlers {
  return useMemo(() => handlersOf(board, trace, list, brush), [board, trace, list, brush]);
}

function handlersOf(board: Board, trace: Trace | null, list: Ref, brush: Ref): Handlers {
  let began: number | null = null;
  let last = Number.NaN;
  const placeOf = ({ clientX }: PointerEvent) => clientX - (list.current?.getBoundingClientRect().left ?? 0);
  const width = () => list.current?.clientWidth ?? 0;
  const isStrip = (event: PointerEvent) => (event.target as Element).closest(".lane-strip") !== null;
  const showBrush = (x: number | null) => {
    const box = brush.current;
    if (!box) return;
    box.hidden = began === null || x === null || Math.abs(x - began) < CLICK_PX;
    if (box.hidden || began === null || x === null) return;
    box.style.left = `${Math.min(began, x)}px`;
    box.style.width = `${Math.abs(x - began)}px`;
  };
  const leave = () => {
    began = null;
    showBrush(null);
  };
  return {
    onPointerMove: (event) => {
      // Rows that scroll under a resting pointer send the event too.
      if (event.clientX === last || !trace) return;
      last = event.clientX;
      const x = placeOf(event);
      if (began !== null) showBrush(x);
      else if (isStrip(event) && trace.length > 0) point(trace, positionAt(board.axis, x, width()));
    },
    onPointerDown: (event) => {
      if (event.button === 0 && isStrip(event)) began = placeOf(event);
    },
    onPointerUp: (event) => {
      if (began === null || !trace || trace.length === 0) {
        leave();
        return;
      }
      const x = placeOf(event);
      if (Math.abs(x - began) >= CLICK_PX) board.setExtent(chosenBetween(board.axis, began, x, width()));
      else {
        const spot = hover.get();
        pin(trace, spot?.trace === trace ? spot.position : positionAt(board.axis, x, width()), true);
      }
      leave();
    },
    onPointerCancel: leave,
    onDoubleClick: () => board.setExtent("answer"),
  };
}
