/** A POST by XMLHttpRequest, which alone tells how much of a body is sent; its answer is read while it comes. */

/**
 * @typedef {object} Answer
 * @property {number} status
 * @property {(name: string) => string} header empty when there is none
 * @property {() => AsyncGenerator<string>} chunks the body's text as it arrives; throws where it is cut off
 * @property {() => Promise<Blob>} blob the whole body; only if `binary` was asked for
 */

/**
 * @param {string} path
 * @param {FormData} body
 * @param {object} options
 * @param {Record<string, string>} options.headers
 * @param {AbortSignal} options.signal
 * @param {(share: number) => void} options.sent told how much of the body is on its way, 0 to 1
 * @param {boolean} [options.binary]
 * @returns {Promise<Answer>} as soon as the head of the answer is there
 */
export function post(path, body, { headers, signal, sent, binary = false }) {
  const request = new XMLHttpRequest();
  /** @type {unknown} */ let failure = null;
  let whole = false;
  let wake = () => {};
  const more = () => new Promise((resolve) => (wake = () => resolve(undefined)));

  async function* chunks() {
    let read = 0;
    try {
      for (;;) {
        if (failure) throw failure;
        const ended = whole;
        const text = request.responseText.slice(read);
        read += text.length;
        if (text) yield text;
        else if (ended) return;
        else await more();
      }
    } finally {
      if (!whole) request.abort(); // whoever stops reading stops the server's work, too
    }
  }

  async function blob() {
    while (!whole && !failure) await more();
    if (failure) throw failure;
    return /** @type {Blob} */ (request.response);
  }

  return new Promise((resolve, reject) => {
    const fail = (/** @type {unknown} */ error) => {
      failure = error;
      reject(error);
      wake();
    };
    request.onreadystatechange = () => {
      const { readyState, status } = request;
      const header = (/** @type {string} */ name) => request.getResponseHeader(name) ?? "";
      if (readyState === XMLHttpRequest.HEADERS_RECEIVED) {
        if (binary && status === 200) request.responseType = "blob";
        resolve({ status, header, chunks, blob });
      }
      wake();
    };
    request.onload = () => {
      whole = true;
      wake();
    };
    request.onerror = () => fail(new TypeError("the connection failed"));
    request.onabort = () => fail(new DOMException("stopped", "AbortError"));
    request.upload.onprogress = (event) => sent(event.total ? event.loaded / event.total : 1);
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.send(body);
  });
}
