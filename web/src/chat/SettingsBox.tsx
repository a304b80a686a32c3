import { useCell } from "../lib/cell";
import { engine, engineInfo } from "../state/engine";
import { changeSettings, settings } from "../state/settings";
import { NumberField } from "../parts/NumberField";

/** Sampling settings and system prompt of the next request. */
export function SettingsBox() {
  const now = useCell(settings);
  const context = engineInfo(useCell(engine))?.engine.max_context ?? 1_000_000;
  return (
    <details className="settings" data-testid="settings">
      <summary>
        Settings{" "}
        <span className="muted numbers">
          T {now.temperature} · {now.maxTokens} tokens
        </span>
      </summary>
      <div className="settings-grid">
        <NumberField
          label="Temperature"
          min={0}
          max={2}
          step={0.1}
          value={now.temperature}
          onCommit={(value) => value !== null && changeSettings({ temperature: value })}
        />
        <NumberField
          label="Max tokens"
          min={1}
          max={context}
          value={now.maxTokens}
          testid="max-tokens"
          onCommit={(value) => value !== null && changeSettings({ maxTokens: Math.round(value) })}
        />
        <NumberField
          label="Seed"
          placeholder="any"
          value={now.seed}
          onCommit={(value) => changeSettings({ seed: value === null ? null : Math.trunc(value) })}
        />
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
