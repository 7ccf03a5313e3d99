/* AttnLines: paints a head as lines from queries to keys, and as mean attention by distance. */
const AttnLines = (() => {
  const [TOP, LONGEST] = [22, 640]; // px above the first token and of the tallest plot
  const FEWEST = 26; // level below which no line is drawn
  const MANY = 96; // tokens from which only the strongest lines of the other queries are drawn

  /* Places of the two columns of tokens for the room there is. */
  function layout(room, queries, keys) {
    const most = Math.max(queries.length, keys.length);
    const pitch = Math.min(20, Math.max(1, (LONGEST - TOP) / most));
    const wide = Math.min(Math.max(room - 4, 240), 620);
    return { pitch, wide, high: TOP + pitch * most + 8, left: 74, right: wide - 74 };
  }

  const y = (size, index) => TOP + (index + 0.5) * size.pitch;

  /* view: {size, queries, keys, bytes(q), lastKey, cell, targets, ink, font, ratio} */
  function draw(canvas, view) {
    const { size, ink } = view;
    canvas.style.width = `${size.wide}px`;
    canvas.style.height = `${size.high}px`;
    const pen = AttnDraw.sized(canvas, size.wide, size.high, view.ratio);
    const line = (q, k, p, colour, width) => {
      pen.globalAlpha = Math.min(1, p);
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.beginPath();
      pen.moveTo(size.left + 6, y(size, q));
      const middle = (size.left + size.right) / 2;
      pen.bezierCurveTo(middle, y(size, q), middle, y(size, k), size.right - 6, y(size, k));
      pen.stroke();
      pen.globalAlpha = 1;
    };
    view.queries.forEach((_, q) => {
      if (q !== view.cell.q) others(view, q, (k, p) => line(q, k, 0.75 * p, ink.faint, 1));
    });
    pen.setLineDash([4, 4]);
    for (const [q, k] of view.targets) if (q === view.cell.q) line(q, k, 1, ink.mark, 1.5);
    pen.setLineDash([]);
    view.bytes(view.cell.q).forEach((v, k) => {
      const p = AttnData.level(v);
      if (k <= view.lastKey(view.cell.q) && p > 0.01) line(view.cell.q, k, 0.1 + p, ink.accent, 1 + 3 * p);
    });
    names(pen, view);
  }

  /* The lines of a query that is not looked at: all that can be seen, or the three strongest of a long sequence. */
  function others(view, q, line) {
    const seen = [];
    view.bytes(q).forEach((v, k) => v >= FEWEST && k <= view.lastKey(q) && seen.push([v, k]));
    if (view.queries.length > MANY) seen.sort((a, b) => b[0] - a[0]).splice(3);
    for (const [v, k] of seen) line(k, AttnData.level(v));
  }

  function names(pen, { size, queries, keys, cell, bytes, ink, font, first }) {
    const every = Math.max(1, Math.ceil(11 / size.pitch));
    const row = bytes(cell.q);
    const write = (text, x, at, align, bold, colour) => {
      pen.font = `${bold ? "700 " : ""}12px ${font}`;
      pen.fillStyle = colour;
      pen.textAlign = align;
      pen.fillText(AttnDraw.short(text, 9), x, at);
    };
    pen.textBaseline = "middle";
    write("query", size.left, 9, "right", false, ink.dim);
    write("key", size.right, 9, "left", false, ink.dim);
    queries.forEach((t, i) => {
      const on = i === cell.q;
      if (on || (i % every === 0 && Math.abs(i - cell.q) * size.pitch >= 11)) write(t, size.left, y(size, i), "right", on, on ? ink.accent : ink.dim);
    });
    keys.forEach((t, i) => {
      const on = row[i] > 100 || i === cell.k;
      if (i % every === 0 || on) write(t, size.right, y(size, i), "left", on, on ? ink.text : ink.dim);
    });
  }

  /* What is under the pointer: a query in the left half, a key in the right half; null outside. */
  function hit(size, x, at, queries, keys) {
    const index = Math.floor((at - TOP) / size.pitch);
    const left = x < (size.left + size.right) / 2;
    return index >= 0 && index < (left ? queries : keys).length ? { [left ? "q" : "k"]: index } : null;
  }

  /* Mean attention by distance from query to key, over the queries. */
  function byDistance(matrix, queries, keys, lastKey) {
    const sums = new Float64Array(Math.max(queries, keys));
    for (let q = 0; q < queries; q += 1) {
      const end = lastKey(q);
      for (let k = 0; k <= end; k += 1) sums[Math.abs(q - k)] += AttnData.level(matrix[q * keys + k]);
    }
    return sums.map((sum) => sum / queries);
  }

  /* Bars of `byDistance`, the distance of the present cell marked. */
  function histogram(canvas, shares, distance, ink, ratio) {
    const [wide, high, pad] = [220, 64, 6];
    const pen = AttnDraw.sized(canvas, wide, high, ratio);
    const bins = Math.min(shares.length, wide - 2 * pad);
    const per = shares.length / bins;
    const heights = Array.from({ length: bins }, (_, i) =>
      shares.slice(Math.floor(i * per), Math.floor((i + 1) * per)).reduce((a, b) => a + b, 0),
    );
    const top = Math.max(...heights, 1e-9);
    const pitch = (wide - 2 * pad) / bins;
    heights.forEach((share, i) => {
      const tall = (high - 2 * pad) * (share / top);
      pen.fillStyle = i === Math.floor(distance / per) ? ink.accent : ink.faint;
      pen.fillRect(pad + i * pitch, high - pad - tall, Math.max(1, pitch - (pitch > 3 ? 1 : 0)), tall);
    });
    pen.fillStyle = ink.line;
    pen.fillRect(pad, high - pad, wide - 2 * pad, 1);
    const best = shares.indexOf(Math.max(...shares));
    const words = `${(100 * shares[best]).toFixed(0)} % of attention reaches ${best} back, the most of any distance`;
    canvas.setAttribute("aria-label", `Attention by distance from query to key: ${words}`);
    return words;
  }

  return { layout, draw, hit, byDistance, histogram };
})();
