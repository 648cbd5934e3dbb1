/**
 * Which meters can share an axis: a feed of 230 V would make lines without a bend of a pack of 12
 * V.
 */

const NEIGHBOURS = 2; // the next greater one of a group is at most so many times as great
const SPREAD = 4; // and the greatest at most so many times the least

interface Sized {
  readonly id: string;
  /** How great its values are, about; 0: nothing is known. */
  readonly size: number;
}

/**
 * Ids in groups of about the same size, the greatest group first; those of which nothing is known
 * are in the first.
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
  for (const { id } of sized) result[places.get(id) ?? 0]?.push(id); // in the order in which they came
  return result;
}
