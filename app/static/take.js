/** One continuation, from the request to its last sample. */

import { stem } from "./clip.js";
import { FRAME_RATE_HZ, Likelihoods, Part } from "./timeline.js";
import { RATE_HZ, toFloat, toPcm, wav } from "./wav.js";

/**
 * @typedef {import("./api.js").Api} Api
 * @typedef {import("./clip.js").Prompt} Prompt
 */

export class Take {
  /** @type {Int16Array[]} the sound, as it is downloaded */
  pieces = [];
  made = new Part();
  heard = new Part(); // the prompt as the server sends it, with `include_prompt`
  likelihoods = new Likelihoods();
  seed = "";
  promptTokens = 0;
  promptNll = NaN;
  /** @type {any} the figures of `audio.done`; null until it has come */
  figures = null;
  #stopper = new AbortController();

  /**
   * @param {Api} api
   * @param {Prompt} prompt
   * @param {Record<string, string>} fields of POST /continue, but which part of the file is the prompt
   * @param {Pick<Api, "continuation">} [maker] who has it made; a session that has heard the prompt already
   */
  constructor(api, prompt, fields, maker = api) {
    this.api = api;
    this.maker = maker;
    this.prompt = prompt;
    this.fields = fields;
  }

  /** Ends the request, and thereby the server's work; what came is kept. */
  stop() {
    this.#stopper.abort();
  }

  get stopped() {
    return this.#stopper.signal.aborted;
  }

  get withPrompt() {
    return this.fields.include_prompt === "true";
  }

  /** Where on the clip's axis the sound begins, seconds. */
  get start() {
    return this.withPrompt ? this.prompt.from : this.likelihoods.start;
  }

  get expectedSeconds() {
    if (this.#ended) return this.made.seconds;
    return Math.ceil(Number(this.fields.seconds) * FRAME_RATE_HZ - 1e-6) / FRAME_RATE_HZ;
  }
  #ended = false;

  /**
   * @param {(share: number) => void} sent told how much of the prompt is on its way
   * @param {(samples: Float32Array | null) => void} more null: it is known what the prompt is to the server
   * @returns {Promise<void>} when all has come
   * @throws {import("./api.js").ApiError} or, when it was stopped, an AbortError
   */
  async run(sent, more) {
    const { upload, from } = this.prompt;
    const whole = { ...upload, fields: { ...upload.fields, ...this.fields } };
    try {
      for await (const event of this.maker.continuation(whole, this.#stopper.signal, sent)) {
        if (event.kind === "started") {
          this.seed = event.seed;
          this.promptTokens = event.promptTokens;
          this.promptNll = event.promptNll;
          this.likelihoods.start = from + event.promptTokens / FRAME_RATE_HZ;
          more(null);
        } else if (event.kind === "piece") {
          const samples = toFloat(event.samples);
          this.pieces.push(event.samples);
          (event.tokens.length ? this.made : this.heard).add(samples);
          this.likelihoods.add(event.tokens, event.logprobs);
          more(samples);
        } else {
          this.figures = event.figures;
          this.promptNll = event.figures.prompt.nll;
        }
      }
    } finally {
      this.#ended = true;
      this.made.mel.end();
      this.heard.mel.end();
    }
  }

  /** The likelihoods of the prompt's own tokens, which /continue does not send. */
  async scorePrompt() {
    const { scored, likelihoods } = this.prompt;
    if (!scored || (likelihoods.tokens.length && likelihoods.tokens.length >= this.promptTokens)) return;
    try {
      const upload = { ...scored, fields: { ...scored.fields, detail: "tokens" } };
      const { codes, logprobs } = await this.api.score(upload, this.#stopper.signal);
      likelihoods.clear(); // a session tells of most of them, as it hears them
      likelihoods.add(codes, logprobs);
    } catch {
      // A busy server, most likely. The strip begins with the continuation then; nothing else is missing.
    }
  }

  /** @returns {Record<string, string>} what makes the same sound again, as a file */
  get again() {
    const { fields } = this;
    const seconds = this.figures ? fields.seconds : String(this.likelihoods.tokens.length / FRAME_RATE_HZ);
    return { ...fields, seconds, seed: this.seed };
  }

  /** @param {string} format @returns {Promise<Blob>} */
  async sound(format) {
    if (format === "wav") return wav(this.pieces);
    const { upload } = this.prompt;
    const fields = { ...upload.fields, ...this.again, response_format: format };
    return this.api.sound({ ...upload, fields }, new AbortController().signal);
  }

  get name() {
    return `${stem(this.prompt.clip.name)}-continued`;
  }

  /** @returns {import("./clip.js").Clip} prompt and continuation, to go on from */
  asClip() {
    const { clip, from, to } = this.prompt;
    const { samples } = clip;
    const before = this.withPrompt || !samples ? [] : [toPcm(samples.slice(from * RATE_HZ, to * RATE_HZ))];
    const pieces = [...before, ...this.pieces];
    const joined = Int16Array.from(pieces.flatMap((piece) => [...piece]));
    return { name: `${this.name}.wav`, file: wav(pieces), samples: toFloat(joined) };
  }
}
