/** The logo: one trace on a round-cornered screen. */
export function Mark() {
  return (
    <svg className="mark" viewBox="0 0 32 32" aria-hidden="true">
      <rect x="1" y="1" width="30" height="30" rx="8" />
      <path d="M5 17h5l2.500-7 4.500 14 3.500-10 1.500 3h5" />
    </svg>
  );
}
