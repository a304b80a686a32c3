import { newChat } from "../state/chat";
import { stopWatching } from "../state/watch";
import { EngineBadge } from "./EngineBadge";
import { Mark } from "./Mark";
import { ThemeToggle } from "./ThemeToggle";

export function Header() {
  const startOver = () => {
    stopWatching();
    newChat();
  };
  return (
    <header className="top">
      <div className="brand">
        <Mark />
        <h1>actscope</h1>
      </div>
      <EngineBadge />
      <button type="button" className="quiet" data-testid="new-chat" onClick={startOver}>
        New chat
      </button>
      <ThemeToggle />
    </header>
  );
}
