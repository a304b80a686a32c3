import type { ReactNode } from "react";

interface Props {
  title: string;
  hint: ReactNode;
  tone?: "error" | "calm";
}

/** Something went wrong or is not there yet, and what to do about it. */
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
