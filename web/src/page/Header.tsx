import { useCell } from "../lib/cell";
import { leaveForNewChat, undoable, undoNewChat } from "../state/session";
import { EngineBadge } from "./EngineBadge";
import { Mark } from "../parts/Mark";
import { ThemeToggle } from "./ThemeToggle";

export function Header() {
  const canUndo = useCell(undoable);
  return (
    <header className="top">
      <div className="brand">
        <Mark />
        <h1>actscope</h1>
      </div>
      <EngineBadge />
      {canUndo && (
        <button type="button" className="quiet" data-testid="undo-new-chat" onClick={undoNewChat}>
          Undo
        </button>
      )}
      <button type="button" className="quiet" data-testid="new-chat" onClick={leaveForNewChat}>
        New chat
      </button>
      <ThemeToggle />
    </header>
  );
}
