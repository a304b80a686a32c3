import { useCell } from "../lib/cell";
import { engine, engineInfo } from "../state/engine";

/** Shows what the gateway and its engine have counted of losses, doubts and faults, and what to do. Nothing if there is none. */
export function Troubles() {
  const troubles = engineInfo(useCell(engine))?.troubles ?? [];
  if (troubles.length === 0) return null;
  return (
    <details className="notice" data-tone="calm" data-testid="troubles">
      <summary>Something was lost or is in doubt: {troubles.map((one) => one.name).join(", ")}</summary>
      <ul>
        {troubles.map((one) => (
          <li key={one.name}>
            {one.value.toLocaleString("en")}: {one.help} {one.todo}
          </li>
        ))}
      </ul>
    </details>
  );
}
