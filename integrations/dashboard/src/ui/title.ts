/** The title of the browser's tab: it counts the alerts, also while another tab is in front. */
export const pageTitle = (view: string, alerts = 0): string =>
  `${alerts > 0 ? `(${alerts}) ` : ""}${view} · Power`;
