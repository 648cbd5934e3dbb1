/** The colour and name of a meter, the same in charts, bars and cards. */

import type { PowerMeter } from "@blackroad/power-client";

export interface Line {
  readonly id: string;
  readonly label: string;
  /** A CSS custom property, such as --series-solar-1. */
  readonly color: string;
  readonly dash?: readonly number[];
}

/** What a type of meter is called. */
export const TYPES = { main: "Mains", battery: "Battery", solar: "Solar", ups: "UPS" } as const;
const SHADES = 2;
const DASHES: readonly (readonly number[])[] = [
  [8, 4],
  [2, 4],
  [10, 4, 2, 4],
];

/** What a type of meter is called. */
export const typeName = (type: PowerMeter["type"]): string => TYPES[type];

/** A meter's name, or its type where it has none. */
export const meterName = (meter: PowerMeter): string => meter.name ?? TYPES[meter.type];

/**
 * The line of each meter by its id: a colour by type, dashed if a type has more meters than shades.
 * A UPS is always dashed: in line with the mains it has the same watts, and would hide their line.
 */
export function linesOf(meters: readonly PowerMeter[]): Map<string, Line> {
  const counts = new Map<string, number>();
  return new Map(
    meters.map((meter) => {
      const count = counts.get(meter.type) ?? 0;
      counts.set(meter.type, count + 1);
      const round = Math.floor(count / SHADES) + (meter.type === "ups" ? 1 : 0);
      const dash = round === 0 ? undefined : DASHES[(round - 1) % DASHES.length];
      const color = `--series-${meter.type}-${(count % SHADES) + 1}`;
      return [meter.id, { id: meter.id, label: meterName(meter), color, ...(dash && { dash }) }];
    }),
  );
}
