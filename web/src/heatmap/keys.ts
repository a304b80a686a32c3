import type { HeatmapView } from "./view";

/** Returns the token to which a key moves from `span`; null for keys that do not move. */
export function target(view: HeatmapView, span: HTMLElement, key: string): HTMLElement | null {
  switch (key) {
    case "ArrowRight":
      return view.neighbour(span, 1);
    case "ArrowLeft":
      return view.neighbour(span, -1);
    case "ArrowDown":
      return onOtherLine(view, span, 1) ?? view.last;
    case "ArrowUp":
      return onOtherLine(view, span, -1) ?? view.first;
    case "Home":
      return view.first;
    case "End":
      return view.last;
    default:
      return null;
  }
}

/** Returns the nearest token on the next line below (1) or above (-1). */
function onOtherLine(view: HeatmapView, span: HTMLElement, step: 1 | -1): HTMLElement | null {
  const here = span.getBoundingClientRect();
  let line: number | null = null;
  let best: HTMLElement | null = null;
  for (let next = view.neighbour(span, step); next; next = view.neighbour(next, step)) {
    const box = next.getBoundingClientRect();
    if (Math.abs(box.top - here.top) < 2) continue;
    if (line !== null && Math.abs(box.top - line) > 2) break;
    line = box.top;
    if (best === null || distance(box, here) < distance(best.getBoundingClientRect(), here)) best = next;
  }
  return best;
}

function distance(a: DOMRect, b: DOMRect): number {
  return Math.abs(a.left + a.width / 2 - b.left - b.width / 2);
}

/** Focuses a token and makes it the view's only tab stop (roving tabindex). */
export function focusToken(view: HeatmapView, span: HTMLElement): void {
  for (const old of view.root.querySelectorAll<HTMLElement>('[tabindex="0"]')) old.tabIndex = -1;
  span.tabIndex = 0;
  span.focus({ preventScroll: false });
}
