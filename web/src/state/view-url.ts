/** The part of the view that the URL stores, so that it can be shared and reloaded. */
export interface View {
  /** The chat of this browser. */
  chat: string | null;
  background: string | null;
  underlines: readonly string[];
  /** "scale" if colours are of the whole scale; null: of events alone. */
  heat: string | null;
  theme: string | null;
  request: string | null;
  position: number | null;
}

export function readView(search = location.search): View {
  const query = new URLSearchParams(search);
  const position = Number.parseInt(query.get("pos") ?? "", 10);
  return {
    chat: query.get("chat"),
    background: query.get("bg"),
    underlines: query.get("ul")?.split(",").filter(Boolean) ?? [],
    heat: query.get("heat"),
    theme: query.get("theme"),
    request: query.get("request"),
    position: Number.isNaN(position) ? null : position,
  };
}

export function viewUrl(change: Partial<View>): string {
  const view = { ...readView(), ...change };
  const query = new URLSearchParams();
  if (view.chat !== null) query.set("chat", view.chat);
  if (view.background !== null) query.set("bg", view.background);
  if (view.underlines.length > 0) query.set("ul", view.underlines.join(","));
  if (view.heat !== null) query.set("heat", view.heat);
  if (view.theme !== null) query.set("theme", view.theme);
  if (view.request !== null) query.set("request", view.request);
  if (view.position !== null) query.set("pos", String(view.position));
  const search = query.toString();
  return `${location.pathname}${search === "" ? "" : `?${search}`}`;
}

/** Notes a change of the view in the address. */
export function writeView(change: Partial<View>): void {
  history.replaceState(null, "", viewUrl(change));
}

/** Notes a change of place in the address: the browser's Back returns to where the reader was. */
export function pushView(change: Partial<View>): void {
  const url = viewUrl(change);
  if (url !== `${location.pathname}${location.search}`) history.pushState(null, "", url);
}
