import { type ReactNode, useEffect, useRef } from "react";
import { pinned } from "../state/focus";

/** Distance from the end, in pixels, within which the view follows new text. */
const NEAR = 120;

interface Props {
  label: string;
  /** Whether to follow the end; false for content that is read from its top. */
  follow: boolean;
  children: ReactNode;
}

/** A column that stays scrolled to its end while it grows, unless the reader has scrolled up or pinned a token. */
export function StickyScroll({ label, follow, children }: Props) {
  const outer = useRef<HTMLElement>(null);
  const inner = useRef<HTMLDivElement>(null);

  useEffect(() => {
    const box = outer.current;
    const content = inner.current;
    if (!box || !content || !follow) return;
    let following = true;
    const onScroll = () => {
      following = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR;
    };
    const sizes = new ResizeObserver(() => {
      if (following && pinned.get() === null) box.scrollTop = box.scrollHeight;
    });
    box.addEventListener("scroll", onScroll, { passive: true });
    sizes.observe(content);
    return () => {
      box.removeEventListener("scroll", onScroll);
      sizes.disconnect();
    };
  }, [follow]);

  return (
    <section ref={outer} className="scroll" aria-label={label}>
      <div ref={inner} className="column">
        {children}
      </div>
    </section>
  );
}
