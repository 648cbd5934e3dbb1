/** What the browser's tab says: how many alerts there are is seen while another tab is. */
export const pageTitle = (view: string, alerts = 0): string =>
  `${alerts > 0 ? `(${alerts}) ` : ""}${view} · Power`;
