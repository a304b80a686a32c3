import { autoUpdate, flip, hide, offset, shift, size, useFloating } from "@floating-ui/react";
import { type KeyboardEvent, useCallback, useEffect, useLayoutEffect } from "react";
import { useCell } from "../lib/cell";
import { hover, pinned, type Spot, unpin } from "../state/focus";
import { TokenCard } from "./TokenCard";

const MARGIN = 8;

/** The page's only popover. It previews the token under the pointer, or stays on a pinned one. */
export function TokenPopover() {
  const held = useCell(pinned);
  const spot = useCell(hover) ?? held;
  const pinnedHere = held !== null && spot?.trace === held.trace && spot.position === held.position;
  const anchor = spot ? tokenElement(spot) : null;
  const { refs, floatingStyles, middlewareData, update } = useFloating({
    placement: "top",
    strategy: "fixed",
    middleware: [
      offset(MARGIN),
      flip({ padding: MARGIN }),
      shift({ padding: MARGIN }),
      size({
        padding: MARGIN,
        apply: ({ availableHeight, elements }) => {
          elements.floating.style.maxHeight = `${Math.max(96, availableHeight)}px`;
        },
      }),
      hide(),
    ],
    whileElementsMounted: autoUpdate,
  });

  const setFloating = useCallback((node: HTMLElement | null) => refs.setFloating(node), [refs]);

  useLayoutEffect(() => {
    refs.setReference(anchor);
    update();
  }, [anchor, refs, update]);

  useEffect(() => {
    document.addEventListener("keydown", onPageKey);
    document.addEventListener("pointerdown", onPageTouch);
    return () => {
      document.removeEventListener("keydown", onPageKey);
      document.removeEventListener("pointerdown", onPageTouch);
    };
  }, []);

  if (!spot || !anchor) return null;
  return (
    // eslint-disable-next-line jsx-a11y/no-static-element-interactions -- a dialog when it is pinned; it only passes on Tab
    <div
      ref={setFloating}
      style={floatingStyles}
      className="popover"
      data-away={middlewareData.hide?.referenceHidden || undefined}
      data-pinned={pinnedHere || undefined}
      data-testid="popover"
      role={pinnedHere ? "dialog" : "tooltip"}
      aria-label="Token"
      onKeyDown={(event) => leaveByTab(event, anchor)}
    >
      <TokenCard key={`${spot.trace.key} ${spot.position}`} spot={spot} pinned={pinnedHere} />
    </div>
  );
}

function onPageKey(event: globalThis.KeyboardEvent): void {
  if (event.key === "Escape") closeCard();
  const card = document.querySelector<HTMLElement>(".popover[data-pinned]");
  if (card === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const { target } = event;
  const typing = target instanceof HTMLInputElement || target instanceof HTMLTextAreaElement;
  if (event.key === "c" && !typing) card.querySelector<HTMLElement>('[data-testid="copy-link"]')?.click();
  // From the pinned token the next stop is its card, which lies elsewhere in the document.
  if (
    event.key === "Tab" &&
    !event.shiftKey &&
    target instanceof Element &&
    target.matches(".t[data-hover]")
  ) {
    const first = card.querySelector<HTMLElement>("button");
    if (first) {
      first.focus();
      event.preventDefault();
    }
  }
}

/** Closes the card; the focus goes back to its token if it was in the card. */
function closeCard(): void {
  const spot = pinned.get();
  const inside = document.activeElement?.closest(".popover") !== null && document.activeElement !== null;
  unpin();
  if (spot && inside) (tokenElement(spot) as HTMLElement | null)?.focus();
}

/** A finger has no way to leave a token: touching anything else closes the card. */
function onPageTouch(event: PointerEvent): void {
  if (event.pointerType !== "touch" || pinned.get() === null) return;
  const inside = (event.target as Element | null)?.closest(".popover, [data-pos], .chart");
  if (!inside) unpin();
}

/** At either end of the card, Tab goes on from its token. */
function leaveByTab(event: KeyboardEvent<HTMLElement>, anchor: Element): void {
  if (event.key !== "Tab") return;
  const stops = [...event.currentTarget.querySelectorAll<HTMLElement>("button")];
  const end = event.shiftKey ? stops[0] : stops.at(-1);
  if (document.activeElement !== end) return;
  (anchor as HTMLElement).focus();
  if (event.shiftKey) event.preventDefault();
}

/** Returns the span that shows a spot; the last one if the prompt strip shows it too. */
function tokenElement({ trace, position }: Spot): Element | null {
  const { units } = trace;
  const start = units.starts[units.indexAt(position)];
  const owned = document.querySelectorAll(`[data-trace="${trace.key}"] [data-pos="${start}"]`);
  return [...owned].at(-1) ?? null;
}
