/** CSV by RFC 4180, with what spreadsheets need. */

export type Cell = string | number | null | undefined;

/** Marks the text as UTF-8; without it, spreadsheets guess another encoding. */
export const BYTE_ORDER_MARK = "\ufeff";

/** A cell. An apostrophe keeps a spreadsheet from running text that begins like a formula. */
function cellText(value: Cell): string {
  if (value === null || value === undefined) return "";
  const text =
    typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Rows, including the header row, as the text of a file. */
export const csv = (rows: readonly (readonly Cell[])[]): string =>
  BYTE_ORDER_MARK + rows.map((row) => `${row.map(cellText).join(",")}\r\n`).join("");
