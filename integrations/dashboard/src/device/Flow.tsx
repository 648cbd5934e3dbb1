/**
 * Where power comes from and where it goes, as a picture: sources and uses around a hub, with their
 * watts.
 */

import type { PowerMeter } from "@blackroad/power-client";
import type { Summary } from "../fleet/summary";
import * as format from "../format";
import type { Kind } from "./energy";

const [WIDTH, HEIGHT, RADIUS] = [340, 288, 48];
const HUB = { x: 170, y: 144 };

/** In the picture's units. */
const PLACES: Record<Kind, { x: number; y: number }> = {
  solar: { x: 170, y: 50 },
  grid: { x: 50, y: 144 },
  load: { x: 290, y: 144 },
  battery: { x: 170, y: 238 },
};

/** Drawn in a square of 24. */
const ICONS: Record<Kind, string> = {
  solar:
    "M12 8a4 4 0 1 0 .01 0M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5 19 19M19 5l-1.5 1.5M6.5 17.5 5 19",
  grid: "M8 22 12 2l4 20M5 8h14M7 13h10M6 8v2M18 8v2",
  load: "M4 11 12 4l8 7v9H4zM10 20v-6h4v6",
  battery: "M3 8h15v8H3zM21 11v2M6 11v2M9 11v2M12 11v2",
};

interface Node {
  readonly kind: Kind;
  readonly label: string;
  /** W into the hub; negative: out of it. */
  readonly watts: number | null;
}

/** A device's sources and uses, with their present watts. */
export function nodesOf(summary: Summary, meters: readonly PowerMeter[]): Node[] {
  const types = new Set(meters.filter(({ active }) => active).map(({ type }) => type));
  const nodes: Node[] = [];
  if (types.has("solar")) nodes.push({ kind: "solar", label: "Solar", watts: summary.solar });
  if (types.has("main")) nodes.push({ kind: "grid", label: "Grid", watts: summary.grid });
  else if (types.has("ups")) nodes.push({ kind: "grid", label: "UPS", watts: summary.grid });
  if (types.has("battery"))
    nodes.push({ kind: "battery", label: "Battery", watts: summary.battery });
  const used = summary.consumption;
  nodes.push({ kind: "load", label: "Consumption", watts: used === null ? null : -used });
  return nodes;
}

/** The picture in words. */
export function flowText(nodes: readonly Node[]): string {
  const say = ({ kind, label, watts }: Node) => {
    if (watts === null) return `${label} not known`;
    if (kind === "load") return `${label} ${format.watts(-watts)}`;
    return `${watts < 0 ? "into" : "from"} ${label.toLowerCase()} ${format.watts(Math.abs(watts))}`;
  };
  return nodes.map(say).join(", ");
}

export function Flow({ summary, meters }: { summary: Summary; meters: readonly PowerMeter[] }) {
  const nodes = nodesOf(summary, meters);
  const most = Math.max(...nodes.map(({ watts }) => Math.abs(watts ?? 0)), 1e-9);
  const text = format.together(
    nodes.map(({ watts }) => watts),
    "W",
  );
  return (
    <svg
      className="flow"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      role="img"
      aria-label={flowText(nodes)}
    >
      {nodes.map((node) => (
        <FlowLine key={node.kind} node={node} share={Math.abs(node.watts ?? 0) / most} />
      ))}
      <circle className="flow-hub" cx={HUB.x} cy={HUB.y} r={5} />
      {nodes.map((node) => (
        <FlowNode key={node.kind} node={node} text={text(Math.abs(node.watts ?? Number.NaN))} />
      ))}
    </svg>
  );
}

const STILL_WATTS = 0.05; // less than that is not drawn as a flow

/** A line between a node and the hub, in the direction of the flow; more watts make it broader. */
function FlowLine({ node: { kind, watts }, share }: { node: Node; share: number }) {
  const place = PLACES[kind];
  const edge = {
    x: HUB.x + Math.sign(place.x - HUB.x) * (Math.abs(place.x - HUB.x) - RADIUS),
    y: HUB.y + Math.sign(place.y - HUB.y) * (Math.abs(place.y - HUB.y) - RADIUS),
  };
  const flows = watts !== null && Math.abs(watts) >= STILL_WATTS;
  const [from, to] = watts !== null && watts < 0 ? [HUB, edge] : [edge, HUB];
  const path = `M${from.x} ${from.y}L${to.x} ${to.y}`;
  return (
    <g className={`flow-${kind}`}>
      <path className="flow-rail" d={path} strokeWidth={flows ? 3 + 5 * share : 1.5} />
      {flows && <path className="flow-moving" d={path} strokeWidth={1.5 + 2.5 * share} />}
      {flows && <path className="flow-arrow" d={arrow(from, to)} />}
    </g>
  );
}

type Point = { readonly x: number; readonly y: number };

/** An arrowhead in the middle of a line, for users who have switched animations off. */
function arrow(from: Point, to: Point): string {
  const middle = { x: (from.x + to.x) / 2, y: (from.y + to.y) / 2 };
  const [dx, dy] = [Math.sign(to.x - from.x), Math.sign(to.y - from.y)];
  const at = (along: number, across: number) =>
    `${middle.x + dx * along - dy * across} ${middle.y + dy * along + dx * across}`;
  return `M${at(8, 0)}L${at(-5, 7)}L${at(-5, -7)}Z`;
}

function FlowNode({ node: { kind, label }, text }: { node: Node; text: string }) {
  const { x, y } = PLACES[kind];
  return (
    <g className={`flow-${kind}`}>
      <circle className="flow-ring" cx={x} cy={y} r={RADIUS} />
      <path
        className="flow-icon"
        transform={`translate(${x - 10} ${y - 38}) scale(0.83)`}
        d={ICONS[kind]}
      />
      <text className="flow-watts" x={x} y={y + 7}>
        {text}
      </text>
      <text className="flow-label" x={x} y={y + 23}>
        {label}
      </text>
    </g>
  );
}
