/** Numbers as people type them. */

const THOUSANDS_OR_NOT = /^[-+]?[1-9]\d{0,2},\d{3}$/;

/**
 * The number in a field's text, with a point or a comma before its decimals. Throws an Error that
 * names the field if it is no number, or could be two: 1,234 is 1234 to some, and 1.234 to others.
 */
export function numberIn(text: string, label: string): number {
  const value = Number(text.replace(",", "."));
  if (text === "" || !Number.isFinite(value))
    throw new Error(`${label}: expected a number such as 12.5, got “${text}”.`);
  if (THOUSANDS_OR_NOT.test(text)) {
    const [whole, decimal] = [text.replace(",", ""), text.replace(",", ".")];
    throw new Error(`${label}: “${text}” can be ${whole} or ${decimal}. Write one of these.`);
  }
  return value;
}
