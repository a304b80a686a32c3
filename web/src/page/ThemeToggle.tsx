import { useCell } from "../lib/cell";
import { THEME_CHOICES, theme } from "../state/theme";

const ICONS = { auto: "◐", light: "☀", dark: "☾" } as const;

export function ThemeToggle() {
  const now = useCell(theme);
  return (
    <fieldset className="segments" aria-label="Theme">
      {THEME_CHOICES.map((choice) => (
        <button
          key={choice}
          type="button"
          aria-pressed={now === choice}
          title={`${choice} theme`}
          data-testid={`theme-${choice}`}
          onClick={() => theme.set(choice)}
        >
          <span aria-hidden="true">{ICONS[choice]}</span>
          <span className="sr-only">{choice}</span>
        </button>
      ))}
    </fieldset>
  );
}
