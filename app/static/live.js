/** A session with the server (docs/api.md): it hears a recording while it is made, and goes on with it at once. */

import { ApiError, CUT, refusal } from "./api.js";
import { FRAME_SAMPLES, Likelihoods } from "./timeline.js";
import { samplesFromBase64, toPcm } from "./wav.js";

/** @param {string} text @returns {string} base64url, which the name of a protocol may hold */
function named(text) {
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export class LiveSession {
  likelihoods = new Likelihoods();
  /** @type {WebSocket} */ #socket;
  /** @type {string[]} events that nobody has looked at yet */ #told = [];
  /** @type {(string | Int16Array)[]} what is said before it is open */ #unsaid = [];
  /** The clip that was heard, 24 kHz, where it is to be a part of the continuation. @type {Float32Array} */
  clip = new Float32Array();
  #wake = () => {};
  #asked = 0; // when the response was
  promptNll = NaN;
  /** @type {Notice[]} */ promptWarnings = [];
  promptTokens = 0;

  /**
   * @param {string} key of the server's; empty: none
   * @param {number} rate of what is recorded, Hz
   * @param {() => void} scored told when more likelihoods are known
   */
  constructor(key, rate, scored) {
    const address = new URL("v1/audio/session", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const protocols = key ? ["whispergpt", `whispergpt.key.${named(key)}`] : ["whispergpt"];
    const socket = (this.#socket = new WebSocket(address, protocols));
    this.#say({ type: "session.update", session: { sample_rate: rate } });
    socket.onopen = () => this.#unsaid.splice(0).forEach((message) => socket.send(message));
    socket.onclose = () => this.#wake();
    socket.onmessage = ({ data }) => {
      const event = JSON.parse(data);
      if (event.type === "input_audio.scored") {
        this.likelihoods.add(event.tokens, event.logprobs);
        scored();
      } else {
        this.#told.push(data);
        this.#wake();
      }
    };
  }

  /** @param {string | Int16Array} message */
  #send(message) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(message);
    else if (this.#socket.readyState === WebSocket.CONNECTING) this.#unsaid.push(message);
  }

  /** @param {object} event */
  #say(event) {
    this.#send(JSON.stringify(event));
  }

  /** @param {Float32Array} samples what is heard next */
  hear(samples) {
    this.#send(toPcm(samples));
  }

  /**
   * Nothing more is heard.
   * @param {Record<string, string> | null} fields of the continuation that follows at once; null: none
   * @returns {Promise<boolean>} whether the server has heard it all; else it is to be sent as a file
   */
  async commit(fields) {
    if (this.#socket.readyState !== WebSocket.OPEN) return this.close(), false;
    this.#say({ type: "input_audio_buffer.commit" });
    const { include_prompt: _, ...response } = fields ?? {};
    if (fields) this.#say({ type: "response.create", response });
    this.#asked = performance.now();
    try {
      const { event } = await this.#until("input_audio_buffer.committed");
      this.promptNll = event.prompt.nll;
      this.promptTokens = event.prompt.tokens;
      this.promptWarnings = event.prompt.warnings;
    } catch {
      return this.close(), false;
    }
    return fields !== null || (this.close(), false);
  }

  close() {
    this.#socket.close();
  }

  /**
   * @param {...string} types
   * @returns {Promise<{event: any, text: string}>} the next event of these
   * @throws {ApiError} when the server refuses something, or is gone
   */
  async #until(...types) {
    for (;;) {
      const text = this.#told.shift();
      if (text !== undefined) {
        const event = JSON.parse(text);
        if (types.includes(event.type)) return { event, text };
        if (event.type === "error") throw refusal(event.error, "The server broke off");
      } else if (this.#socket.readyState > WebSocket.OPEN) throw CUT;
      else await new Promise((resolve) => (this.#wake = () => resolve(undefined)));
    }
  }

  /**
   * What `commit` asked for, as `Api.continuation` gives it.
   * @param {import("./api.js").Upload} upload whose file is what was heard
   * @param {AbortSignal} signal ends the server's work as well
   * @returns {AsyncGenerator<import("./api.js").Started | import("./api.js").Piece | import("./api.js").Done>}
   */
  async *continuation({ fields }, signal) {
    signal.addEventListener("abort", () => this.close(), { once: true });
    try {
      const seed = /"seed":(\d+)/.exec((await this.#until("response.created")).text)?.[1] ?? ""; // of all its digits
      yield { kind: "started", seed, promptTokens: this.promptTokens, promptNll: this.promptNll };
      if (fields.include_prompt === "true") {
        const samples = toPcm(this.clip.subarray(0, this.promptTokens * FRAME_SAMPLES));
        yield { kind: "piece", samples, tokens: [], logprobs: [] };
      }
      for (;;) {
        const { event } = await this.#until("response.output_audio.delta", "response.done");
        if (event.type === "response.done") return yield { kind: "done", figures: this.#figures(event.response) };
        const { delta, tokens, logprobs } = event;
        yield { kind: "piece", samples: samplesFromBase64(delta), tokens, logprobs };
      }
    } finally {
      this.close(); // its place is free for others
    }
  }

  /** @param {any} response @returns {any} the same as `audio.done` has it */
  #figures({ choices, first_audio_seconds }) {
    const seconds = (performance.now() - this.#asked) / 1000;
    const timings = { first_audio_seconds, real_time_factor: choices[0].seconds / seconds };
    return { prompt: { nll: this.promptNll }, choices, timings, warnings: this.promptWarnings };
  }
}
