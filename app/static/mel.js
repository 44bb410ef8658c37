/** A log-mel spectrogram, one column for each frame of 320 samples. */

export const BANDS = 64;
const HOP = 320;
const SIZE = 1024;
const BEFORE = SIZE / 2 - HOP / 2; // a column's window is centred on its frame
const RATE_HZ = 24_000;
const FLOOR_DB = -95; // of a sine at full scale
const TOP_DB = -15;

const toMel = (/** @type {number} */ hertz) => 2595 * Math.log10(1 + hertz / 700);
const toHertz = (/** @type {number} */ mel) => 700 * (10 ** (mel / 2595) - 1);

/** @returns {number} where a frequency stands among the bands, from below, 0 to 1 */
export const height = (/** @type {number} */ hertz) => toMel(hertz) / toMel(RATE_HZ / 2);

const WINDOW = Float64Array.from({ length: SIZE }, (_, at) => 0.5 - 0.5 * Math.cos((2 * Math.PI * at) / SIZE));
const COSINES = Float64Array.from({ length: SIZE / 2 }, (_, at) => Math.cos((2 * Math.PI * at) / SIZE));
const SINES = Float64Array.from({ length: SIZE / 2 }, (_, at) => -Math.sin((2 * Math.PI * at) / SIZE));
const REVERSED = Uint16Array.from({ length: SIZE }, (_, at) => {
  let reversed = 0;
  for (let bit = 1; bit < SIZE; bit *= 2) reversed = 2 * reversed + (at & bit ? 1 : 0);
  return reversed;
});

/** Triangles that overlap by half, evenly spaced in mel. @type {{first: number, weights: number[]}[]} */
const TRIANGLES = Array.from({ length: BANDS }, (_, band) => {
  const edge = (/** @type {number} */ index) => (toHertz((index * toMel(RATE_HZ / 2)) / (BANDS + 1)) * SIZE) / RATE_HZ;
  const [low, peak, high] = [edge(band), edge(band + 1), edge(band + 2)];
  const weights = [];
  const first = Math.ceil(low);
  for (let bin = first; bin <= Math.min(high, SIZE / 2); bin++) {
    weights.push(Math.max(0, Math.min((bin - low) / (peak - low), (high - bin) / (high - peak))));
  }
  return { first, weights };
});

const real = new Float64Array(SIZE);
const imaginary = new Float64Array(SIZE);

/** The discrete Fourier transform of what `real` and `imaginary` hold in bit-reversed order, in place. */
function transform() {
  for (let half = 1; half < SIZE; half *= 2) {
    const step = SIZE / 2 / half;
    for (let start = 0; start < SIZE; start += 2 * half) {
      for (let at = start, turn = 0; at < start + half; at++, turn += step) {
        const other = at + half;
        const re = real[other] * COSINES[turn] - imaginary[other] * SINES[turn];
        const im = real[other] * SINES[turn] + imaginary[other] * COSINES[turn];
        real[other] = real[at] - re;
        imaginary[other] = imaginary[at] - im;
        real[at] += re;
        imaginary[at] += im;
      }
    }
  }
}

/**
 * @param {Float32Array} samples of one window
 * @param {number} from its first
 * @param {Uint8Array} column levels of the bands from below, 0 to 255
 */
function columnOf(samples, from, column) {
  for (let at = 0; at < SIZE; at++) real[REVERSED[at]] = samples[from + at] * WINDOW[at];
  imaginary.fill(0);
  transform();
  TRIANGLES.forEach(({ first, weights }, band) => {
    let power = 0;
    weights.forEach((weight, index) => {
      const bin = first + index;
      power += weight * (real[bin] ** 2 + imaginary[bin] ** 2);
    });
    const decibels = 10 * Math.log10(power / (SIZE / 4) ** 2 + 1e-12); // a sine at full scale has 0
    column[band] = Math.max(0, Math.min(255, (255 * (decibels - FLOOR_DB)) / (TOP_DB - FLOOR_DB)));
  });
}

/** The spectrogram of sound that still arrives. */
export class Mel {
  #waiting = new Float32Array(BEFORE);

  /**
   * @param {Float32Array} samples what comes next
   * @returns {Uint8Array} the columns that are known now, one after another
   */
  add(samples) {
    const all = new Float32Array(this.#waiting.length + samples.length);
    all.set(this.#waiting);
    all.set(samples, this.#waiting.length);
    const count = Math.max(0, Math.floor((all.length - SIZE) / HOP) + 1);
    const columns = new Uint8Array(count * BANDS);
    for (let index = 0; index < count; index++) {
      columnOf(all, index * HOP, columns.subarray(index * BANDS, (index + 1) * BANDS));
    }
    this.#waiting = all.slice(count * HOP);
    return columns;
  }

  /** @returns {Uint8Array} the last columns, as if silence followed */
  end() {
    return this.add(new Float32Array(SIZE - HOP - BEFORE));
  }
}
