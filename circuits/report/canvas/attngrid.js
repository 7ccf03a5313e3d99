/* AttnGrid: attention heads on canvas with token hover, zoom, lines and a slider over checkpoints; no dependency.

   AttnGrid.mount(root, data, options) draws into `root` and returns {element, set, state, refresh, destroy}.
   data: see circuits/report/canvas/encode.py (grid_data), as an object or as the bytes of `packed`.
   options.onChange(state, reason) is called on every user act, with the reasons head, cell, step, play, stop, example,
   targets and mode; options.exact: the host answers with set({exact}) to what was chosen.
   Needs the other attn*.js files before it (sources.py). A module appends its own `export default`. */
const AttnGrid = (() => {
  const PLAY_MS = 320;
  const { clamp } = AttnDraw;
  const { level } = AttnData;

  class Grid extends AttnView.View {
    constructor(root, data, options) {
      super(root, data, Boolean(options.exact));
      this.options = options;
      this.timer = null;
      this.listen();
      this.refresh();
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
      for (const button of this.modes) {
        button.addEventListener("click", () => this.act({ mode: button.dataset.mode }, "mode"));
      }
      for (const thumb of this.thumbs) {
        thumb.button.addEventListener("click", (event) => this.pick(thumb, event));
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
      this.unwatch = AttnDraw.watchTheme(() => this.refresh());
      this.sizes = new ResizeObserver(() => this.fit() && this.drawZoom());
      this.sizes.observe(this.plot.parentElement);
    }

    act(change, reason) {
      Object.assign(this.now, change);
      this.hover = null;
      this.draw();
      this.say(reason);
      this.tell(reason);
    }

    tell(reason) {
      if (this.options.onChange) this.options.onChange(this.state(), reason);
    }

    /* Choose a head; where only a part of it is enlarged, a click on the chosen one moves that part. */
    pick({ layer, head, canvas }, event) {
      const chosen = layer === this.now.layer && head === this.now.head;
      if (chosen && this.parted() && event && event.detail) {
        const box = canvas.getBoundingClientRect();
        const share = (at, start, size) => clamp((at - start) / size, 0, 0.999);
        const q = Math.floor(share(event.clientY, box.top, box.height) * this.example.queries.length);
        const k = Math.floor(share(event.clientX, box.left, box.width) * this.example.keys.length);
        return this.act({ q, k: Math.min(k, this.lastKey(q)) }, "cell");
      }
      Object.assign(this.now, { layer, head });
      this.chooseCell();
      return this.act({}, "head");
    }

    headKey(event, thumb) {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const layer = clamp(thumb.layer + move[0], 0, this.data.n_layers - 1);
      const head = clamp(thumb.head + move[1], 0, this.data.n_heads - 1);
      const next = this.thumbs[layer * this.data.n_heads + head];
      this.pick(next);
      next.button.focus();
    }

    cellKey(event) {
      const { q, k, step } = this.now;
      const moves = {
        ArrowLeft: { k: k - 1 }, ArrowRight: { k: k + 1 }, ArrowUp: { q: q - 1 }, ArrowDown: { q: q + 1 },
        Home: { k: 0 }, End: { k: this.lastKey(q) }, PageUp: { q: q - 5 }, PageDown: { q: q + 5 },
        "[": { step: step - 1 }, "]": { step: step + 1 }, Enter: {},
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
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const { queries, keys } = this.example;
      if (this.now.mode === "lines") {
        const hit = AttnLines.hit(this.lines, x, y, queries, keys);
        if (!hit) return null;
        const q = hit.q ?? this.now.q;
        return { q, k: Math.min(hit.k ?? this.strongest(q), this.lastKey(q)) };
      }
      const k = this.part.k + Math.floor((x - this.size.left) / this.size.cell);
      const q = this.part.q + Math.floor((y - this.size.top) / this.size.cell);
      const inside = q >= this.part.q && k >= this.part.k && q < this.part.q + this.part.rows;
      return inside && k < this.part.k + this.part.columns && k <= this.lastKey(q) ? { q, k } : null;
    }

    overToken(target) {
      const at = [...this.strip.children].indexOf(target) + this.stripFrom;
      if (at >= this.stripFrom && at < this.example.queries.length) this.look({ q: at, k: this.strongest(at) });
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
      this.tell("stop");
    }

    /* ---- for the host ---- */

    state() {
      const { example, step, layer, head, q, k, mode } = this.now;
      const attention = level(this.value(q, k));
      return { example, checkpoint: step, step: this.data.steps[step], layer, head, q, k, attention, mode };
    }

    /* Whole numbers of example, checkpoint, layer, head, q and k are clamped; without q and k the cell is chosen. */
    set({ exact, mode, ...change }) {
      if (exact !== undefined) this.exact = exact;
      if (mode === "matrix" || mode === "lines") this.now.mode = mode;
      const { n_layers: layer, n_heads: head, steps } = this.data;
      const fits = { example: this.examples.length, checkpoint: steps.length, layer, head };
      const given = Object.entries(change).filter(([, value]) => Number.isInteger(value));
      for (const [name, value] of given) {
        if (name in fits) this.now[name === "checkpoint" ? "step" : name] = clamp(value, 0, fits[name] - 1);
      }
      if (given.length) this.chooseCell();
      if (Number.isInteger(change.q) && Number.isInteger(change.k)) {
        this.now.q = clamp(change.q, 0, this.example.queries.length - 1);
        this.now.k = clamp(change.k, 0, this.lastKey(this.now.q));
      }
      this.refresh();
    }

    destroy() {
      clearInterval(this.timer);
      this.unwatch();
      this.sizes.disconnect();
      this.element.remove();
    }
  }

  /* Draw into `root`; the handle lets a host move the view and take it down. */
  function mount(root, data, options = {}) {
    const grid = new Grid(root, data instanceof Uint8Array ? AttnData.unpacked(data) : data, options);
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
