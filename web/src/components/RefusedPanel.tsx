import { Mark } from "./Mark";

/** Shown instead of the page when the gateway refuses this browser. */
export function RefusedPanel() {
  return (
    <main className="refused" data-testid="refused">
      <Mark />
      <h1>Open the link from your terminal</h1>
      <p>
        The gateway accepts only browsers that have its token. When it started, it printed a link that ends in{" "}
        <code>/?token=…</code>. Open that link once in this browser; afterwards this page works without it.
      </p>
      <p className="muted">A restarted gateway prints a new link, and the old one stops working.</p>
      <button type="button" className="primary" onClick={() => location.reload()}>
        I opened it — reload
      </button>
    </main>
  );
}
