/**
 * Which meters can share an axis: beside a feed of 230 V, a pack of 12 V would be a flat line.
 */

const NEIGHBOURS = 2; // in a group, each size is at most that many times the one below it
const SPREAD = 4; // and the greatest at most that many times the smallest

interface Sized {
  readonly id: string;
  /** About how great its values are; 0 if nothing is known. */
  readonly size: number;
}

/**
 * Ids in groups of about the same size, the greatest group first. Ids of unknown size are in the
 * first group.
 */
export function byScale(sized: readonly Sized[]): string[][] {
  const rising = sized.filter(({ size }) => size > 0).sort((a, b) => a.size - b.size);
  const groups: Sized[][] = [];
  for (const one of rising) {
    const group = groups.at(-1);
    const [least, before] = [group?.[0]?.size ?? 0, group?.at(-1)?.size ?? 0];
    if (group && one.size <= NEIGHBOURS * before && one.size <= SPREAD * least) group.push(one);
    else groups.push([one]);
  }
  const places = new Map(
    groups.reverse().flatMap((group, place) => group.map(({ id }) => [id, place])),
  );
  const result: string[][] = groups.length > 0 ? groups.map(() => []) : [[]];
  // In the order in which they were given.
  for (const { id } of sized) result[places.get(id) ?? 0]?.push(id);
  return result;
}
