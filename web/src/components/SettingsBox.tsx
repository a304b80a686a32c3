import { useCell } from "../lib/cell";
import { changeSettings, settings } from "../state/settings";

/** Sampling settings and system prompt of the next request. */
export function SettingsBox() {
  const now = useCell(settings);
  return (
    <details className="settings" data-testid="settings">
      <summary>
        Settings{" "}
        <span className="muted numbers">
          T {now.temperature} · {now.maxTokens} tokens
        </span>
      </summary>
      <div className="settings-grid">
        <label>
          Temperature
          <input
            type="number"
            min={0}
            max={2}
            step={0.1}
            value={now.temperature}
            onChange={(event) => changeSettings({ temperature: clamp(event.target.valueAsNumber, 0, 2) })}
          />
        </label>
        <label>
          Max tokens
          <input
            type="number"
            min={1}
            step={1}
            value={now.maxTokens}
            data-testid="max-tokens"
            onChange={(event) =>
              changeSettings({ maxTokens: Math.round(clamp(event.target.valueAsNumber, 1, 1e6)) })
            }
          />
        </label>
        <label>
          Seed
          <input
            type="number"
            step={1}
            placeholder="any"
            value={now.seed ?? ""}
            onChange={(event) => changeSettings({ seed: whole(event.target.valueAsNumber) })}
          />
        </label>
        <label className="wide">
          System prompt
          <textarea
            rows={2}
            value={now.system}
            placeholder="none"
            onChange={(event) => changeSettings({ system: event.target.value })}
          />
        </label>
      </div>
    </details>
  );
}

function clamp(value: number, low: number, high: number): number {
  return Number.isNaN(value) ? low : Math.min(high, Math.max(low, value));
}

function whole(value: number): number | null {
  return Number.isNaN(value) ? null : Math.trunc(value);
}
