/** What is drawn, frame by frame: the waveform of clip and continuation, and what the model thought of each token. */

export const FRAME_RATE_HZ = 75; // one token a frame
const FRAME_SAMPLES = 320;

/** One of the two parts. Lists are as long as what is known so far. */
export class Part {
  /** @type {number[]} */ low = []; // extremes of the frame's samples
  /** @type {number[]} */ high = [];
  /** @type {number[]} */ tokens = [];
  /** @type {number[]} */ logprobs = [];
  peak = 0;
  #samples = 0;

  /** @param {Float32Array} samples of any number */
  add(samples) {
    for (const sample of samples) {
      const frame = Math.floor(this.#samples++ / FRAME_SAMPLES);
      this.low[frame] = Math.min(this.low[frame] ?? 0, sample);
      this.high[frame] = Math.max(this.high[frame] ?? 0, sample);
      this.peak = Math.max(this.peak, Math.abs(sample));
    }
  }

  /**
   * @param {number[]} tokens
   * @param {number[]} logprobs
   */
  know(tokens, logprobs) {
    this.tokens.push(...tokens);
    this.logprobs.push(...logprobs);
  }
}

export class Timeline {
  clip = new Part();
  made = new Part();
  clipFrames = 0; // where the continuation starts
  frames = 0; // how long the axis is

  /** @param {Float32Array | null} samples of a clip that is now the one */
  open(samples) {
    this.clip = new Part();
    this.made = new Part();
    if (samples) this.clip.add(samples);
    this.clipFrames = this.frames = this.clip.low.length;
  }

  /**
   * A continuation is coming.
   * @param {number} clipFrames as the server counts them
   * @param {number} seconds that were asked for
   */
  begin(clipFrames, seconds) {
    this.made = new Part();
    this.clipFrames = clipFrames;
    this.frames = clipFrames + Math.ceil(seconds * FRAME_RATE_HZ - 1e-6);
  }

  /** Nothing more comes: the axis ends where the sound does. */
  end() {
    this.frames = this.clipFrames + this.made.low.length;
  }

  get seconds() {
    return this.frames / FRAME_RATE_HZ;
  }

  /** Where the continuation starts. */
  get clipSeconds() {
    return this.clipFrames / FRAME_RATE_HZ;
  }

  /**
   * @param {number} seconds
   * @returns {{token: number, logprob: number} | null} what the model thought there, if it is known
   */
  at(seconds) {
    const frame = Math.floor(seconds * FRAME_RATE_HZ);
    const inClip = frame < this.clipFrames;
    const part = inClip ? this.clip : this.made;
    const index = inClip ? frame : frame - this.clipFrames;
    return index in part.logprobs ? { token: part.tokens[index], logprob: part.logprobs[index] } : null;
  }
}
