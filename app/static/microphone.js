/** On the audio thread: what the microphone hears, mono, in blocks. */

const BLOCK_SAMPLES = 1024;

class Microphone extends AudioWorkletProcessor {
  #block = new Float32Array(BLOCK_SAMPLES);
  #count = 0;
  #ended = false;

  constructor() {
    super();
    this.port.onmessage = () => {
      this.#hand();
      this.#ended = true;
      this.port.postMessage(null);
    };
  }

  /** @param {Float32Array[][]} inputs @returns {boolean} whether more is wanted */
  process([channels]) {
    for (let at = 0; at < (channels[0]?.length ?? 0) && !this.#ended; at++) {
      this.#block[this.#count++] = channels.reduce((sum, channel) => sum + channel[at], 0) / channels.length;
      if (this.#count === BLOCK_SAMPLES) this.#hand();
    }
    return !this.#ended;
  }

  #hand() {
    this.port.postMessage(this.#block.slice(0, this.#count));
    this.#count = 0;
  }
}

registerProcessor("microphone", Microphone);
