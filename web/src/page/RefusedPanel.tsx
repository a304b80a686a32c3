import { useEffect, useRef, useState } from "react";
import { refused } from "../api/client";
import { useCell } from "../lib/cell";
import { checkEngine } from "../state/engine";
import { Mark } from "../parts/Mark";

/** Lies over the page while the gateway refuses this browser. The page below keeps its turns and the draft. */
export function RefusedPanel() {
  const out = useCell(refused);
  const dialog = useRef<HTMLDialogElement>(null);
  const [tried, setTried] = useState(false);
  useEffect(() => {
    const box = dialog.current;
    if (out && !box?.open) box?.showModal();
    if (!out) box?.close();
  }, [out]);
  const tryAgain = async () => {
    setTried(false);
    await checkEngine();
    setTried(true);
  };
  return (
    <dialog
      ref={dialog}
      className="refused"
      aria-labelledby="refused-title"
      data-testid="refused"
      onCancel={(event) => event.preventDefault()}
    >
      <Mark />
      <h2 id="refused-title">Open the link from your terminal</h2>
      <p>
        The gateway accepts only browsers that have its token. When it started, it printed a link that ends in{" "}
        <code>/?token=…</code>. Open that link in another tab of this browser: this page then goes on by
        itself, with its conversation and what you have typed.
      </p>
      <p className="muted">A restarted gateway prints a new link, and the old one stops working.</p>
      <button type="button" className="primary" data-testid="try-again" onClick={() => void tryAgain()}>
        Try again
      </button>
      <p className="muted" role="status">
        {out && tried ? "The gateway still refuses this browser." : ""}
      </p>
    </dialog>
  );
}
