/** WAV files, and what 16-bit samples are made of: mono, as the server has them, and at 24 kHz but for recordings. */

export const RATE_HZ = 24_000;

/**
 * @param {string} text base64 of little-endian 16-bit samples
 * @returns {Int16Array}
 */
export function samplesFromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Int16Array.from({ length: bytes.length / 2 }, (_, index) => view.getInt16(2 * index, true));
}

/**
 * @param {Int16Array} samples
 * @returns {Float32Array} within -1 and 1
 */
export function toFloat(samples) {
  return Float32Array.from(samples, (sample) => sample / 32_768);
}

/**
 * @param {Float32Array} samples
 * @returns {Int16Array} rounded, and cut at full scale
 */
export function toPcm(samples) {
  return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32_767));
}

/**
 * A finished file, byte for byte what the server makes of the same samples.
 * @param {Int16Array[]} pieces
 * @param {number} [rate] Hz
 * @returns {Blob}
 */
export function wav(pieces, rate = RATE_HZ) {
  const bytes = 2 * pieces.reduce((sum, piece) => sum + piece.length, 0);
  const view = new DataView(new ArrayBuffer(44 + bytes));
  let at = 0;
  /** @param {string} text */
  const name = (text) => [...text].forEach((character) => view.setUint8(at++, character.charCodeAt(0)));
  /** @param {number} value @param {2 | 4} width */
  const number = (value, width) => {
    if (width === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    at += width;
  };
  name("RIFF");
  number(36 + bytes, 4);
  name("WAVEfmt ");
  number(16, 4); // bytes of what follows
  number(1, 2); // PCM
  number(1, 2); // channels
  number(rate, 4);
  number(2 * rate, 4); // bytes a second
  number(2, 2); // bytes a sample
  number(16, 2); // bits a sample
  name("data");
  number(bytes, 4);
  for (const piece of pieces) {
    for (const sample of piece) {
      view.setInt16(at, sample, true);
      at += 2;
    }
  }
  return new Blob([view.buffer], { type: "audio/wav" });
}
