import { useCell } from "../lib/cell";
import { formatCount } from "../lib/numbers";
import { keep, keeps, recording, type Keep } from "../state/keep";

interface Props {
  /** The request's id; empty until the gateway has sent it. */
  request: string;
  running: boolean;
}

/** Button that keeps a request's activations, while it runs or afterwards. Shown only if the server records. */
export function KeepButton({ request, running }: Props) {
  const one = useCell(keeps).get(request);
  const records = useCell(recording);
  if (request === "" || (!records && one === undefined)) return null;
  const { text, hint } = said(one, running);
  const open = one === undefined || one.state === "failed";
  return (
    <span className="keep" data-testid="keep" data-state={stateOf(one, running)}>
      <button
        type="button"
        className="link"
        title={hint}
        aria-disabled={!open || undefined}
        onClick={() => open && void keep(request)}
      >
        <span className="keep-dot" aria-hidden="true" />
        {text}
      </button>
      <span className="sr-only" role="status">
        {one === undefined ? "" : `${text}. ${hint}`}
      </span>
    </span>
  );
}

function stateOf(one: Keep | undefined, running: boolean): string {
  if (one === undefined) return "none";
  if (one.state === "marked") return running ? "keeping" : "kept";
  return one.state;
}

function said(one: Keep | undefined, running: boolean): { text: string; hint: string } {
  switch (one?.state) {
    case undefined:
      return { text: "Keep", hint: "Keep the activations of this request in the server's recording" };
    case "asking":
      return { text: "Keeping", hint: "Waiting for the server" };
    case "marked":
      return { text: running ? "Keeping" : "Kept", hint: rowsOf(one, running) };
    case "late":
      return { text: "Too late to keep", hint: one.message };
    case "off":
      return { text: "Not recording", hint: one.message };
    case "failed":
      return { text: "Not kept, try again", hint: one.message };
  }
}

function rowsOf({ rows, missing }: Keep, running: boolean): string {
  const gone = missing > 0 ? `; ${formatCount(missing)} had left the server's memory` : "";
  const rest = running ? " so far, and all further ones until the request ends" : "";
  return `${formatCount(rows)} positions${rest}${gone}`;
}
