import { autoUpdate, FloatingPortal, flip, hide, offset, shift, useFloating } from "@floating-ui/react";
import { useCallback, useEffect, useLayoutEffect } from "react";
import { useCell } from "../lib/cell";
import { hover, pinned, type Spot, unpin } from "../state/focus";
import { TokenCard } from "./TokenCard";

/** The page's only popover. It previews the token under the pointer, or stays on a pinned one. */
export function TokenPopover() {
  const held = useCell(pinned);
  const spot = useCell(hover) ?? held;
  const pinnedHere = held !== null && spot?.trace === held.trace && spot.position === held.position;
  const anchor = spot ? tokenElement(spot) : null;
  const { refs, floatingStyles, middlewareData, update } = useFloating({
    placement: "top",
    middleware: [offset(8), flip({ padding: 8 }), shift({ padding: 8 }), hide()],
    whileElementsMounted: autoUpdate,
  });

  const setFloating = useCallback((node: HTMLElement | null) => refs.setFloating(node), [refs]);

  useLayoutEffect(() => {
    refs.setReference(anchor);
    update();
  }, [anchor, refs, update]);

  useEffect(() => {
    const onKey = (event: KeyboardEvent) => {
      if (event.key === "Escape") unpin();
    };
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);

  if (!spot || !anchor) return null;
  return (
    <FloatingPortal>
      <div
        ref={setFloating}
        style={floatingStyles}
        className="popover"
        data-away={middlewareData.hide?.referenceHidden || undefined}
        data-pinned={pinnedHere || undefined}
        data-testid="popover"
        role={pinnedHere ? "dialog" : "tooltip"}
        aria-label="Token"
      >
        <TokenCard spot={spot} pinned={pinnedHere} />
      </div>
    </FloatingPortal>
  );
}

/** Returns the span that shows a spot; the last one if the prompt strip shows it too. */
function tokenElement({ trace, position }: Spot): Element | null {
  const { units } = trace;
  const start = units.starts[units.indexAt(position)];
  const owned = document.querySelectorAll(`[data-trace="${trace.key}"] [data-pos="${start}"]`);
  return [...owned].at(-1) ?? null;
}
