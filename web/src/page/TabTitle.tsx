import { useCell } from "../lib/cell";
import { turns } from "../state/chat";
import { isOpen } from "../state/turn";
import { watched } from "../state/watch";

/** The title of the tab: what is on the page, and whether it is running. */
export function TabTitle() {
  const last = useCell(turns).at(-1);
  const other = useCell(watched);
  if (other) return <title>{`${other.finish === null ? "▶ " : ""}${other.id} · actscope`}</title>;
  if (!last) return <title>actscope</title>;
  const sign = isOpen(last) ? "▶ " : last.status === "failed" ? "✕ " : "";
  return <title>{`${sign}${last.user.slice(0, 40)} · actscope`}</title>;
}
