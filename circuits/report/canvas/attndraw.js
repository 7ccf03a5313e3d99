/* AttnDraw: the stateless part of AttnGrid and HeatGrid: elements, colours, and painting on canvases it is given. */
const AttnDraw = (() => {
  const MAX_STRIP = 160;
  const [TALLEST, SMALL] = [620, 400]; // px of the enlarged head; tokens above which a cell may be a single pixel

  const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
  const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

  /* An element with its text as a text node: nothing given here is ever read as markup. */
  function el(tag, className, text, attributes = {}) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined && text !== null) node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }

  /* The red, green and blue that a CSS variable resolves to on this element. */
  function colourOf(element, property) {
    const probe = el("span");
    probe.style.color = `var(${property})`;
    element.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    const parts = (found.match(/[\d.]+(e-?\d+)?/g) || ["0", "0", "0"]).map(Number).slice(0, 3);
    return found.startsWith("color(") ? parts.map((v) => Math.round(v * 255)) : parts;
  }

  /* Calls `again` when the page turns light or dark, also for print; the result stops watching. */
  function watchTheme(again) {
    const media = matchMedia("(prefers-color-scheme: dark)");
    const themes = new MutationObserver(again);
    media.addEventListener("change", again);
    window.addEventListener("beforeprint", again);
    window.addEventListener("afterprint", again);
    themes.observe(document.documentElement, { attributes: true });
    return () => {
      themes.disconnect();
      media.removeEventListener("change", again);
      window.removeEventListener("beforeprint", again);
      window.removeEventListener("afterprint", again);
    };
  }

  /* 256 colours from the surface through the middle to the strongest, as packed RGBA. */
  function ramp(element) {
    const stops = ["--ag-low", "--ag-mid", "--ag-high"].map((name) => colourOf(element, name));
    const table = new Uint8ClampedArray(256 * 4);
    for (let i = 0; i < 256; i += 1) {
      const at = (i / 255) * 2;
      const [from, to] = at < 1 ? [stops[0], stops[1]] : [stops[1], stops[2]];
      const share = at < 1 ? at : at - 1;
      for (let c = 0; c < 3; c += 1) table[4 * i + c] = from[c] + (to[c] - from[c]) * share;
      table[4 * i + 3] = 255;
    }
    return table;
  }

  /* Part of a head at one checkpoint, a pixel per cell; masked cells stay transparent.
     part: {q, k, rows, columns}, its first query and key and its size. */
  function image(matrix, keys, part, lastKey, table) {
    const picture = new ImageData(part.columns, part.rows);
    const packed = new Uint32Array(picture.data.buffer);
    const colours = new Uint32Array(table.buffer);
    for (let row = 0; row < part.rows; row += 1) {
      const last = Math.min(part.columns - 1, lastKey(part.q + row) - part.k);
      const from = (part.q + row) * keys + part.k;
      for (let column = 0; column <= last; column += 1) {
        packed[row * part.columns + column] = colours[matrix[from + column]];
      }
    }
    return picture;
  }

  /* A whole head in at most `most` pixels a side: each pixel is the strongest of its cells, so that no line is lost. */
  function pooled(matrix, queries, keys, lastKey, table, most) {
    const by = Math.ceil(Math.max(queries, keys) / most);
    const [rows, columns] = [Math.ceil(queries / by), Math.ceil(keys / by)];
    if (by === 1) return image(matrix, keys, { q: 0, k: 0, rows, columns }, lastKey, table);
    const small = new Uint8Array(rows * columns);
    const column = Uint16Array.from({ length: keys }, (_, k) => Math.floor(k / by));
    for (let q = 0; q < queries; q += 1) {
      const [row, from, end] = [Math.floor(q / by) * columns, q * keys, lastKey(q)];
      for (let k = 0; k <= end; k += 1) {
        const v = matrix[from + k];
        if (v > small[row + column[k]]) small[row + column[k]] = v;
      }
    }
    const last = (row) => Math.floor(lastKey(Math.min(queries - 1, row * by + by - 1)) / by);
    return image(small, columns, { q: 0, k: 0, rows, columns }, last, table);
  }

  /* Cell size and margins for the room there is. */
  function layout(room, queries, keys) {
    const longest = (tokens) => Math.min(7, Math.max(...tokens.map((t) => t.length), 1));
    const left = 28 + 7 * longest(queries);
    const most = Math.min((room - left - 8) / keys.length, TALLEST / queries.length);
    const cell = clamp(Math.floor(most), keys.length > SMALL ? 1 : 2, 32);
    return { cell, left, top: 4, bottom: 28 + 7 * longest(keys), ratio: window.devicePixelRatio || 1 };
  }

  function sized(canvas, wide, high, ratio) {
    canvas.width = Math.round(wide * ratio);
    canvas.height = Math.round(high * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    return pen;
  }

  /* The enlarged head. view: {size, queries, keys, picture, outlines, cell: {q, k}, ink, font}; indices of the part. */
  function plot(canvas, view) {
    const { size, queries, keys, picture, ink } = view;
    const wide = size.left + size.cell * keys.length + 8;
    const high = size.top + size.cell * queries.length + size.bottom;
    canvas.style.width = `${wide}px`;
    canvas.style.height = `${high}px`;
    const pen = sized(canvas, wide, high, size.ratio);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, size.left, size.top, size.cell * keys.length, size.cell * queries.length);
    const box = (q, k, grow) => {
      const side = size.cell - 1 + 2 * grow;
      pen.strokeRect(size.left + k * size.cell + 0.5 - grow, size.top + q * size.cell + 0.5 - grow, side, side);
    };
    pen.strokeStyle = ink.mark;
    pen.lineWidth = size.cell > 8 ? 1.5 : 1;
    if (size.cell > 2) for (const [q, k] of view.outlines) box(q, k, 0);
    axes(pen, view);
    if (size.cell < 5) cross(pen, view);
    pen.strokeStyle = ink.accent;
    pen.lineWidth = 2;
    box(view.cell.q, view.cell.k, 1);
  }

  /* Lines through a cell that is too small to be found by its frame. */
  function cross(pen, { size, queries, keys, cell, ink }) {
    pen.globalAlpha = 0.45;
    pen.fillStyle = ink.accent;
    pen.fillRect(size.left, size.top + cell.q * size.cell, size.cell * keys.length, size.cell);
    pen.fillRect(size.left + cell.k * size.cell, size.top, size.cell, size.cell * queries.length);
    pen.globalAlpha = 1;
  }

  function axes(pen, { size, queries, keys, cell, ink, font }) {
    const every = Math.max(1, Math.ceil(11 / size.cell));
    const base = size.top + size.cell * queries.length;
    const write = (text, index, at, x, y, turned) => {
      const chosen = index === at;
      if (!chosen && (index % every || Math.abs(index - at) * size.cell < 11)) return;
      pen.save();
      pen.font = `${chosen ? "700 " : ""}${clamp(size.cell - 2, 9, 12)}px ${font}`;
      pen.fillStyle = chosen ? ink.text : ink.dim;
      pen.translate(x, y);
      if (turned) pen.rotate(-Math.PI / 2);
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      pen.fillText(short(text, 7), 0, 0);
      pen.restore();
    };
    queries.forEach((t, i) => write(t, i, cell.q, size.left - 5, size.top + (i + 0.5) * size.cell, false));
    keys.forEach((t, i) => write(t, i, cell.k, size.left + (i + 0.5) * size.cell, base + 5, true));
    pen.save();
    pen.fillStyle = ink.dim;
    pen.font = `12px ${font}`;
    pen.textAlign = "center";
    pen.fillText("key", size.left + (size.cell * keys.length) / 2, base + size.bottom - 6);
    pen.translate(12, size.top + (size.cell * queries.length) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText("query", 0, 0);
    pen.restore();
  }

  /* One cell over the checkpoints, the present one as a dot, emergence as a dashed line. */
  function spark(canvas, values, at, emergedAt, ink, ratio) {
    const [wide, high, pad] = [220, 64, 6];
    const pen = sized(canvas, wide, high, ratio);
    const x = (i) => pad + ((wide - 2 * pad) * i) / Math.max(1, values.length - 1);
    const y = (p) => high - pad - (high - 2 * pad) * p;
    const line = (x1, y1, x2, y2) => {
      pen.beginPath();
      pen.moveTo(x1, y1);
      pen.lineTo(x2, y2);
      pen.stroke();
    };
    pen.strokeStyle = ink.line;
    for (const p of [0, 1]) line(pad, y(p), wide - pad, y(p));
    if (emergedAt >= 0) {
      pen.setLineDash([3, 3]);
      pen.strokeStyle = ink.dim;
      line(x(emergedAt), y(0), x(emergedAt), y(1));
      pen.setLineDash([]);
    }
    pen.strokeStyle = ink.accent;
    pen.fillStyle = ink.accent;
    pen.lineWidth = 1.75;
    pen.beginPath();
    values.forEach((p, i) => pen.lineTo(x(i), y(p)));
    pen.stroke();
    pen.beginPath();
    pen.arc(x(at), y(values[at]), 4, 0, 7);
    pen.fill();
    const ends = `${values[0].toFixed(2)} at the first, ${values[values.length - 1].toFixed(2)} at the last`;
    canvas.setAttribute("aria-label", `Attention of this cell over ${values.length} checkpoints: ${ends}`);
  }

  /* The sequence as tokens shaded by how much one query attends to each; a long one around the key. Gives its start. */
  function strip(root, keys, levels, cell, table) {
    const shown = Math.min(keys.length, MAX_STRIP);
    const start = clamp(cell.k - Math.floor(shown / 2), 0, keys.length - shown);
    if (root.childElementCount !== shown) root.replaceChildren(...Array.from({ length: shown }, () => el("span")));
    [...root.children].forEach((node, place) => {
      const i = start + place;
      const masked = i >= levels.length;
      const [r, g, b] = table.slice(4 * levels[i], 4 * levels[i] + 3);
      node.textContent = short(keys[i], 12);
      node.className = [i === cell.q && "ag-q", i === cell.k && "ag-k", masked && "ag-after"].filter(Boolean).join(" ");
      node.style.backgroundColor = masked ? "" : `rgb(${r} ${g} ${b})`;
      node.style.color = masked ? "" : 0.299 * r + 0.587 * g + 0.114 * b > 128 ? "#10151c" : "#ffffff";
    });
    return start;
  }

  return { clamp, short, el, colourOf, watchTheme, ramp, image, pooled, layout, sized, plot, spark, strip };
})();
