/** Files that the page makes itself. */

const TYPES = { csv: "text/csv", json: "application/json" } as const;

/** Have the browser save a text. */
export function saveFile(text: string, kind: keyof typeof TYPES, name: string): void {
  const url = URL.createObjectURL(new Blob([text], { type: TYPES[kind] }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url));
}

/** A file name that every file system accepts, made of these parts; the last is the extension. */
export function fileName(...parts: string[]): string {
  const safe = parts.map((part) => part.replace(/[^\w.-]+/g, "_"));
  return `${safe.slice(0, -1).join("-")}.${safe.at(-1)}`;
}
