import { useCell } from "../lib/cell";
import { turns } from "../state/chat";
import { EmptyState } from "../start/EmptyState";
import { StickyScroll } from "./StickyScroll";
import { TurnView } from "./TurnView";

export function Conversation() {
  const list = useCell(turns);
  return (
    <StickyScroll label="Conversation" follow={list.length > 0} newest={list.at(-1)?.key}>
      {list.length === 0 ? <EmptyState /> : list.map((turn) => <TurnView key={turn.key} turn={turn} />)}
    </StickyScroll>
  );
}
