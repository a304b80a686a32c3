import { useEffect } from "react";
import { useCell } from "../lib/cell";
import { active, hover, latest, pinned, type Spot, unpin } from "../state/focus";
import { tokenElement } from "./token-element";
import { TokenReading } from "./TokenReading";

/**
 * What is known of one token, always in the same place: of the pinned one, else of the one that is pointed at, else of the one
 * that was last. A pinned token stays, whatever is pointed at: that one's scores are then beside its own.
 */
export function Reader() {
  const held = useCell(pinned);
  const over = useCell(hover);
  const last = useCell(latest);
  const trace = useCell(active);
  const spot = held ?? over ?? (last?.trace === trace ? last : null);
  const beside = held && over && !isSame(held, over) ? over : null;
  useEffect(() => {
    document.addEventListener("keydown", onPageKey);
    document.addEventListener("pointerdown", onPageTouch);
    return () => {
      document.removeEventListener("keydown", onPageKey);
      document.removeEventListener("pointerdown", onPageTouch);
    };
  }, []);
  return (
    <section
      className="reader"
      aria-label="Token"
      data-testid="reader"
      data-pinned={held !== null || undefined}
      data-empty={spot === null || undefined}
    >
      {spot ? (
        <TokenReading
          key={`${spot.trace.key} ${spot.position}`}
          spot={spot}
          beside={beside}
          pinned={held !== null}
        />
      ) : (
        <p className="muted reader-idle">
          Point at a token to read its scores. Click it, or press Enter on it, to keep it here.
        </p>
      )}
    </section>
  );
}

function isSame(one: Spot, other: Spot): boolean {
  return one.trace === other.trace && one.position === other.position;
}

function onPageKey(event: KeyboardEvent): void {
  if (event.key === "Escape") close();
  const reader = document.querySelector<HTMLElement>(".reader[data-pinned]");
  if (reader === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const { target } = event;
  const typing = target instanceof HTMLInputElement || target instanceof HTMLTextAreaElement;
  if (event.key === "c" && !typing) reader.querySelector<HTMLElement>('[data-testid="copy-link"]')?.click();
  if (event.key !== "Tab" || !(target instanceof Element)) return;
  // The next stop of the pinned token is the reader, which lies elsewhere in the document; and from its ends back.
  const stops = [...reader.querySelectorAll<HTMLElement>("button, a[href]")];
  const next = event.shiftKey ? null : stops[0];
  if (target.matches(".t[data-pin]") && next) go(event, next);
  else if (target === (event.shiftKey ? stops[0] : stops.at(-1))) leave(event);
}

function leave(event: KeyboardEvent): void {
  const spot = pinned.get();
  const token = spot && tokenElement(spot);
  if (!token) return;
  token.focus();
  if (event.shiftKey) event.preventDefault();
}

function go(event: KeyboardEvent, to: HTMLElement): void {
  to.focus();
  event.preventDefault();
}

/** Lets go of the pinned token; the focus goes back to it if it was in the reader. */
function close(): void {
  const spot = pinned.get();
  const inside = document.activeElement?.closest(".reader") !== null && document.activeElement !== null;
  unpin();
  if (spot && inside) tokenElement(spot)?.focus();
}

/** A finger has no way to leave a token: touching anything else lets go of it. */
function onPageTouch(event: PointerEvent): void {
  if (event.pointerType !== "touch" || pinned.get() === null) return;
  const inside = (event.target as Element | null)?.closest(".reader, [data-pos], .lanes");
  if (!inside) unpin();
}
