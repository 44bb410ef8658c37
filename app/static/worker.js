/** A thread of its own for spectrograms, so that an hour of sound does not hold the page up. */

import { Mel } from "./mel.js";

/** @type {Map<number, Mel>} */
const open = new Map();

/** @param {MessageEvent<{id: number, samples: Float32Array | null}>} message null: the sound is at its end */
onmessage = ({ data: { id, samples } }) => {
  const mel = open.get(id) ?? new Mel();
  open.set(id, mel);
  const columns = samples ? mel.add(samples) : mel.end();
  if (!samples) open.delete(id);
  postMessage({ id, columns, ended: !samples });
};
