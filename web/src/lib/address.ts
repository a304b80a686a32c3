/** Path under which a proxy serves the page, without its last slash; "" at the root. */
export function prefixOf(baseUri: string): string {
  return new URL(".", baseUri).pathname.replace(/\/$/, "");
}

/** Address of a path of the gateway, wherever the page is served. */
export function addressOf(path: string): string {
  return prefixOf(document.baseURI) + path;
}
