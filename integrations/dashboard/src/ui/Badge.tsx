/**
 * The state of a device or meter as a word and a shape: colour alone says nothing to some users.
 */

import type { DeviceState } from "../fleet/summary";

const LOOKS: Record<DeviceState, { text: string; icon: string }> = {
  charging: { text: "Charging", icon: "M8 1 3 9h4l-1 6 6-9H8z" },
  full: { text: "Full", icon: "M2 5h10v6H2zM14 7v2M4.5 7v2M7 7v2M9.5 7v2" },
  producing: {
    text: "Producing",
    icon: "M8 5a3 3 0 1 0 .01 0M8 1v1.5M8 13.5V15M1 8h1.5M13.5 8H15",
  },
  normal: { text: "Normal", icon: "M3 8.5 6.5 12 13 4.5" },
  low: { text: "Low", icon: "M8 2 15 14H1zM8 6.5v3.5M8 12v.1" },
  critical: { text: "Critical", icon: "M5 1h6l4 4v6l-4 4H5l-4-4V5zM8 4.5v4.5M8 11.3v.1" },
  unknown: { text: "Unknown", icon: "M5.5 6a2.5 2.5 0 1 1 3.6 2.2C8.3 8.7 8 9.2 8 10M8 12.8v.1" },
  stale: { text: "Stale", icon: "M8 1.5a6.5 6.5 0 1 0 .01 0M8 4.5V8l2.5 1.5" },
  silent: { text: "No readings", icon: "M3 8h10" },
};

export function Badge({ state }: { state: DeviceState }) {
  const { text, icon } = LOOKS[state];
  return (
    <span className={`badge badge-${state}`}>
      <svg viewBox="0 0 16 16" aria-hidden="true">
        <path d={icon} />
      </svg>
      {text}
    </span>
  );
}
