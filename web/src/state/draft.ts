import { Cell } from "../lib/cell";

const KEY = "actscope.draft";

function stored(): string {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser that forbids storage
  }
}

/** The message being written. This tab keeps it when it is reloaded. */
export const draft = new Cell(stored());

draft.subscribe(() => {
  try {
    sessionStorage.setItem(KEY, draft.get());
  } catch {
    // It stays on the screen all the same.
  }
});
