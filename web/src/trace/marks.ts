const MARKS: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "→", " ": "␣", "\u00a0": "⍽" };

/** Returns a visible replacement of a token that is only whitespace; null for any other token. */
export function whitespaceMarks(text: string): string | null {
  if (text === "" || /\S/.test(text)) return null;
  return [...text].map((char) => MARKS[char] ?? "·").join("");
}

/** Returns a token's text with every whitespace character made visible. */
export function visible(text: string): string {
  return text === "" ? "∅" : [...text].map((char) => MARKS[char] ?? char).join("");
}
