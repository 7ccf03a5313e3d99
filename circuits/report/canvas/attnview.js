/* AttnView: what AttnGrid draws and says of its present state; it reads no event. */
const AttnView = (() => {
  const [THUMB, WHOLE, PART] = [168, 512, 192]; // px of a thumbnail; tokens drawn whole; tokens of a part
  const FITS = 0.3; // mean attention on targets from which a head is said to be on them
  const { clamp } = AttnDraw;
  const { headName } = AttnParts;
  const { level } = AttnData;

  const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");

  class View {
    constructor(root, data, exact) {
      this.data = { roles: {}, emerged: null, causal: true, ...data };
      this.examples = data.examples.map((one) => new AttnData.Example(one, data.n_layers, data.n_heads));
      this.hover = this.exact = null;
      this.drawn = {};
      const first = { example: 0, layer: 0, head: 0, q: 0, k: 0 };
      this.now = { ...first, step: data.steps.length - 1, targets: true, mode: "matrix" };
      this.chooseStart();
      Object.assign(this, AttnParts.build(root, this.data, this.examples, exact));
    }

    /* ---- data ---- */

    get example() {
      return this.examples[this.now.example];
    }

    value(q, k, step = this.now.step) {
      return this.example.byte(step, this.now.layer, this.now.head, q, k);
    }

    roleOf(layer, head) {
      return this.data.roles[headName(layer, head)] || "";
    }

    rolesAt(q, k) {
      return this.example.targets.filter(([, pairs]) => pairs.some((p) => p[0] === q && p[1] === k)).map(([r]) => r);
    }

    lastKey(q) {
      const end = this.example.keys.length - 1;
      return this.data.causal ? Math.min(q, end) : end;
    }

    bytes(q) {
      const { keys } = this.example;
      const matrix = this.example.matrix(this.now.step, this.now.layer, this.now.head);
      return matrix.subarray(q * keys.length, q * keys.length + this.lastKey(q) + 1);
    }

    strongest(q) {
      const row = this.bytes(q);
      return row.indexOf(Math.max(...row));
    }

    /* Mean attention of a head on the targets of each role that it may have, the largest first: [[role, mean], ...]. */
    scoresOf(layer, head, step = this.now.step) {
      const role = this.roleOf(layer, head);
      const own = this.example.targets.filter(([name]) => !role || role.startsWith(name));
      const means = own.map(([name, pairs]) => {
        const sum = pairs.reduce((all, [q, k]) => all + level(this.example.byte(step, layer, head, q, k)), 0);
        return [name, sum / Math.max(1, pairs.length)];
      });
      return means.sort((a, b) => b[1] - a[1]);
    }

    /* Targets of the head's role; else of the role it fits at the last checkpoint; of all where it fits none. */
    targetsOf(layer, head) {
      const role = this.roleOf(layer, head);
      const best = this.scoresOf(layer, head, this.data.steps.length - 1)[0];
      const fits = role || (best && best[1] >= FITS ? best[0] : "");
      const own = this.example.targets.filter(([name]) => fits.startsWith(name));
      return own.length ? own : this.example.targets;
    }

    /* The head with a role, reading before others; without roles the one that fits some targets best at the end. */
    chooseStart() {
      const named = Object.entries(this.data.roles);
      const start = named.find(([, role]) => role.startsWith("reading")) || named[0];
      const parts = start && start[0].match(/^L(\d+)\.H(\d+)$/);
      if (parts) {
        this.now.layer = clamp(Number(parts[1]), 0, this.data.n_layers - 1);
        this.now.head = clamp(Number(parts[2]), 0, this.data.n_heads - 1);
      } else if (this.example.targets.length) {
        const all = Array.from({ length: this.data.n_layers * this.data.n_heads }, (_, i) => i);
        const score = (i) => this.scoresOf(Math.floor(i / this.data.n_heads), i % this.data.n_heads)[0][1];
        const best = all.reduce((a, b) => (score(b) > score(a) ? b : a));
        this.now.layer = Math.floor(best / this.data.n_heads);
        this.now.head = best % this.data.n_heads;
      }
      this.chooseCell();
    }

    chooseCell() {
      const own = this.targetsOf(this.now.layer, this.now.head)[0];
      const pairs = own ? own[1] : [];
      const pair = pairs[Math.floor(pairs.length / 2)];
      this.now.q = pair ? pair[0] : this.example.queries.length - 1;
      this.now.k = pair ? pair[1] : this.strongest(this.now.q);
    }

    /* ---- drawing ---- */

    /* Reads colours and sizes again, then draws. */
    refresh() {
      this.table = AttnDraw.ramp(this.element);
      const names = ["text", "dim", "line", "mark", "accent", "faint"];
      this.ink = Object.fromEntries(
        names.map((name) => [name, `rgb(${AttnDraw.colourOf(this.element, `--ag-${name}`).join(" ")})`]),
      );
      this.font = getComputedStyle(this.element).fontFamily;
      this.ramp.getContext("2d").putImageData(new ImageData(this.table.slice(), 256, 1), 0, 0);
      this.fit();
      this.draw();
    }

    parted() {
      return Math.max(this.example.queries.length, this.example.keys.length) > WHOLE;
    }

    /* The part of the head that is enlarged: all of it, or as many tokens as can be read around the cell. */
    choosePart() {
      const { queries, keys } = this.example;
      const most = this.parted() ? PART : WHOLE;
      const [rows, columns] = [Math.min(most, queries.length), Math.min(most, keys.length)];
      const from = (old, at, size, all) =>
        old !== undefined && at >= old && at < old + size ? old : clamp(Math.round(at - size / 2), 0, all - size);
      const old = this.part && this.part.rows === rows && this.part.columns === columns ? this.part : {};
      const q = from(old.q, this.now.q, rows, queries.length);
      this.part = { q, k: from(old.k, this.now.k, columns, keys.length), rows, columns };
    }

    shownTokens() {
      const { q, k, rows, columns } = this.part;
      return [this.example.queries.slice(q, q + rows), this.example.keys.slice(k, k + columns)];
    }

    fit() {
      this.choosePart();
      const room = this.plot.parentElement.clientWidth || 480;
      const size = AttnDraw.layout(room, ...this.shownTokens());
      const changed = JSON.stringify([this.size, this.room]) !== JSON.stringify([size, room]);
      Object.assign(this, { size, room, lines: AttnLines.layout(room, this.example.queries, this.example.keys) });
      return changed;
    }

    draw() {
      const { steps, emerged } = this.data;
      const step = steps[this.now.step];
      const phase = emerged === null ? "" : step < emerged ? ", before emergence" : ", emerged";
      const text = `step ${grouped(step)}, checkpoint ${this.now.step + 1} of ${steps.length}${phase}`;
      this.slider.value = String(this.now.step);
      this.slider.setAttribute("aria-valuetext", text);
      this.stepText.textContent = text;
      this.select.value = String(this.now.example);
      const on = (button) => String(button.dataset.mode === this.now.mode);
      for (const button of this.modes) button.setAttribute("aria-pressed", on(button));
      for (const thumb of this.thumbs) this.drawThumb(thumb);
      this.fit();
      this.drawZoom();
    }

    drawThumb({ button, canvas, score, found, layer, head }) {
      const { queries, keys } = this.example;
      const matrix = this.example.matrix(this.now.step, layer, head);
      const last = (q) => this.lastKey(q);
      const picture = AttnDraw.pooled(matrix, queries.length, keys.length, last, this.table, THUMB);
      canvas.width = picture.width;
      canvas.height = picture.height;
      canvas.getContext("2d").putImageData(picture, 0, 0);
      const on = layer === this.now.layer && head === this.now.head;
      button.setAttribute("aria-pressed", String(on));
      button.tabIndex = on ? 0 : -1;
      const best = this.scoresOf(layer, head)[0];
      score.textContent = best ? best[1].toFixed(2) : "";
      if (!best) return;
      button.title = `mean attention on the ${best[0]} targets, in this one sequence`;
      if (!this.roleOf(layer, head)) found.textContent = best[1] >= FITS ? best[0] : "\u00a0";
    }

    outlines() {
      return this.now.targets ? this.targetsOf(this.now.layer, this.now.head).flatMap(([, pairs]) => pairs) : [];
    }

    /* The enlarged picture, kept while only the cell under the pointer changes. */
    picture() {
      const { step, layer, head, example } = this.now;
      const id = JSON.stringify([example, step, layer, head, this.part]);
      if (this.drawn.id !== id || this.drawn.table !== this.table) {
        const matrix = this.example.matrix(step, layer, head);
        const canvas = new OffscreenCanvas(this.part.columns, this.part.rows);
        const last = (q) => this.lastKey(q);
        const image = AttnDraw.image(matrix, this.example.keys.length, this.part, last, this.table);
        canvas.getContext("2d").putImageData(image, 0, 0);
        this.drawn = { id, canvas, table: this.table };
      }
      return this.drawn.canvas;
    }

    drawZoom() {
      const cell = this.hover || this.now;
      const [queries, keys] = this.shownTokens();
      const { size, ink, font, part } = this;
      if (this.now.mode === "lines") {
        const { queries: all, keys: others } = this.example;
        const [bytes, lastKey, targets] = [(q) => this.bytes(q), (q) => this.lastKey(q), this.outlines()];
        const view = { size: this.lines, queries: all, keys: others, bytes, lastKey, targets, ratio: size.ratio };
        AttnLines.draw(this.plot, { ...view, cell, ink, font });
      } else {
        const inside = ([q, k]) => q >= part.q && k >= part.k && q < part.q + part.rows && k < part.k + part.columns;
        const moved = ([q, k]) => [q - part.q, k - part.k];
        const outlines = this.outlines().filter(inside).map(moved);
        const at = { q: cell.q - part.q, k: cell.k - part.k };
        AttnDraw.plot(this.plot, { size, queries, keys, picture: this.picture(), outlines, cell: at, ink, font });
      }
      this.words(cell);
      this.aside(cell);
    }

    say(reason) {
      if (reason === "play") return;
      const { query, key, p } = this.read;
      const where = `${headName(this.now.layer, this.now.head)}, step ${this.data.steps[this.now.step]}`;
      this.said.textContent =
        `${where}: query ${query.textContent}, key ${key.textContent}, attention ${p.textContent}`;
    }

    words(cell) {
      const { queries, keys, first } = this.example;
      const role = this.roleOf(this.now.layer, this.now.head);
      const where = this.parted()
        ? `, queries ${this.part.q + first} to ${this.part.q + first + this.part.rows - 1} of ${queries.length}`
        : "";
      this.title.textContent = `${headName(this.now.layer, this.now.head)}${role ? `, ${role}` : ""}${where}`;
      this.plot.setAttribute("aria-label", `${this.title.textContent}: rows are queries, columns are keys`);
      const more = this.parted() ? " A click on the chosen head's small picture moves the enlarged part." : "";
      this.hint.textContent = AttnParts.HINT + more;
      this.read.query.textContent = `${queries[cell.q]} (position ${cell.q + first})`;
      this.read.key.textContent = `${keys[cell.k]} (position ${cell.k + first})`;
      const exact = this.exactAt(cell);
      this.read.p.textContent = (exact ?? level(this.value(cell.q, cell.k))).toFixed(3);
      if (this.read.target) this.read.target.textContent = this.rolesAt(cell.q, cell.k).join(", ") || "no role";
      const none = this.data.exact_by === "cell" ? "click the cell" : "…";
      if (this.read.exact) this.read.exact.textContent = exact === null ? none : exact.toPrecision(6);
    }

    /* The exact value where the host sent it, of one cell or of the whole head at one checkpoint; else null. */
    exactAt({ q, k }) {
      const { exact, now } = this;
      const here = exact && exact.step === this.data.steps[now.step] && exact.example === now.example;
      if (!here || exact.layer !== now.layer || exact.head !== now.head) return null;
      if (exact.values) return exact.values[q * this.example.keys.length + k];
      return exact.q === q && exact.k === k ? exact.value : null;
    }

    aside(cell) {
      const { queries, keys } = this.example;
      const { ink, size } = this;
      const values = this.data.steps.map((_, i) => level(this.value(cell.q, cell.k, i)));
      AttnDraw.spark(this.spark, values, this.now.step, this.data.steps.indexOf(this.data.emerged), ink, size.ratio);
      const matrix = this.example.matrix(this.now.step, this.now.layer, this.now.head);
      const shares = AttnLines.byDistance(matrix, queries.length, keys.length, (q) => this.lastKey(q));
      const far = AttnLines.histogram(this.far, shares, Math.abs(cell.q - cell.k), ink, size.ratio);
      this.farText.textContent = far;
      this.stripFrom = AttnDraw.strip(this.strip, keys, this.bytes(cell.q), cell, this.table);
    }
  }

  return { View };
})();
