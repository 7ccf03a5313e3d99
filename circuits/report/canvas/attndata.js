/* AttnData: the 8-bit frames of AttnGrid, dense or the strongest keys of each query, decoded when first shown. */
"use strict";
const AttnData = (() => {
  const level = (v) => (v / 255) * (v / 255); // uint8 of sqrt(p) back to p

  function decode(text) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i += 1) bytes[i] = raw.charCodeAt(i);
    return bytes;
  }

  const byteOf = (text, i) => atob(text.slice(4 * Math.floor(i / 3), 4 * Math.floor(i / 3) + 4)).charCodeAt(i % 3);

  /* A message of bytes: uint32 length of a JSON head, the head, the frames; the head gives a frame as [start, stop]. */
  function unpacked(bytes) {
    const size = new DataView(bytes.buffer, bytes.byteOffset, 4).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
    const body = bytes.subarray(4 + size);
    for (const one of head.examples) one.patterns = one.patterns.map(([start, stop]) => body.subarray(start, stop));
    return head;
  }

  /* One sequence with its frames. top: keys kept per query, 0 where frames are dense; first: position of token 0. */
  class Example {
    constructor(raw, layers, heads) {
      this.label = raw.label;
      this.queries = raw.query_tokens || raw.tokens;
      this.keys = raw.key_tokens || raw.tokens;
      this.targets = Object.entries(raw.targets || {});
      this.top = raw.top || 0;
      this.first = raw.first || 0;
      this.heads = heads;
      this.slots = layers * heads * this.queries.length * this.top;
      this.patterns = raw.patterns;
      this.frames = [];
      this.spread = { id: "", matrix: null }; // the last sparse head that was written out
    }

    frame(step) {
      if (!this.frames[step]) {
        const one = this.patterns[step];
        this.frames[step] = typeof one === "string" ? decode(one) : one;
      }
      return this.frames[step];
    }

    row(layer, head, q) {
      return (layer * this.heads + head) * this.queries.length + q;
    }

    /* One byte; a dense frame that was never shown is not decoded for it. */
    byte(step, layer, head, q, k) {
      const row = this.row(layer, head, q);
      if (!this.top) {
        const at = row * this.keys.length + k;
        return this.frames[step] || typeof this.patterns[step] !== "string"
          ? this.frame(step)[at]
          : byteOf(this.patterns[step], at);
      }
      const bytes = this.frame(step);
      for (let slot = row * this.top; slot < (row + 1) * this.top; slot += 1) {
        if (bytes[2 * slot] + 256 * bytes[2 * slot + 1] === k) return bytes[2 * this.slots + slot];
      }
      return 0;
    }

    /* The [query key] bytes of one head; keys that were not kept are 0. */
    matrix(step, layer, head) {
      const size = this.queries.length * this.keys.length;
      const start = this.row(layer, head, 0);
      if (!this.top) return this.frame(step).subarray(start * this.keys.length, start * this.keys.length + size);
      const id = `${step} ${layer} ${head}`;
      if (this.spread.id !== id) this.spread = { id, matrix: this.written(this.frame(step), start, size) };
      return this.spread.matrix;
    }

    written(bytes, start, size) {
      const matrix = new Uint8Array(size);
      for (let slot = start * this.top; slot < (start + this.queries.length) * this.top; slot += 1) {
        const at = (Math.floor(slot / this.top) - start) * this.keys.length;
        const key = bytes[2 * slot] + 256 * bytes[2 * slot + 1];
        matrix[at + key] = Math.max(matrix[at + key], bytes[2 * this.slots + slot]);
      }
      return matrix;
    }
  }

  return { level, decode, unpacked, Example };
})();
