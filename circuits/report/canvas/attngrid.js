/* AttnGrid: attention heads on canvas with token hover, zoom and a slider over checkpoints; no dependency.

   AttnGrid.mount(root, data, options) draws into `root` and returns {element, set, state, refresh, destroy}.
   data: see circuits/report/canvas/encode.py (grid_data). options.onChange(state, reason) is called on every user act.
   Needs attndraw.js and attnparts.js before it. A module host appends its own `export default`. */
const AttnGrid = (() => {
  const PLAY_MS = 320;
  const { clamp } = AttnDraw;
  const { headName } = AttnParts;

  const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ",");

  function prepared(data) {
    return data.examples.map((example) => ({
      label: example.label,
      queries: example.query_tokens || example.tokens,
      keys: example.key_tokens || example.tokens,
      targets: Object.entries(example.targets || {}),
      patterns: example.patterns,
      frames: [],
    }));
  }

  class Grid {
    constructor(root, data, options) {
      this.data = { roles: {}, emerged: null, causal: true, ...data };
      this.options = options;
      this.examples = prepared(data);
      this.hover = null;
      this.timer = null;
      this.now = { example: 0, step: data.steps.length - 1, layer: 0, head: 0, q: 0, k: 0, targets: true };
      this.chooseStart();
      Object.assign(this, AttnParts.build(root, this.data, this.examples));
      this.listen();
      this.refresh();
    }

    /* ---- data ---- */

    get example() {
      return this.examples[this.now.example];
    }

    frame(step = this.now.step) {
      const example = this.example;
      if (!example.frames[step]) example.frames[step] = AttnDraw.decode(example.patterns[step]);
      return example.frames[step];
    }

    base(layer, head) {
      return (layer * this.data.n_heads + head) * this.example.queries.length * this.example.keys.length;
    }

    /* One byte of the frame at `step`; a frame that was never shown is not decoded for it. */
    value(q, k, step = this.now.step) {
      const at = this.base(this.now.layer, this.now.head) + q * this.example.keys.length + k;
      const frame = this.example.frames[step];
      return frame ? frame[at] : AttnDraw.byteAt(this.example.patterns[step], at);
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

    strongest(q) {
      let best = 0;
      for (let k = 1; k <= this.lastKey(q); k += 1) if (this.value(q, k) > this.value(q, best)) best = k;
      return best;
    }

    chooseStart() {
      const named = Object.entries(this.data.roles);
      const start = named.find(([, role]) => role.startsWith("reading")) || named[0];
      const parts = start && start[0].match(/^L(\d+)\.H(\d+)$/);
      if (parts) {
        this.now.layer = clamp(Number(parts[1]), 0, this.data.n_layers - 1);
        this.now.head = clamp(Number(parts[2]), 0, this.data.n_heads - 1);
      }
      this.chooseCell();
    }

    chooseCell() {
      const role = this.roleOf(this.now.layer, this.now.head);
      const own = this.example.targets.find(([name]) => role && role.startsWith(name)) || this.example.targets[0];
      const pairs = own ? own[1] : [];
      const pair = pairs[Math.floor(pairs.length / 2)];
      this.now.q = pair ? pair[0] : this.example.queries.length - 1;
      this.now.k = pair ? pair[1] : this.strongest(this.now.q);
    }

    /* ---- events ---- */

    listen() {
      this.slider.addEventListener("input", () => this.act({ step: Number(this.slider.value) }, "step"));
      this.play.addEventListener("click", () => this.toggle());
      this.select.addEventListener("change", () => {
        this.now.example = Number(this.select.value);
        this.chooseCell();
        this.fit();
        this.act({}, "example");
      });
      this.check.addEventListener("change", () => this.act({ targets: this.check.checked }, "targets"));
      for (const thumb of this.thumbs) {
        thumb.button.addEventListener("click", () => this.pick(thumb.layer, thumb.head));
        thumb.button.addEventListener("keydown", (event) => this.headKey(event, thumb));
      }
      this.plot.addEventListener("pointermove", (event) => this.look(this.cellAt(event)));
      this.plot.addEventListener("pointerleave", () => this.look(null));
      this.plot.addEventListener("click", (event) => {
        const cell = this.cellAt(event);
        if (cell) this.act(cell, "cell");
      });
      this.plot.addEventListener("keydown", (event) => this.cellKey(event));
      this.strip.addEventListener("pointerover", (event) => this.overToken(event.target));
      this.strip.addEventListener("pointerleave", () => this.look(null));
      this.watch();
    }

    watch() {
      this.unwatch = AttnDraw.watchTheme(() => this.refresh());
      this.sizes = new ResizeObserver(() => this.fit() && this.drawZoom());
      this.sizes.observe(this.plot.parentElement);
    }

    act(change, reason) {
      Object.assign(this.now, change);
      this.hover = null;
      this.draw();
      this.say(reason);
      if (this.options.onChange) this.options.onChange(this.state(), reason);
    }

    pick(layer, head) {
      Object.assign(this.now, { layer, head });
      this.chooseCell();
      this.act({}, "head");
    }

    headKey(event, thumb) {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const layer = clamp(thumb.layer + move[0], 0, this.data.n_layers - 1);
      const head = clamp(thumb.head + move[1], 0, this.data.n_heads - 1);
      this.pick(layer, head);
      this.thumbs[layer * this.data.n_heads + head].button.focus();
    }

    cellKey(event) {
      const { q, k, step } = this.now;
      const moves = {
        ArrowLeft: { k: k - 1 }, ArrowRight: { k: k + 1 }, ArrowUp: { q: q - 1 }, ArrowDown: { q: q + 1 },
        Home: { k: 0 }, End: { k: this.lastKey(q) }, PageUp: { q: q - 5 }, PageDown: { q: q + 5 },
        "[": { step: step - 1 }, "]": { step: step + 1 },
      };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      const next = { q, k, step, ...move };
      next.q = clamp(next.q, 0, this.example.queries.length - 1);
      next.k = clamp(next.k, 0, this.lastKey(next.q));
      next.step = clamp(next.step, 0, this.data.steps.length - 1);
      this.act(next, next.step === step ? "cell" : "step");
    }

    /* The cell under the pointer, or null outside the drawn ones. */
    cellAt(event) {
      const box = this.plot.getBoundingClientRect();
      const k = Math.floor((event.clientX - box.left - this.size.left) / this.size.cell);
      const q = Math.floor((event.clientY - box.top - this.size.top) / this.size.cell);
      return q >= 0 && k >= 0 && q < this.example.queries.length && k <= this.lastKey(q) ? { q, k } : null;
    }

    overToken(target) {
      const at = [...this.strip.children].indexOf(target);
      if (at >= 0 && at < this.example.queries.length) this.look({ q: at, k: this.strongest(at) });
    }

    look(cell) {
      this.hover = cell;
      this.drawZoom();
    }

    toggle() {
      if (this.timer) return this.stop();
      if (this.now.step === this.data.steps.length - 1) this.act({ step: 0 }, "play");
      this.timer = setInterval(() => {
        if (this.now.step >= this.data.steps.length - 1) return this.stop();
        return this.act({ step: this.now.step + 1 }, "play");
      }, PLAY_MS);
      this.play.textContent = "Pause";
      return undefined;
    }

    stop() {
      clearInterval(this.timer);
      this.timer = null;
      this.play.textContent = "Play";
    }

    say(reason) {
      if (reason === "play") return;
      const { query, key, p } = this.read;
      const where = `${headName(this.now.layer, this.now.head)}, step ${this.data.steps[this.now.step]}`;
      this.said.textContent =
        `${where}: query ${query.textContent}, key ${key.textContent}, attention ${p.textContent}`;
    }

    /* ---- drawing ---- */

    /* Reads colours and sizes again, then draws. */
    refresh() {
      this.table = AttnDraw.ramp(this.element);
      const names = ["text", "dim", "line", "mark", "accent"];
      this.ink = Object.fromEntries(
        names.map((name) => [name, `rgb(${AttnDraw.colourOf(this.element, `--ag-${name}`).join(" ")})`]),
      );
      this.font = getComputedStyle(this.element).fontFamily;
      this.ramp.getContext("2d").putImageData(new ImageData(this.table.slice(), 256, 1), 0, 0);
      this.fit();
      this.draw();
    }

    fit() {
      const size = AttnDraw.layout(this.plot.parentElement.clientWidth || 480, this.example.queries, this.example.keys);
      const changed = JSON.stringify(this.size) !== JSON.stringify(size);
      this.size = size;
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
      for (const thumb of this.thumbs) this.drawThumb(thumb);
      this.drawZoom();
    }

    picture(layer, head) {
      const { queries, keys } = this.example;
      const last = (q) => this.lastKey(q);
      return AttnDraw.image(this.frame(), this.base(layer, head), queries.length, keys.length, last, this.table);
    }

    drawThumb({ button, canvas, layer, head }) {
      const picture = this.picture(layer, head);
      canvas.width = picture.width;
      canvas.height = picture.height;
      canvas.getContext("2d").putImageData(picture, 0, 0);
      const on = layer === this.now.layer && head === this.now.head;
      button.setAttribute("aria-pressed", String(on));
      button.tabIndex = on ? 0 : -1;
    }

    outlines() {
      const role = this.roleOf(this.now.layer, this.now.head);
      const own = this.example.targets.filter(([name]) => !role || role.startsWith(name));
      return this.now.targets ? own.flatMap(([, pairs]) => pairs) : [];
    }

    drawZoom() {
      const { queries, keys } = this.example;
      const { layer, head } = this.now;
      const cell = this.hover || this.now;
      const { size, ink, font } = this;
      const picture = this.picture(layer, head);
      AttnDraw.plot(this.plot, { size, queries, keys, picture, outlines: this.outlines(), cell, ink, font });
      const role = this.roleOf(layer, head);
      this.title.textContent = `${headName(layer, head)}${role ? `, ${role}` : ""}`;
      this.plot.setAttribute("aria-label", `${this.title.textContent}: rows are queries, columns are keys`);
      this.read.query.textContent = `${queries[cell.q]} (position ${cell.q})`;
      this.read.key.textContent = `${keys[cell.k]} (position ${cell.k})`;
      this.read.p.textContent = AttnDraw.level(this.value(cell.q, cell.k)).toFixed(3);
      this.read.target.textContent = this.rolesAt(cell.q, cell.k).join(", ") || "no role";
      const values = this.data.steps.map((_, i) => AttnDraw.level(this.value(cell.q, cell.k, i)));
      AttnDraw.spark(this.spark, values, this.now.step, this.data.steps.indexOf(this.data.emerged), ink, size.ratio);
      const levels = keys.slice(0, this.lastKey(cell.q) + 1).map((_, k) => this.value(cell.q, k));
      AttnDraw.strip(this.strip, keys, levels, cell, this.table);
    }

    /* ---- for the host ---- */

    state() {
      const { example, step, layer, head, q, k } = this.now;
      const attention = AttnDraw.level(this.value(q, k));
      return { example, checkpoint: step, step: this.data.steps[step], layer, head, q, k, attention };
    }

    set(change) {
      const { n_layers: layer, n_heads: head, steps } = this.data;
      const fits = { example: this.examples.length, checkpoint: steps.length, layer, head };
      for (const [name, value] of Object.entries(change)) {
        if (!(name in fits) || !Number.isInteger(value)) continue;
        this.now[name === "checkpoint" ? "step" : name] = clamp(value, 0, fits[name] - 1);
      }
      this.chooseCell();
      this.refresh();
    }

    destroy() {
      this.stop();
      this.unwatch();
      this.sizes.disconnect();
      this.element.remove();
    }
  }

  /* Draw into `root`; the handle lets a host move the view and take it down. */
  function mount(root, data, options = {}) {
    const grid = new Grid(root, data, options);
    return {
      element: grid.element,
      set: (change) => grid.set(change),
      state: () => grid.state(),
      refresh: () => grid.refresh(),
      destroy: () => grid.destroy(),
    };
  }

  return { mount };
})();
