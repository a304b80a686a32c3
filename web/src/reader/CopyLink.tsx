import { useState } from "react";
import { viewUrl } from "../state/view-url";

/** Copies an address that opens this page at a token. */
export function CopyLink({ request, position }: { request: string; position: number }) {
  const [words, setWords] = useState("Copy link to this token");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(
        new URL(viewUrl({ chat: null, request, position }), location.href).href,
      );
      setWords("Link copied");
    } catch {
      setWords("Not copied: this browser refuses access to the clipboard");
    }
  };
  return (
    <button
      type="button"
      className="link"
      data-testid="copy-link"
      aria-keyshortcuts="c"
      onClick={() => void copy()}
    >
      {words}
    </button>
  );
}
