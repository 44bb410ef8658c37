/** The server: requests that carry the key, refusals as the messages of its envelope, the stream of a continuation. */

import { events } from "./events.js";
import { post } from "./http.js";
import { samplesFromBase64 } from "./wav.js";

/**
 * @typedef {{kind: "started", seed: string, promptTokens: number, promptNll: number}} Started
 * @typedef {{kind: "piece", samples: Int16Array, tokens: number[], logprobs: number[]}} Piece
 *   320 samples a token; without tokens it is a part of the prompt
 * @typedef {{kind: "done", figures: any}} Done docs/api.md has the fields
 * @typedef {Record<string, string>} Fields sent beside the file
 * @typedef {{file: Blob, name: string, fields: Fields}} Upload
 * @typedef {import("./http.js").Answer} Answer
 */

/** What the server refused, in its own words, or that it is not there. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {string} code
   */
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

export const CUT = new ApiError("The connection to the server was cut.", "network");
const NO_KEY = "This server wants an API key.";
const WRONG_KEY = "The server does not take this API key.";

/**
 * @param {{message?: string, code?: string} | undefined} error of the server's envelope
 * @param {string} otherwise what is said without one
 * @returns {ApiError} its message as a sentence
 */
export function refusal(error, otherwise) {
  const message = error?.message || otherwise;
  const ended = /[.!?]$/.test(message) ? message : `${message}.`;
  return new ApiError(ended[0].toUpperCase() + ended.slice(1), error?.code ?? "");
}

/** @param {Answer} answer @returns {Promise<any>} its body, read from JSON; null when that is something else */
async function json(answer) {
  let text = "";
  for await (const chunk of answer.chunks()) text += chunk;
  try {
    return JSON.parse(text);
  } catch {
    return null; // a proxy in between may answer with a page
  }
}

const MEBIBYTE = 2 ** 20;

export class Api {
  key = "";
  mostMebibytes = Infinity; // of one upload

  /**
   * @param {string} path relative, so that a proxy may serve the page below a folder
   * @param {Upload} upload
   * @param {AbortSignal} signal
   * @param {(share: number) => void} sent
   * @param {boolean} [binary]
   * @returns {Promise<Answer>} of status 200
   * @throws {ApiError} or, when the signal fired, an AbortError
   */
  async #post(path, { file, name, fields }, signal, sent, binary) {
    if (/[^\x20-\x7e]/.test(this.key)) throw new ApiError("No key has such characters.", "invalid_api_key");
    if (file.size > this.mostMebibytes * MEBIBYTE) {
      const told = `The file has ${Math.ceil(file.size / MEBIBYTE)} MiB; the server takes ${this.mostMebibytes} MiB.`;
      throw new ApiError(told, "file_too_large");
    }
    const form = new FormData();
    for (const [field, value] of Object.entries(fields)) form.set(field, value);
    form.set("file", file, name);
    /** @type {Record<string, string>} */
    const headers = this.key ? { authorization: `Bearer ${this.key}` } : {};
    const answer = await post(path, form, { headers, signal, sent, binary }).catch((error) => {
      if (signal.aborted) throw error;
      throw new ApiError("The server does not answer, or did not take the whole file.", "network");
    });
    if (answer.status === 200) return answer;
    if (answer.status === 401) throw new ApiError(this.key ? WRONG_KEY : NO_KEY, "invalid_api_key");
    const body = await json(answer).catch(() => null);
    const error = refusal(body?.error, `The server answered with status ${answer.status}`);
    const wait = answer.header("retry-after");
    if (wait) error.message += ` Try again in ${wait} s.`;
    throw error;
  }

  /**
   * The continuation while it is made; a `Started` first, a `Done` last.
   * @param {Upload} upload
   * @param {AbortSignal} signal ends the server's work as well
   * @param {(share: number) => void} sent
   * @returns {AsyncGenerator<Started | Piece | Done>}
   */
  async *continuation({ file, name, fields }, signal, sent) {
    const answer = await this.#post("continue", { file, name, fields: { ...fields, stream: "true" } }, signal, sent);
    const told = (/** @type {string} */ field) => answer.header(`x-whispergpt-${field}`);
    const promptNll = Number(told("prompt-nll") || NaN);
    yield { kind: "started", seed: told("seed"), promptTokens: Number(told("prompt-tokens")), promptNll };
    try {
      for await (const { name: event, data } of events(answer.chunks())) {
        if (event === "audio.delta") yield { kind: "piece", ...data, samples: samplesFromBase64(data.audio) };
        if (event === "audio.error") throw refusal(data.error, "The server broke off");
        if (event === "audio.done") return yield { kind: "done", figures: data };
      }
    } catch (error) {
      throw signal.aborted || error instanceof ApiError ? error : CUT;
    }
    throw CUT;
  }

  /**
   * A continuation as a sound file.
   * @param {Upload} upload its fields name the `response_format` and the seed
   * @param {AbortSignal} signal
   * @returns {Promise<Blob>}
   */
  async sound(upload, signal) {
    const answer = await this.#post("continue", upload, signal, () => {}, true);
    return answer.blob().catch((error) => {
      throw signal.aborted ? error : CUT;
    });
  }

  /**
   * @param {Upload} upload
   * @param {AbortSignal} signal
   * @param {(share: number) => void} [sent]
   * @returns {Promise<any>} the clip's result, as docs/api.md has it
   */
  async score(upload, signal, sent = () => {}) {
    const body = await json(await this.#post("score", upload, signal, sent)).catch((error) => {
      throw signal.aborted ? error : CUT;
    });
    if (!body?.results) throw CUT;
    return body.results[0];
  }
}
