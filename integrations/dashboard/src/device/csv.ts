/** CSV as RFC 4180 has it, and as spreadsheets read it. */

export type Cell = string | number | null | undefined;

/** Says that what follows is UTF-8: without it a spreadsheet takes it for something else. */
export const BYTE_ORDER_MARK = "\ufeff";

/** A cell. A spreadsheet would run text that begins like a formula: an apostrophe keeps it text. */
function cellText(value: Cell): string {
  if (value === null || value === undefined) return "";
  const text =
    typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Rows, the head among them, as the text of a file. */
export const csv = (rows: readonly (readonly Cell[])[]): string =>
  BYTE_ORDER_MARK + rows.map((row) => `${row.map(cellText).join(",")}\r\n`).join("");
