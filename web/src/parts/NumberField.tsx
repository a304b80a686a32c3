import { type KeyboardEvent, useState } from "react";

interface Props {
  label: string;
  value: number | null;
  min?: number;
  max?: number;
  step?: number;
  placeholder?: string;
  testid?: string;
  /** Gets the number, within its bounds, when it has been typed; null if the field was emptied. */
  onCommit: (value: number | null) => void;
}

/** A number that counts when it has been typed (Enter, or on leaving the field), not at each key. */
export function NumberField({ label, value, min, max, step = 1, placeholder, testid, onCommit }: Props) {
  const [typed, setTyped] = useState<string | null>(null);
  const commit = () => {
    if (typed === null) return;
    const number = Number.parseFloat(typed);
    onCommit(Number.isNaN(number) ? null : Math.min(max ?? number, Math.max(min ?? number, number)));
    setTyped(null);
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it does not send the message
    commit();
  };
  return (
    <label>
      {label}
      <input
        type="number"
        min={min}
        max={max}
        step={step}
        placeholder={placeholder}
        value={typed ?? value ?? ""}
        data-testid={testid}
        onChange={(event) => setTyped(event.target.value)}
        onBlur={commit}
        onKeyDown={onKeyDown}
      />
    </label>
  );
}
