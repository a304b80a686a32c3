import { type ReactNode, useEffect, useRef, useState } from "react";
import { beforePaint } from "../lib/frame";
import { formatCount } from "../lib/numbers";
import { active, pinned } from "../state/focus";

/** Distance from the end, in pixels, within which the view follows new text. */
const NEAR = 120;

interface Props {
  label: string;
  /** Whether to follow the end; false for content that is read from its top. */
  follow: boolean;
  /** Whose change is a new turn, which is scrolled to wherever the reader was. */
  newest?: number | undefined;
  children: ReactNode;
}

/**
 * A column that stays scrolled to its end while it grows, unless the reader has scrolled up or pinned a token. A button
 * then says what is new below.
 */
export function StickyScroll({ label, follow, newest, children }: Props) {
  const outer = useRef<HTMLElement>(null);
  const inner = useRef<HTMLDivElement>(null);
  const toEnd = useRef<() => void>(() => undefined);
  const [news, setNews] = useState<string | null>(null);

  useEffect(() => {
    const content = inner.current;
    const box = outer.current && scrollerOf(outer.current);
    if (!box || !content || !follow) return;
    let following = true;
    let seen = 0;
    const length = () => active.get()?.length ?? 0;
    const isNear = () => box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
    const show = () => {
      if (following && pinned.get() === null) seen = length();
      const more = length() - seen;
      if (isNear()) setNews(null);
      else setNews(more > 0 ? `${formatCount(more)} new token${more === 1 ? "" : "s"}` : "newest");
    };
    const onScroll = () => {
      following = isNear();
      show();
    };
    const onGrowth = () => {
      if (following && pinned.get() === null) box.scrollTop = box.scrollHeight;
      show();
    };
    toEnd.current = () => {
      following = true;
      box.scrollTop = box.scrollHeight;
      show();
    };
    // New tokens that still fit into the last line change no size: they are counted as the request tells of them.
    const count = () => {
      if (following && pinned.get() === null) seen = length();
      else beforePaint(show);
    };
    let leave: () => void = () => undefined;
    const listen = () => {
      leave();
      leave = active.get()?.subscribe(count) ?? (() => undefined);
    };
    const forget = active.subscribe(listen);
    listen();
    const sizes = new ResizeObserver(onGrowth);
    const target = box === document.scrollingElement ? document : box;
    target.addEventListener("scroll", onScroll, { passive: true });
    sizes.observe(content);
    return () => {
      target.removeEventListener("scroll", onScroll);
      sizes.disconnect();
      forget();
      leave();
    };
  }, [follow]);

  // What the reader has sent is seen, wherever the reader was.
  useEffect(() => {
    if (newest !== undefined) toEnd.current();
  }, [newest]);

  return (
    <section ref={outer} className="scroll" aria-label={label}>
      <div ref={inner} className="column">
        {children}
      </div>
      {follow && news !== null && (
        <button type="button" className="newest" data-testid="newest" onClick={() => toEnd.current()}>
          <span aria-hidden="true">↓</span> {news}
        </button>
      )}
    </section>
  );
}

/** What scrolls: the column itself, or the page where the window is too low for a column of its own. */
function scrollerOf(column: HTMLElement): Element {
  const own = getComputedStyle(column).overflowY !== "visible";
  return own ? column : (document.scrollingElement ?? column);
}
