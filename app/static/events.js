/** Server-sent events from a response's text (WHATWG HTML, section 9.2): `EventSource` itself cannot POST. */

/** @typedef {{name: string, data: any}} ServerEvent the data as read from JSON */

/**
 * @param {string} block the lines of one event
 * @returns {ServerEvent | null} null for one without data: a comment, say
 */
function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}

/**
 * The events as they arrive. An event that the body's end cuts off is dropped, as the standard has it.
 * @param {AsyncIterable<string>} chunks
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* events(chunks) {
  let waiting = "";
  for await (const chunk of chunks) {
    waiting += chunk.replaceAll("\r", "");
    const blocks = waiting.split("\n\n");
    waiting = blocks.pop() ?? "";
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
  }
}
