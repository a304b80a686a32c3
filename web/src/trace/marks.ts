const MARKS: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "→", " ": "␣", "\u00a0": "⍽" };

/** The visible stand-in of a token that is nothing but whitespace; null for any other token. */
export function whitespaceMarks(text: string): string | null {
  if (text === "" || /\S/.test(text)) return null;
  return [...text].map((char) => MARKS[char] ?? "·").join("");
}

/** A token's text with every whitespace character made visible. */
export function visible(text: string): string {
  return text === "" ? "∅" : [...text].map((char) => MARKS[char] ?? char).join("");
}
