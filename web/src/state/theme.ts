import { Cell } from "../lib/cell";
import { readView, writeView } from "./view-url";

export const THEME_CHOICES = ["auto", "light", "dark"] as const;
export type ThemeChoice = (typeof THEME_CHOICES)[number];

const KEY = "actscope.theme";

function asChoice(value: string | null): ThemeChoice | null {
  return THEME_CHOICES.find((choice) => choice === value) ?? null;
}

export const theme = new Cell<ThemeChoice>(
  asChoice(readView().theme) ?? asChoice(localStorage.getItem(KEY)) ?? "auto",
);

function show(): void {
  document.documentElement.dataset["theme"] = theme.get();
}

/** Applies the stored theme, and applies and stores every later change of it. */
export function followTheme(): void {
  show();
  theme.subscribe(() => {
    show();
    localStorage.setItem(KEY, theme.get());
    if (readView().theme !== null) writeView({ theme: theme.get() });
  });
}
