import { everyRow, type Policy } from "./policy.ts";

/**
 * Reads every row at every step: exact attention, the yardstick of all others.
 * Bytes per step and layer: length * kvHeads * 2 row bytes. Memory: the rows. Fails when the context is long: its cost is linear in it.
 */
export const full = (): Policy => ({ name: "full", sink: 0, layer: () => everyRow });
