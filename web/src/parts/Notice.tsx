import type { ReactNode } from "react";

interface Props {
  title: string;
  hint: ReactNode;
  tone?: "error" | "calm";
}

/** A message about an error or a pending state, with a hint what to do. */
export function Notice({ title, hint, tone = "error" }: Props) {
  return (
    <div
      className="notice"
      data-tone={tone}
      role={tone === "error" ? "alert" : "status"}
      data-testid="notice"
    >
      <strong>{title}</strong>
      <p>{hint}</p>
    </div>
  );
}
