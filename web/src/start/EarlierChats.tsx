import { useEffect, useState } from "react";
import { listChats, type StoredChat } from "../state/memory";
import { openChat } from "../state/session";

const SHOWN = 5;

/** The latest chats that this browser has kept. */
export function EarlierChats() {
  const [list, setList] = useState<readonly StoredChat[]>([]);
  useEffect(() => {
    let here = true;
    void listChats(SHOWN).then((chats) => here && setList(chats));
    return () => {
      here = false;
    };
  }, []);
  if (list.length === 0) return null;
  return (
    <section className="earlier" aria-labelledby="earlier-title" data-testid="earlier">
      <h3 id="earlier-title">Earlier chats, kept in this browser</h3>
      <ul>
        {list.map(({ id, title, changed }) => (
          <li key={id}>
            <button type="button" className="link" data-testid="earlier-chat" onClick={() => openChat(id)}>
              {title}
            </button>{" "}
            <span className="muted numbers">
              {new Date(changed).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })}
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}
